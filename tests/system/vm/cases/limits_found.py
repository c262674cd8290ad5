#!/usr/bin/python3
"""The daemon finds its unit's limits, and the lower one of a slice above it."""

from pathlib import Path

from scenario import expect, run
from unit import Unit, systemctl

SETTINGS = """
[workers.idle]
command = ["/usr/bin/sleep", "infinity"]
"""


def case() -> str:
    slice_file = Path("/run/systemd/system/limited.slice")
    slice_file.write_text("[Slice]\nMemoryMax=384M\n")
    systemctl("daemon-reload")
    # The memory limit that hurts is the slice's, the CPU limit the unit's own.
    with Unit(SETTINGS, Slice="limited.slice", MemoryMax="512M", CPUQuota="150%") as unit:
        page = unit.metrics()
        memory, cores = page.value("plimsoll_memory_limit_bytes"), page.value("plimsoll_cpu_limit_cores")
        expect(memory == 384 << 20, f"memory limit {memory:.0f}, expected {384 << 20}")
        expect(cores == 1.5, f"CPU limit {cores}, expected 1.5")
        where = unit.status()["environment"]
        expect((where["cgroup"], where["enforcement"]) == ("v2", "cgroup"), f"environment: {where}")
    with Unit(SETTINGS, MemoryMax="512M", CPUQuota="50%") as unit:
        page = unit.metrics()
        memory, cores = page.value("plimsoll_memory_limit_bytes"), page.value("plimsoll_cpu_limit_cores")
        expect(memory == 512 << 20, f"memory limit {memory:.0f}, expected {512 << 20}")
        expect(cores == 0.5, f"CPU limit {cores}, expected 0.5")
    return "slice 384 MiB and unit 150 %; unit 512 MiB and 50 %"


run(case)

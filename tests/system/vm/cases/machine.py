#!/usr/bin/python3
"""The machine is what the other cases assume: systemd runs it, cgroup v2 has cpu, memory and pids, PSI is on."""

from pathlib import Path

from scenario import expect, run


def case() -> str:
    expect(Path("/proc/1/comm").read_text().strip() == "systemd", "process 1 is not systemd")
    controllers = Path("/sys/fs/cgroup/cgroup.controllers").read_text().split()
    expect({"cpu", "memory", "pids"} <= set(controllers), f"cgroup v2 offers only {controllers}")
    expect(Path("/proc/pressure/memory").read_text().startswith("some "), "no pressure stall information")
    release = Path("/proc/sys/kernel/osrelease").read_text().strip()
    return f"kernel {release}, controllers {' '.join(controllers)}"


run(case)

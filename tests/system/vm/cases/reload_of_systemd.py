#!/usr/bin/python3
"""In a unit without `Delegate=` systemd takes the workers' controllers away when it looks at its groups anew: budget and memory account hold."""

import subprocess

from scenario import expect, run
from unit import Unit, group_of, systemctl, wait_until_throttled

SETTINGS = """
[workers.hog]
command = ["/bin/sh", "-c", "while :; do :; done"]
[workers.holder]
command = ["/usr/bin/python3", "-c", "held = b'x' * (60 << 20); import time; time.sleep(1e6)"]
"""
MIB = 1 << 20


def case() -> str:
    with Unit(SETTINGS, CPUQuota="100%", MemoryMax="384M", Delegate="no") as unit:
        wait_until_throttled(unit, "cpu")
        pid = next(worker["replicas"][0]["pid"] for worker in unit.status()["workers"] if worker["name"] == "hog")
        group = group_of(pid)
        used = []
        for disturbance in (
            ("systemctl", "daemon-reload"),
            ("systemd-run", "--unit=beside", "--property=CPUWeight=50", "--property=MemoryLow=10M", "sleep", "60"),
            ("systemctl", "set-property", "--runtime", "plimsoll.service", "CPUWeight=90"),
            ("systemctl", "stop", "beside"),
        ):
            subprocess.run(disturbance, check=True, capture_output=True)
            used.append(unit.cores_used(8))
            expect(group_of(pid) == group, f"after {disturbance}: the worker is in {group_of(pid)}, it was in {group}")
            expect((group / "cpu.max").exists() and (group / "memory.high").exists(), f"after {disturbance}: controllers were taken from {group}")
            # A busy host may keep it from what it is granted.
            expect(0.74 <= used[-1] <= 0.83, f"after {disturbance}: {used[-1]:.3f} cores used, 0.8 is the line")
            held = unit.metrics().value("plimsoll_worker_memory_bytes", worker="holder")
            expect(55 * MIB <= held <= 75 * MIB, f"after {disturbance}: the holder of 60 MiB is said to hold {held / MIB:.1f}")
        taken = [event["detail"] for event in unit.events("degraded") if event["part"] == "cgroup"]
        expect(taken and all("given again" in detail for detail in taken), f"told: {taken}")
        expect(any("Delegate=yes" in text for text in unit.status()["environment"]["limitations"]), "status does not say what to do about it")
        enforcement = unit.status()["environment"]["enforcement"]
        expect(enforcement == "cgroup", f"enforcement: {enforcement}")
        systemctl("revert", "plimsoll.service")
    return f"controllers given again {len(taken)} times; cores used after each disturbance: " + ", ".join(f"{cores:.2f}" for cores in used)


run(case)

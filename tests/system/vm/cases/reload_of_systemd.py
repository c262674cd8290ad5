#!/usr/bin/python3
"""In a unit without `Delegate=` a `systemctl daemon-reload`, and new units beside it, leave the workers' groups and a held CPU budget alone."""

import subprocess

from scenario import expect, run
from unit import Unit, group_of, systemctl, wait_until_throttled

SETTINGS = """
[workers.hog]
command = ["/bin/sh", "-c", "while :; do :; done"]
"""


def case() -> str:
    with Unit(SETTINGS, CPUQuota="100%", MemoryMax="384M", Delegate="no") as unit:
        wait_until_throttled(unit, "cpu")
        [pid] = unit.pids()
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
            expect(abs(used[-1] - 0.8) <= 0.03, f"after {disturbance}: {used[-1]:.3f} cores used, 0.8 is the line")
        enforcement = unit.status()["environment"]["enforcement"]
        expect(enforcement == "cgroup", f"enforcement: {enforcement}")
        systemctl("revert", "plimsoll.service")
    return "cores used after each disturbance: " + ", ".join(f"{cores:.2f}" for cores in used)


run(case)

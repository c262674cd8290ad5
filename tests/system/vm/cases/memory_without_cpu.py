#!/usr/bin/python3
"""A service that systemd gives the memory controller and not the one for CPU has memory groups for its workers all the same."""

from pathlib import Path

from scenario import expect, run
from unit import Unit, group_of, systemctl

SETTINGS = """
[workers.idle]
command = ["/usr/bin/sleep", "infinity"]
"""


def case() -> str:
    # A slice of its own: in system.slice somebody may have asked for CPU, and then all get that controller.
    Path("/run/systemd/system/plain.slice").write_text("[Slice]\nMemoryMax=512M\n")
    systemctl("daemon-reload")
    with Unit(SETTINGS, Slice="plain.slice", Delegate="no") as unit:
        given = (unit.group / "cgroup.controllers").read_text().split()
        expect("memory" in given and "cpu" not in given, f"controllers of the unit: {given}")
        [pid] = unit.pids()
        group = group_of(pid)
        expect(group.parent == unit.group, f"the worker is in {group}")
        expect((group / "memory.high").exists(), f"{group} has no memory.high")
        where = unit.status()["environment"]
        told = where["limitations"]
        expect([text for text in told if "has no cpu controller" in text] == told, f"limitations: {told}")
        expect(where["enforcement"] == "signal", f"enforcement: {where['enforcement']}")
    return "memory.high in the worker's group, CPU by duty cycle"


run(case)

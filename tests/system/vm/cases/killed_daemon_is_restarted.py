#!/usr/bin/python3
"""With the shipped unit a killed daemon comes back by itself, with as many workers as before and none of the old ones."""

from scenario import PROGRAMS, expect, run, wait_for
from unit import UNIT, Unit, limited_groups, processes, systemctl, wait_until_throttled

SETTINGS = f"""
[policy.cpu]
sustain = "1s"

[workers.hog]
command = ["{PROGRAMS}/hog", "100"]
replicas = 3
"""


def case() -> str:
    with Unit(SETTINGS, CPUQuota="100%") as unit:
        wait_until_throttled(unit, "cpu")
        old = set(unit.pids())
        systemctl("kill", "--signal=SIGKILL", "--kill-whom=main", UNIT)
        wait_for("systemd has started it again", 30, lambda: unit.show("NRestarts") == "1")
        wait_for("every worker runs", 60, unit.workers_run)
        states = processes("hog")
        expect(len(states) == 3, f"three hogs expected: {states}")
        expect(not old & set(states), f"old workers still run: {old & set(states)}")
        wait_until_throttled(unit, "cpu")
        expect(limited_groups(unit.group), "nothing is held by a quota after the restart")
    return "3 workers before and after, held again"


run(case)

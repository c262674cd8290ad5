#!/usr/bin/python3
"""SIGKILL of the daemon alone leaves no worker stopped at once, and no group limited after the next start."""

from scenario import PROGRAMS, expect, run, wait_for
from unit import UNIT, Unit, limited_groups, processes, systemctl, wait_until_throttled

SETTINGS = f"""
[policy.cpu]
sustain = "1s"

[workers.by-group]
command = ["{PROGRAMS}/hog", "100"]
[workers.by-duty]
command = ["{PROGRAMS}/hog", "100"]
throttle = "duty"
"""


def case() -> str:
    # systemd is to touch neither the workers nor what the daemon left behind.
    with Unit(SETTINGS, CPUQuota="100%", KillMode="process", Restart="no", ExecStopPost="", SendSIGKILL="no") as unit:
        wait_until_throttled(unit, "cpu")
        group, old = unit.group, set(unit.pids())
        expect(len(old) == 2, f"two workers expected, pids {old}")
        # Kill it in the moment a worker is held stopped.
        wait_for("a worker is held stopped", 30, lambda: "T" in processes("hog").values(), every=0.005)
        systemctl("kill", "--signal=SIGKILL", "--kill-whom=main", UNIT)
        wait_for("the daemon is gone", 10, lambda: unit.show("ActiveState") == "failed", every=0.1)
        states = wait_for(
            "no worker is stopped", 5, lambda: (s := processes("hog")) and "T" not in s.values() and s, every=0.02
        )
        expect(old <= set(states), f"a worker died with the daemon: {states}, before {old}")
        # The next start, with nothing to throttle: what is left of the last one is put back.
        idle = SETTINGS.replace('"100"]', '"1"]')
        with Unit(idle, CPUQuota="100%", KillMode="process") as again:
            held = limited_groups(again.group)
            expect(not held, f"limited after the next start: {held}")
            expect("T" not in processes("hog").values(), f"stopped after the next start: {processes('hog')}")
            systemctl("kill", "--signal=SIGKILL", "--kill-whom=all", UNIT)
    return f"{len(old)} workers ran on in {group.name}, nothing held after the next start"


run(case)

#!/usr/bin/python3
"""SIGKILL of the daemon leaves no worker stopped or limited; killed together with its sentinel, none stopped, and none limited after the next start."""

import os
import signal
import subprocess
from pathlib import Path

from scenario import PROGRAMS, expect, run, wait_for
from unit import Unit, kill_all, limited_groups, processes, wait_until_throttled

SETTINGS = f"""
[policy.cpu]
sustain = "1s"

[workers.by-group]
command = ["{PROGRAMS}/hog", "100"]
[workers.by-duty]
command = ["{PROGRAMS}/hog", "100"]
throttle = "duty"
"""
# systemd is to touch neither the workers nor what the daemon left behind.
ALONE = {"CPUQuota": "100%", "KillMode": "process", "Restart": "no", "ExecStopPost": "", "SendSIGKILL": "no"}


def sentinels() -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # It has ended in this moment.
        if words[:2] == [b"plimsoll", b"sentinel"]:
            found.append(int(folder.name))
    return found


def sentinel() -> int:
    running = sentinels()
    if not running:
        raise LookupError("no sentinel runs")
    return running[0]


def kill(unit: Unit, with_sentinel: bool) -> None:
    """Kills the daemon in a moment in which it holds one worker stopped and another limited."""
    wait_until_throttled(unit, "cpu")
    old = set(unit.pids())
    expect(len(old) == 2, f"two workers expected, pids {old}")
    victims = [int(unit.show("MainPID")), *([wait_for("the sentinel is seen", 10, sentinel)] if with_sentinel else [])]
    wait_for("a worker is limited", 30, lambda: limited_groups(unit.group))
    wait_for("a worker is held stopped", 30, lambda: "T" in processes("hog").values(), every=0.005)
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    states = wait_for("no worker is stopped", 5, lambda: (s := processes("hog")) and "T" not in s.values() and s, every=0.02)
    expect(old <= set(states), f"a worker died with the daemon: {states}, before {old}")


def case() -> str:
    with Unit(SETTINGS, **ALONE) as unit:
        group = unit.group
        kill(unit, with_sentinel=False)
        wait_for("nothing is limited any more", 5, lambda: not limited_groups(group))
        kill_all("hog")
        # It is in the unit's group too, and systemd 252 starts no unit whose old groups still hold somebody.
        wait_for("the sentinel has removed the groups and ended", 10, lambda: not sentinels())
    with Unit(SETTINGS, **ALONE) as unit:
        kill(unit, with_sentinel=True)
        expect(limited_groups(group), "the limits are gone with nobody there to lift them: this case shows nothing")
        # The next start, with nothing to look after; not as a unit: systemd 252 cannot start one whose old groups still hold processes.
        following = subprocess.Popen(["plimsoll", "run", "-c", "/dev/null", "--set", "http.listen=[]"])
        try:
            wait_for("the next start has lifted the limits", 20, lambda: not limited_groups(group))
        finally:
            following.terminate()
            following.wait()
        expect("T" not in processes("hog").values(), f"stopped after the next start: {processes('hog')}")
        kill_all("hog")
    return "workers ran on at once; the sentinel lifted the limits, without it the next start did"


run(case)

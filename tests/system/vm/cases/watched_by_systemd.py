#!/usr/bin/python3
"""A start is over when the daemon answers, its status line says how it stands, and one that stands still is restarted with nothing left held."""

import os
import signal
import subprocess
import urllib.request

from scenario import PROGRAMS, expect, run, wait_for
from unit import PAGE, UNIT, Unit, limited_groups, processes, systemctl, wait_until_throttled

SETTINGS = f"""
[policy.cpu]
sustain = "1s"

[workers.hog]
command = ["{PROGRAMS}/hog", "100"]
replicas = 2
throttle = "duty"
"""


def case() -> str:
    unit = Unit(SETTINGS, CPUQuota="100%", WatchdogSec="5")
    systemctl("start", UNIT)
    # Not waited for: it was looked at once before systemd called it started.
    with urllib.request.urlopen(PAGE.replace("/metrics", "/healthz"), timeout=10) as answer:
        expect(answer.status == 200, f"/healthz said {answer.status} right after the start")
    with unit:
        line = unit.show("StatusText")
        expect("memory" in line and "of 2 workers up" in line, f"the status line is {line!r}")
        wait_until_throttled(unit, "cpu")
        wait_for("the status line says so", 30, lambda: "held" in unit.show("StatusText"))

        unit.write("[workers.hog]\ncomand = 1\n")
        reload = subprocess.run(["systemctl", "reload", UNIT], capture_output=True, text=True, check=False)
        expect(reload.returncode != 0, "a reload of a wrong file was no failure")
        wait_for("the status line says so", 30, lambda: "were refused" in unit.show("StatusText"))
        expect(len(processes("hog")) == 2, "the old settings did not go on")
        unit.write(SETTINGS)
        systemctl("reload", UNIT)
        expect(unit.show("ActiveState") == "active", f"after the reload the unit is {unit.show('ActiveState')}")

        # It stands still in the middle of its work: two workers are being stopped and continued by it.
        old, daemon = set(unit.pids()), int(unit.show("MainPID"))
        os.kill(daemon, signal.SIGSTOP)
        wait_for("systemd has started it again", 60, lambda: unit.show("NRestarts") == "1")
        wait_for("every worker runs", 60, unit.workers_run)
        journal = subprocess.run(["journalctl", "--unit", UNIT, "--output=cat"], capture_output=True, text=True, check=True).stdout
        expect("Watchdog timeout" in journal, "it was not the watchdog that ended it")
        hogs = processes("hog")
        expect(len(hogs) == 2 and not old & set(hogs), f"two new hogs expected: {hogs}, before {old}")
        expect(int(unit.show("MainPID")) != daemon, "the daemon is the old one")
        wait_until_throttled(unit, "cpu")
    expect(not processes("hog"), f"after the end there are still hogs: {processes('hog')}")
    expect(not unit.group.exists() or not limited_groups(unit.group), "something is held after the end")
    return f"status line: {line}"


run(case)

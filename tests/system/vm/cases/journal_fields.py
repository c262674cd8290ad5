#!/usr/bin/python3
"""The journal has each event with fields of its own: found by name and worker, with its priority, under the unit."""

import json
import subprocess

from scenario import PROGRAMS, expect, run, wait_for
from unit import UNIT, Unit

SETTINGS = f"""
[policy.cpu]
sustain = "1s"

[workers.hog]
command = ["{PROGRAMS}/hog", "100"]
output = "journald"
"""


def entries(*matches: str) -> list[dict[str, str]]:
    asked = ["journalctl", "--output=json", "--all", f"_SYSTEMD_UNIT={UNIT}", *matches]
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def case() -> str:
    with Unit(SETTINGS, CPUQuota="50%") as unit:
        pid = str(unit.pids()[0])
        started = wait_for("the start is found by its fields", 30, lambda: entries("EVENT=worker_started", "WORKER=hog", f"PID={pid}"))
        throttled = wait_for("the throttle is found by its fields", 60, lambda: entries("EVENT=throttle_engaged", "RESOURCE=cpu"))
        expect(started[-1]["PRIORITY"] == "6", f"a start has priority {started[-1]['PRIORITY']}, 6 (info) expected")
        expect(throttled[-1]["PRIORITY"] == "4", f"a throttle has priority {throttled[-1]['PRIORITY']}, 4 (warning) expected")
        expect(throttled[-1]["SYSLOG_IDENTIFIER"] == "plimsoll", f"it is filed under {throttled[-1].get('SYSLOG_IDENTIFIER')}")
        expect(throttled[-1]["MESSAGE"].startswith("cpu at"), f"its message is {throttled[-1]['MESSAGE']!r}")
        # Each field once, none of them in the text form.
        expect("event=" not in throttled[-1]["MESSAGE"], "the fields stand in the message")
    return ", ".join(sorted(key for key in throttled[-1] if not key.startswith(("_", "SYSLOG", "CODE"))))


run(case)

#!/usr/bin/python3
"""`systemctl stop` ends stubborn, throttled and stopped workers with their whole trees, in time."""

import time

from scenario import PROGRAMS, expect, run
from unit import UNIT, Unit, expect_no_process, systemctl, wait_until_throttled

SETTINGS = f"""
[policy.cpu]
sustain = "1s"

[workers.hog]
command = ["{PROGRAMS}/hog", "100"]
throttle = "duty"
stop = {{ signal = "SIGTERM", within = "5s" }}

[workers.stubborn]
command = ["{PROGRAMS}/stubborn"]
stop = {{ signal = "SIGTERM", within = "3s" }}
"""


def case() -> str:
    with Unit(SETTINGS, CPUQuota="100%") as unit:
        wait_until_throttled(unit, "cpu")
        group = unit.group
        begun = time.monotonic()
        systemctl("stop", UNIT)
        took = time.monotonic() - begun
        # The stubborn one costs its three seconds; the emulated machine gets some for itself.
        expect(took < 12, f"the stop took {took:.1f} s")
        expect(unit.show("Result") == "success", f"the unit's result is {unit.show('Result')}")
        expect_no_process("hog")
        expect_no_process("stubborn")
        expect(not group.exists(), f"{group} is still there")
    return f"stopped after {took:.1f} s"


run(case)

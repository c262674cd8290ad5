#!/usr/bin/python3
"""The clock is set forward over a job's moment and back again: it runs once for each moment, and what the daemon holds stays held."""

import subprocess
import time
from typing import Any

from scenario import PROGRAMS, SCRATCH, expect, run, wait_for
from unit import UNIT, Unit, systemctl, wait_until_throttled

FOLDER = SCRATCH / "audio"
SETTINGS = f"""
[policy.cpu]
sustain = "1s"

[workers.hog]
command = ["{PROGRAMS}/hog", "100"]

[jobs.tidy]
kind = "files"
schedule = "0 3 * * *"
timezone = "UTC"
jitter = "0s"
paths = ["{FOLDER}"]
include = ["*.mp3"]
keep = "24h"
when_high = {{ wait = "0s", then = "run" }}
"""
DAY = 86_400


def set_clock(moment: float) -> None:
    subprocess.run(["date", "--utc", "--set", f"@{moment:.0f}"], check=True, capture_output=True)


def case() -> str:
    FOLDER.mkdir()
    file = FOLDER / "old.mp3"
    file.write_text("x")
    real = time.time()
    # Today at noon, so that nothing is due for hours.
    noon = real - real % DAY + DAY / 2
    # Of the day after tomorrow: the file is older than a day then, and its age cannot be set by hand.
    three = noon + 1.5 * DAY + 3 * 3600
    set_clock(noon)
    try:
        with Unit(SETTINGS, CPUQuota="50%", WatchdogSec="6") as unit:

            def runs() -> list[dict[str, Any]]:
                return [event for event in unit.events("job_finished") if event["job"] == "tidy"]

            wait_until_throttled(unit, "cpu")
            daemon = unit.show("MainPID")
            # Over tomorrow's moment, which is missed, to five seconds before the next.
            set_clock(three - 5)
            wait_for("the job ran", 60, runs)
            wait_for("its file is gone", 30, lambda: not file.exists())
            time.sleep(8)
            count = len(runs())
            expect(1 <= count <= 2, f"it ran {count} times: once for what was missed and once for what is due at the most")
            # Back to before it: that moment has had its run.
            set_clock(three - 20)
            time.sleep(30)
            expect(len(runs()) == count, f"a moment that comes a second time was run again: {len(runs())} runs, {count} before")
            expect(unit.resource("cpu")["throttled"], "what was held was let go")
            expect(unit.show("MainPID") == daemon and unit.show("NRestarts") == "0", "the watchdog took the step for a standstill")
    finally:
        set_clock(real + 120)
        subprocess.run(["systemctl", "reset-failed", UNIT], check=False)
    systemctl("daemon-reload")
    return f"{count} run(s) over a step of a day and a half, none more after the step back"


run(case)

#!/usr/bin/python3
"""Runs inside the test machine: installs the package, runs every case, prints the results.

A case may ask for the machine to lose its power; it is run once more after that, and the cases after it follow. What was done is in a
file on the machine's disk.

A case that fails while the machine stood still is run once more: an emulator that gets no processor for seconds shows nothing of what is
under test, and says so itself, by a thread that wakes up late.
"""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

from outcome import FAIL, REBOOT, Outcome, limit_of, run_case

TEST = Path("/opt/test")
# Under the limit the suite has per case, so that a late case is reported from in here, with its output.
CASE_LIMIT_SECONDS = 150
DONE = Path("/var/tmp/cases-done.json")
PACKAGE = TEST / "plimsoll.deb"
# Later than a case makes a thread that sleeps a quarter of a second.
STOOD_STILL_SECONDS = 2.0


class Pulse(threading.Thread):
    """Knows the longest time for which nobody in the machine got on."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.longest = 0.0

    def run(self) -> None:
        before = time.monotonic()
        while True:
            time.sleep(0.25)
            now = time.monotonic()
            self.longest = max(self.longest, now - before - 0.25)
            before = now


def main() -> None:
    # The first word from inside: by it a machine that does not start is told from a case that does not end.
    print("the machine is up", flush=True)
    if DONE.exists():
        done = json.loads(DONE.read_text())
    else:
        done = {"cases": [], "rebooted": None}
        install()
        subprocess.run(["systemctl", "stop", "plimsoll.service"], check=True)
    pulse = Pulse()
    pulse.start()
    environment = {"PYTHONPATH": str(TEST), "PYTHONDONTWRITEBYTECODE": "1"}
    for case in sorted((TEST / "cases").iterdir()):
        if case.stem in done["cases"]:
            continue
        scratch = Path("/var/tmp") / case.stem
        scratch.mkdir(exist_ok=True)
        starts = "2" if done["rebooted"] == case.stem else "1"
        limit = limit_of(case, CASE_LIMIT_SECONDS)

        def attempt() -> Outcome:
            outcome = run_case(case.stem, case, {**environment, "SCRATCH": str(scratch), "STARTS": starts}, limit)
            print(outcome.output, end="" if outcome.output.endswith("\n") else "\n")
            return outcome

        pulse.longest = 0.0
        outcome = attempt()
        print(f"{case.stem}: the machine stood still for {pulse.longest:.2f} s at the longest")
        if outcome.status == FAIL and starts == "1" and pulse.longest > STOOD_STILL_SECONDS:
            print(f"{outcome.detail}\n{case.stem} is tried once more")
            scratch.rename(scratch.with_suffix(".first"))
            scratch.mkdir()
            tidy(outcome)
            outcome = attempt()
        if outcome.status == REBOOT and starts == "1":
            DONE.write_text(json.dumps({**done, "rebooted": case.stem}))
            lose_power()
        if outcome.status == REBOOT:
            outcome = dataclasses.replace(outcome, status=FAIL, detail="it asks for a second reboot")
        if outcome.status == FAIL:
            journal = ["journalctl", "--no-pager", "--output=short-monotonic", "--unit=plimsoll.service", "--lines=60"]
            subprocess.run(journal, check=False)
        print(outcome.line(), flush=True)
        done["cases"].append(case.stem)
        tidy(outcome)


def tidy(outcome: Outcome) -> None:
    """A case that broke must not spoil the next one."""
    if outcome.status == FAIL:
        with contextlib.suppress(subprocess.CalledProcessError):
            # Whatever the case has made of the package.
            subprocess.run(["dpkg", "--purge", "plimsoll"], stdin=subprocess.DEVNULL, check=True)
            install()
    subprocess.run(["systemctl", "kill", "--signal=SIGKILL", "plimsoll.service"], check=False, capture_output=True)
    subprocess.run(["systemctl", "stop", "plimsoll.service"], check=False, capture_output=True)
    subprocess.run(["systemctl", "reset-failed"], check=False, capture_output=True)


def install() -> None:
    subprocess.run(["dpkg", "--install", PACKAGE], stdin=subprocess.DEVNULL, check=True)


def lose_power() -> None:
    """Resets the machine: no service ends in order, and only what was forced to the disk is there afterwards. Does not return."""
    print("the machine reboots", flush=True)
    # Of the cases' own files nothing is to be lost; the product forces its own to the disk.
    os.sync()
    Path("/proc/sys/kernel/sysrq").write_text("1")
    Path("/proc/sysrq-trigger").write_text("b")
    while True:
        signal.pause()


if __name__ == "__main__":
    os.chdir("/")
    main()

#!/usr/bin/python3
"""Runs inside the test machine: installs what is under test the way a package would, runs every case, prints the results."""

import os
import shutil
import subprocess
from pathlib import Path

from outcome import FAIL, run_case

TEST = Path("/opt/test")
# Under the limit the suite has per case, so that a late case is reported from in here, with its output.
CASE_LIMIT_SECONDS = 150


def main() -> None:
    # The first word from inside: by it a machine that does not start is told from a case that does not end.
    print("the machine is up", flush=True)
    shutil.copy(TEST / "plimsoll", "/usr/bin/plimsoll")
    shutil.copy(TEST / "plimsoll.service", "/etc/systemd/system/plimsoll.service")
    Path("/etc/plimsoll").mkdir(exist_ok=True)
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    environment = {"PYTHONPATH": str(TEST), "PYTHONDONTWRITEBYTECODE": "1"}
    for case in sorted((TEST / "cases").iterdir()):
        scratch = Path("/var/tmp") / case.stem
        scratch.mkdir()
        outcome = run_case(case.stem, case, {**environment, "SCRATCH": str(scratch)}, CASE_LIMIT_SECONDS)
        print(outcome.output, end="" if outcome.output.endswith("\n") else "\n")
        if outcome.status == FAIL:
            journal = ["journalctl", "--no-pager", "--output=short-monotonic", "--unit=plimsoll.service", "--lines=60"]
            subprocess.run(journal, check=False)
        print(outcome.line(), flush=True)
        # A case that broke must not spoil the next one.
        subprocess.run(["systemctl", "kill", "--signal=SIGKILL", "plimsoll.service"], check=False, capture_output=True)
        subprocess.run(["systemctl", "stop", "plimsoll.service"], check=False, capture_output=True)
        subprocess.run(["systemctl", "reset-failed"], check=False, capture_output=True)


if __name__ == "__main__":
    os.chdir("/")
    main()

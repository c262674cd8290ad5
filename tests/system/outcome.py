"""What a case came to, and how that is written on one line so that it passes through a serial port."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import time
from pathlib import Path

OK, FAIL, SKIP = "ok", "fail", "skip"
# The code automake's and Meson's test runners take for "could not run here".
SKIP_CODE = 77
# A case of the machine that goes on after a reboot.
REBOOT_CODE = 76
REBOOT = "reboot"


class Unavailable(Exception):
    """Something a whole suite needs is not on this machine; the text says what."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    name: str
    status: str
    seconds: float
    # One line: why it failed or was skipped, or what an ok case measured.
    detail: str
    # All a case printed; shown when it failed.
    output: str = ""

    def line(self) -> str:
        return f"RESULT {self.name} {self.status} {self.seconds:.1f} {self.detail}".rstrip()

    @staticmethod
    def parse(line: str) -> Outcome | None:
        """The outcome on `line`, or None where the line is something else a console printed."""
        words = line.strip().split(" ", 4)
        if len(words) < 4 or words[0] != "RESULT" or words[2] not in (OK, FAIL, SKIP):
            return None
        try:
            seconds = float(words[3])
        except ValueError:
            return None
        return Outcome(words[1], words[2], seconds, words[4] if len(words) == 5 else "")


def limit_of(case: Path, usual: float) -> float:
    """How long a case may take: what it says of itself (`LIMIT_SECONDS = …`), else the usual time."""
    said = re.search(r"^LIMIT_SECONDS = (\d+)$", case.read_text(), re.MULTILINE)
    return float(said[1]) if said else usual


def run_case(name: str, program: Path, environment: dict[str, str], limit_seconds: float) -> Outcome:
    """Runs one case in a session of its own, so that whatever it started can be ended with it."""
    started = time.monotonic()
    child = subprocess.Popen(
        [str(program)],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    late = False
    try:
        output, _ = child.communicate(timeout=limit_seconds)
    except subprocess.TimeoutExpired:
        late = True
        output = end_case(child)
    except BaseException:
        end_case(child)
        raise
    seconds = time.monotonic() - started
    said = [line for line in output.splitlines() if line.strip()]
    detail = said[-1] if said else ""
    if late:
        return Outcome(name, FAIL, seconds, f"not over after {limit_seconds:.0f} s; {detail}", output)
    status = {0: OK, SKIP_CODE: SKIP, REBOOT_CODE: REBOOT}.get(child.returncode, FAIL)
    if status == FAIL:
        detail = f"{detail} (exit code {child.returncode})"
    return Outcome(name, status, seconds, detail, output)


def end_case(child: subprocess.Popen[str]) -> str:
    """Ends a case that is not over; what it printed."""
    # First a chance to clean up after itself: Python runs its `finally` blocks on SIGINT.
    os.killpg(child.pid, signal.SIGINT)
    try:
        output, _ = child.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        output, _ = child.communicate()
    return output

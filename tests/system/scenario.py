"""The words cases are written in: expect, wait for a condition, read what the daemon shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

from outcome import REBOOT_CODE, SKIP_CODE

T = TypeVar("T")

PLIMSOLL = Path(os.environ.get("PLIMSOLL", "/usr/bin/plimsoll"))
PROGRAMS = Path(os.environ.get("PROGRAMS", "/opt/test/programs"))
# A folder of the case's own, kept with the run's artefacts.
SCRATCH = Path(os.environ.get("SCRATCH", "/tmp"))
# How often the machine was up for the case: 2 in what follows a `Reboot`.
STARTS = int(os.environ.get("STARTS", "1"))


class Failed(Exception):
    """The product did not do what the case expects."""


class Reboot(Exception):
    """The machine loses its power, and the case is run again from its beginning; STARTS tells it which time it is."""


class Skipped(Exception):
    """This case cannot run here; the text says why."""


def expect(condition: object, message: str) -> None:
    if not condition:
        raise Failed(message)


def output(*command: str | Path, env: dict[str, str] | None = None, limit_seconds: float | None = None) -> str:
    """What a command prints that is to end with 0."""
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=limit_seconds)
    expect(done.returncode == 0, f"{' '.join(map(str, command))} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


def expect_near(what: str, value: float, wanted: float, tolerance: float) -> None:
    expect(abs(value - wanted) <= tolerance, f"{what} is {value:.4g}, expected {wanted:.4g} ± {tolerance:.4g}")
    print(f"{what}: {value:.4g} (expected {wanted:.4g} ± {tolerance:.4g})")


def wait_for(what: str, limit_seconds: float, probe: Callable[[], T | None], every: float = 0.2) -> T:
    """The first true value `probe` gives; an error of the system or a missing value counts as 'not yet'."""
    deadline = time.monotonic() + limit_seconds
    last: object = None
    while True:
        try:
            last = value = probe()
            if value:
                return value
        except (OSError, LookupError, ValueError) as error:
            last = error
        if time.monotonic() >= deadline:
            raise Failed(f"waited {limit_seconds:.0f} s in vain until {what}; last seen: {last!r}")
        time.sleep(every)


def run(case: Callable[[], str | None]) -> NoReturn:
    """Runs a case and ends the process the way the runner reads it: the last line printed is the detail."""
    try:
        detail = case()
    except Failed as failure:
        end(1, f"failed: {failure}")
    except Reboot:
        end(REBOOT_CODE, "the machine loses its power")
    except Skipped as reason:
        end(SKIP_CODE, str(reason))
    except Exception as error:
        traceback.print_exc(file=sys.stdout)
        end(1, f"the case itself broke: {type(error).__name__}: {error}")
    end(0, detail or "")


def end(code: int, detail: str) -> NoReturn:
    print(" ".join(detail.split()))
    sys.exit(code)


class Metrics:
    """A page in the Prometheus text format."""

    SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
    LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')

    def __init__(self, page: str) -> None:
        self.samples: list[tuple[str, dict[str, str], float]] = []
        for line in page.splitlines():
            if found := self.SAMPLE.match(line):
                labels = dict(self.LABEL.findall(found["labels"] or ""))
                self.samples.append((found["name"], labels, float(found["value"])))

    def values(self, name: str, **labels: str) -> list[float]:
        return [
            value
            for sample, has, value in self.samples
            if sample == name and all(has.get(label) == wanted for label, wanted in labels.items())
        ]

    def value(self, name: str, **labels: str) -> float:
        """The one sample of that name and those labels; LookupError where there is none or more than one."""
        found = self.values(name, **labels)
        if len(found) != 1:
            raise LookupError(f"{len(found)} samples of {name}{labels or ''}")
        return found[0]

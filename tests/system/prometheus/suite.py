"""The suite with the real Prometheus and its promtool: they read the page, scrape the daemon and check the shipped rules."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from outcome import Outcome, Unavailable, run_case

HERE = Path(__file__).resolve().parent
CASE_LIMIT_SECONDS = 90


def run(binary: Path, programs: Path, cases: list[Path], cache: Path, artefacts: Path) -> Iterator[Outcome]:
    for tool in ("prometheus", "promtool"):
        if shutil.which(tool) is None:
            raise Unavailable(f"{tool} is not installed")
    environment = {
        "PLIMSOLL": str(binary),
        "PROGRAMS": str(programs),
        "PYTHONPATH": f"{HERE.parent}:{HERE}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    for case in cases:
        scratch = artefacts / case.stem
        scratch.mkdir()
        yield run_case(case.stem, case, {**environment, "SCRATCH": str(scratch)}, CASE_LIMIT_SECONDS)

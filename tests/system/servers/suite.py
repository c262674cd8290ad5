"""The suite with real servers from the package index: uvicorn and gunicorn as people run them, under load and under attack.

They are installed once into `target/system-cache/servers-…`, a folder named for the list of versions, and used from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from outcome import Outcome, run_case
from packages import installed

HERE = Path(__file__).resolve().parent
CASE_LIMIT_SECONDS = 480
VERSIONS = [
    "uvicorn==0.54.0",
    "gunicorn==27.0.1",
    "uvicorn-worker==0.4.0",
    "h11==0.16.0",
    "click==8.5.1",
]


def run(binary: Path, programs: Path, cases: list[Path], cache: Path, artefacts: Path) -> Iterator[Outcome]:
    environment = {
        "PLIMSOLL": str(binary),
        "PROGRAMS": str(programs),
        "SERVERS": str(installed(cache, "servers", VERSIONS) / "bin"),
        "PYTHONPATH": f"{HERE.parent}:{HERE}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    for case in cases:
        scratch = artefacts / case.stem
        scratch.mkdir()
        yield run_case(case.stem, case, {**environment, "SCRATCH": str(scratch)}, CASE_LIMIT_SECONDS)

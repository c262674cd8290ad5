"""The suite with real servers from the package index: uvicorn and gunicorn as people run them, under load and under attack.

They are installed once into `target/system-cache/servers-…`, a folder named for the list of versions, and used from there.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from outcome import Outcome, Unavailable, run_case

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
        "SERVERS": str(installed(cache) / "bin"),
        "PYTHONPATH": f"{HERE.parent}:{HERE}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    for case in cases:
        scratch = artefacts / case.stem
        scratch.mkdir()
        yield run_case(case.stem, case, {**environment, "SCRATCH": str(scratch)}, CASE_LIMIT_SECONDS)


def installed(cache: Path) -> Path:
    """The virtual environment with exactly these versions, made if it is not there yet."""
    key = hashlib.sha256("\n".join([sys.version, *VERSIONS]).encode()).hexdigest()[:12]
    folder = cache / f"servers-{key}"
    if (folder / "complete").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    for command in (
        [sys.executable, "-m", "venv", folder],
        [folder / "bin/pip", "install", "--quiet", "--disable-pip-version-check", *VERSIONS],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise Unavailable(f"the servers could not be installed: {''.join(last)}")
    (folder / "complete").touch()
    return folder

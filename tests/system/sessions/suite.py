"""The suite with the real LangGraph checkpointer from the package index: databases as it writes them, read by itself afterwards.

Each pair of versions is installed once into `target/system-cache/sessions-…`, a folder named for its list, and used from there.
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
CASE_LIMIT_SECONDS = 300
# The oldest that people still run, and one that writes `task_path`.
VERSIONS = {
    "LANGGRAPH_OLD": ["langgraph==0.6.11", "langgraph-checkpoint-sqlite==2.0.11"],
    "LANGGRAPH_NEW": ["langgraph==1.2.22", "langgraph-checkpoint-sqlite==3.1.2"],
}


def run(binary: Path, programs: Path, cases: list[Path], cache: Path, artefacts: Path) -> Iterator[Outcome]:
    environment = {
        "PLIMSOLL": str(binary),
        "PROGRAMS": str(programs),
        **{name: str(installed(cache, versions) / "bin/python") for name, versions in VERSIONS.items()},
        "PYTHONPATH": f"{HERE.parent}:{HERE}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    for case in cases:
        scratch = artefacts / case.stem
        scratch.mkdir()
        yield run_case(case.stem, case, {**environment, "SCRATCH": str(scratch)}, CASE_LIMIT_SECONDS)


def installed(cache: Path, versions: list[str]) -> Path:
    """The virtual environment with exactly these versions, made if it is not there yet."""
    key = hashlib.sha256("\n".join([sys.version, *versions]).encode()).hexdigest()[:12]
    folder = cache / f"sessions-{key}"
    if (folder / "complete").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    for command in (
        [sys.executable, "-m", "venv", folder],
        [folder / "bin/pip", "install", "--quiet", "--disable-pip-version-check", *versions],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise Unavailable(f"the checkpointer could not be installed: {''.join(last)}")
    (folder / "complete").touch()
    return folder

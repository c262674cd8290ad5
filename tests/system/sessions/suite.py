"""The suite with the real LangGraph checkpointer from the package index: databases as it writes them, read by itself afterwards.

Each pair of versions is installed once into `target/system-cache/sessions-…`, a folder named for its list, and used from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from outcome import Outcome, run_case
from packages import installed

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
        **{name: str(installed(cache, "sessions", versions) / "bin/python") for name, versions in VERSIONS.items()},
        "PYTHONPATH": f"{HERE.parent}:{HERE}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    for case in cases:
        scratch = artefacts / case.stem
        scratch.mkdir()
        yield run_case(case.stem, case, {**environment, "SCRATCH": str(scratch)}, CASE_LIMIT_SECONDS)

"""Packages from the index of Python, each list of versions in a virtual environment of its own."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from outcome import Unavailable


def installed(cache: Path, name: str, versions: list[str]) -> Path:
    """The virtual environment with exactly these versions: a folder of `cache` named for them, made if it is not there yet."""
    key = hashlib.sha256("\n".join([sys.version, *versions]).encode()).hexdigest()[:12]
    folder = cache / f"{name}-{key}"
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
            raise Unavailable(f"{', '.join(versions)} could not be installed: {''.join(last)}")
    (folder / "complete").touch()
    return folder

"""A database of the real library, a cleanup of it, and what the library says afterwards."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

from scenario import PLIMSOLL, SCRATCH, expect

APP = Path(__file__).resolve().parent / "apps/app.py"
VERSIONS = {"old": Path(os.environ.get("LANGGRAPH_OLD", "")), "new": Path(os.environ.get("LANGGRAPH_NEW", ""))}

MEMORY = """
CREATE TABLE IF NOT EXISTS store (prefix text NOT NULL, key text NOT NULL, value text NOT NULL, PRIMARY KEY (prefix, key));
INSERT INTO store VALUES ('old-plain-0', 'likes', 'tea'), ('young-plain-0', 'likes', 'coffee');
"""


class Database:
    """One database in a folder of its own, written by one version of the library."""

    def __init__(self, version: str) -> None:
        self.python = VERSIONS[version]
        self.folder = SCRATCH / version
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / "memory.db"
        self.expected = self.folder / "expected.json"

    def app(self, verb: str) -> str:
        done = subprocess.run([self.python, APP, verb, self.path, self.expected], capture_output=True, text=True, check=False)
        expect(done.returncode == 0, f"the application failed to {verb}: {done.stderr[-2000:]}")
        return done.stdout

    def fill(self) -> dict[str, Any]:
        self.app("fill")
        with sqlite3.connect(self.path) as connection:
            connection.executescript(MEMORY)
        connection.close()
        return json.loads(self.expected.read_text())

    def write(self) -> subprocess.Popen[str]:
        """The application at work, until its input is closed."""
        writer = subprocess.Popen(
            [self.python, APP, "write", self.path, self.expected],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout is not None
        expect(writer.stdout.readline() == "writing\n", "the application did not begin to write")
        return writer

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(self.path)
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()

    def settings(self, more: str = "") -> Path:
        path = self.folder / "plimsoll.toml"
        path.write_text(
            f"""
[daemon]
state_dir = "{self.folder / "state"}"
runtime_dir = "{self.folder / "runtime"}"

[jobs.session-cleanup]
kind = "sessions"
database = "{self.path}"
keep = "7d"
second_look = "1s"
{more}
"""
        )
        return path

    def clean_up(self, *arguments: str, more: str = "") -> subprocess.CompletedProcess[str]:
        command = [PLIMSOLL, "jobs", "run", "session-cleanup", *arguments, "-c", self.settings(more)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def restore(self, session: str, more: str) -> subprocess.CompletedProcess[str]:
        command = [PLIMSOLL, "jobs", "restore-session", session, "-c", self.settings(more)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

#!/usr/bin/python3
"""Another /usr/bin/plimsoll under the shipped unit is become by `systemctl reload` and by itself, with the same processes and no request lost; a broken one is refused."""

import http.client
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

from scenario import PLIMSOLL, SCRATCH, expect, run, wait_for
from unit import UNIT, Unit

ADDRESS = ("127.0.0.1", 8080)

# Answers everybody on the socket the daemon listens on.
SERVER = """
import socket
listener = socket.socket(fileno=3)
while True:
    peer, _ = listener.accept()
    peer.recv(4096)
    peer.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\nok")
    peer.close()
"""

SETTINGS = f"""
[workers.web]
command = ["{sys.executable}", "{SCRATCH}/server.py"]
listen = ["{ADDRESS[0]}:{ADDRESS[1]}"]
replicas = 2
"""


class Load(threading.Thread):
    """Asks one request after the other until it is told to stop."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.answered, self.failed, self.over = 0, [], False

    def run(self) -> None:
        while not self.over:
            try:
                connection = http.client.HTTPConnection(*ADDRESS, timeout=20)
                connection.request("GET", "/")
                expect(connection.getresponse().read() == b"ok", "another answer")
                connection.close()
                self.answered += 1
            except OSError as error:
                self.failed.append(repr(error))


def replace(content: bytes) -> int:
    """Puts another file in the place of the program as a package manager does; its inode."""
    beside = PLIMSOLL.with_name("plimsoll.new")
    beside.write_bytes(content)
    beside.chmod(0o755)
    inode = beside.stat().st_ino
    beside.rename(PLIMSOLL)
    return inode


def runs(pid: str) -> int:
    return os.stat(f"/proc/{pid}/exe").st_ino


def reload() -> subprocess.CompletedProcess:
    return subprocess.run(["systemctl", "reload", UNIT], capture_output=True, text=True, check=False)


def case() -> str:
    Path(SCRATCH, "server.py").write_text(SERVER)
    original = PLIMSOLL.read_bytes()
    kept = Path(SCRATCH, "plimsoll")
    shutil.copy(PLIMSOLL, kept)
    try:
        with Unit(SETTINGS) as unit:
            main, workers = unit.show("MainPID"), sorted(unit.pids())
            load = Load()
            load.start()

            def is_the_same(inode: int) -> None:
                expect(unit.show("MainPID") == main, "another main process")
                # The program under test may be broken now, and cannot ask.
                asked = subprocess.run([str(kept), "status", "--json"], capture_output=True, text=True, check=True)
                now = sorted(r["pid"] for w in json.loads(asked.stdout)["workers"] for r in w["replicas"])
                expect(now == workers, f"workers were {workers} and are {now}")
                expect((unit.show("ActiveState"), unit.show("NRestarts")) == ("active", "0"), "the unit was restarted")
                expect(runs(main) == inode, f"{main} runs inode {runs(main)}, not {inode}")

            inode = replace(original + b"\0" * 10)
            done = reload()
            expect(done.returncode == 0, f"reload ended with {done.returncode}: {done.stderr}")
            wait_for("the unit runs the new program", 30, lambda: runs(main) == inode)
            wait_for("it has told so", 30, lambda: len(unit.events("upgraded")) == 1)
            is_the_same(inode)

            inode = replace(original + b"\0" * 20)
            begun = time.monotonic()
            wait_for("it is noticed", 60, lambda: runs(main) == inode)
            noticed = time.monotonic() - begun
            upgraded = wait_for("it has told so", 30, lambda: [e for e in [unit.events("upgraded")] if len(e) == 2])[0]
            wait_for("every worker runs", 30, unit.workers_run)
            is_the_same(inode)

            for broken in (b"#!/bin/sh\nexit 1\n", original[: len(original) // 2], b"#!/bin/sh\nexit 0\n"):
                replace(broken)
                # By the running program: the one that was replaced cannot ask any more. The daemon refuses.
                asked = subprocess.run([str(kept), "reload"], capture_output=True, text=True, check=False)
                expect(asked.returncode == 1, f"reload of a broken program ended with {asked.returncode}: {asked.stdout}{asked.stderr}")
                is_the_same(inode)
                if b"exit 0" not in broken:
                    expect(reload().returncode != 0, "systemctl reload of a broken program succeeded")
                    is_the_same(inode)
            expect(not Path(f"/proc/{main}/exe").samefile(PLIMSOLL), "the broken program runs")

            inode = replace(original)
            expect(reload().returncode == 0, "reload of a program that is whole again failed")
            wait_for("the unit runs it", 30, lambda: runs(main) == inode)
            wait_for("it has told so", 30, lambda: len(unit.events("upgraded")) == 3)
            wait_for("every worker runs", 30, unit.workers_run)
            is_the_same(inode)
            load.over = True
            load.join(30)
            expect(not load.failed and load.answered > 50, f"{load.answered} answered, {len(load.failed)} failed: {load.failed[:3]}")
            unguarded = [float(event["unguarded_seconds"]) for event in upgraded]
    finally:
        replace(original)
    return f"{load.answered} requests answered, noticed after {noticed:.0f} s, unguarded for {max(unguarded) * 1000:.0f} ms at most"


run(case)

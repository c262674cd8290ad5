"""A daemon with real servers, seen from outside: what it is told by its own commands, who is alive by /proc, its record by its log."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from scenario import PLIMSOLL, SCRATCH, Failed, expect, wait_for

SERVERS = Path(os.environ.get("SERVERS", "/usr/bin"))
APPS = Path(__file__).resolve().parent / "apps"
# Marks every process of a case. It does not begin with PLIMSOLL_, so that workers inherit it.
MARK = "STAGE"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def marked(value: str, name: str = MARK) -> list[int]:
    """Living processes whose environment carries the mark with this value."""
    wanted = f"{name}={value}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError):
            # One that is a zombie has no environment any more.
            if wanted in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                found.append(int(entry))
    return found


def describe(pids: list[int]) -> str:
    lines = []
    for pid in pids:
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            lines.append(f"{pid} (state {fields[0]}, parent {fields[1]}, session {fields[3]}): {command[:100]}")
    return "; ".join(lines)


# The text, or what makes it of the stage's mark.
Settings = str | Callable[[str], str]


class Stage:
    """Folders, settings, and every daemon that was started on them."""

    def __init__(self, settings: Settings) -> None:
        # A socket's path may have 107 bytes, fewer than a checkout's may have.
        self.runtime = Path(tempfile.mkdtemp(prefix="plimsoll-servers-"))
        self.mark = str(self.runtime)
        self.address = f"127.0.0.1:{free_port()}"
        self.config = SCRATCH / "plimsoll.toml"
        self.config.write_text(
            f"""\
[daemon]
state_dir = "{SCRATCH}/state"
runtime_dir = "{self.runtime}"
[log]
format = "json"
[http]
listen = ["{self.address}"]
# Only asked for: what else this machine does must not begin a throttle or a recycle in the middle of a case.
[policy]
dry_run = true
{settings if isinstance(settings, str) else settings(self.mark)}"""
        )
        (SCRATCH / "state").mkdir(exist_ok=True)
        self.daemon: subprocess.Popen[bytes] | None = None
        self.logs: list[Path] = []
        self.pids: list[int] = []

    def start(self) -> None:
        self.logs.append(SCRATCH / f"plimsoll.{len(self.logs)}.log")
        with self.logs[-1].open("w") as log:
            # What workers print goes where the daemon's own goes: to a file, so that nobody is kept waiting by a pipe.
            self.daemon = subprocess.Popen(
                [PLIMSOLL, "run", "-c", self.config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, MARK: self.mark, "PYTHONPATH": str(APPS)},
            )
        self.pids.append(self.daemon.pid)

    @property
    def pid(self) -> int:
        assert self.daemon is not None, "the daemon was started"
        return self.daemon.pid

    def kill(self) -> None:
        """The daemon dies without a word."""
        assert self.daemon is not None, "the daemon was started"
        self.daemon.kill()
        expect(self.daemon.wait() == -signal.SIGKILL, f"the daemon had ended with {self.daemon.returncode}")
        self.daemon = None

    def stop(self) -> None:
        assert self.daemon is not None, "the daemon was started"
        self.daemon.terminate()
        try:
            code = self.daemon.wait(timeout=60)
        except subprocess.TimeoutExpired:
            raise Failed("the daemon was told to end and had not after 60 s") from None
        self.daemon = None
        expect(code == 0, f"the daemon ended with {code}")

    def must_run(self) -> None:
        expect(self.daemon is not None and self.daemon.poll() is None, "the daemon has ended")

    def ask(self, *words: str, limit_seconds: float = 120) -> subprocess.CompletedProcess[str]:
        """One of the daemon's own commands, as an operator types it."""
        command = [PLIMSOLL, *words, "-c", self.config]
        try:
            return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit_seconds, check=False)
        except subprocess.TimeoutExpired:
            raise Failed(f"`plimsoll {' '.join(words)}` was not over after {limit_seconds:.0f} s") from None

    def do(self, *words: str, limit_seconds: float = 120) -> str:
        """The same, where it must succeed."""
        done = self.ask(*words, limit_seconds=limit_seconds)
        said = (done.stdout + done.stderr).strip()
        expect(done.returncode == 0, f"`plimsoll {' '.join(words)}` ended with {done.returncode}: {said}")
        return said

    def request(self, method: str, path: str, limit_seconds: float = 60) -> tuple[int, str]:
        """One request on the control address, without the price of a process."""
        host, port = self.address.split(":")
        with socket.create_connection((host, int(port)), timeout=limit_seconds) as stream:
            stream.sendall(f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            answer = b""
            while block := stream.recv(65536):
                answer += block
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), body.decode()

    def replicas(self, worker: str) -> list[dict[str, Any]]:
        _, body = self.request("GET", "/admin/resources/stats")
        found = [state for state in json.loads(body)["workers"] if state["name"] == worker]
        return found[0]["replicas"] if found else []

    def serving(self, worker: str) -> list[int]:
        """The pids of those that are up and ready."""
        up = ("ready", "running", "throttled")
        return [replica["pid"] for replica in self.replicas(worker) if replica["state"] in up and replica.get("pid")]

    def wait_until_answering(self, limit_seconds: float = 30) -> None:
        def answers() -> bool:
            self.must_run()
            return self.request("GET", "/healthz")[0] in (200, 503)

        wait_for("the daemon answers", limit_seconds, answers, every=0.02)

    def wait_until_serving(self, worker: str, count: int, limit_seconds: float = 60) -> list[int]:
        def served() -> list[int] | None:
            self.must_run()
            there = self.serving(worker)
            return there if len(there) == count == len(self.replicas(worker)) else None

        return wait_for(f"{count} of {worker} serve and nobody else is there", limit_seconds, served, every=0.05)

    def events(self, name: str, which: int = -1) -> list[dict[str, Any]]:
        """What one of the daemons (the latest, unless another is meant) has told under this name."""
        found = []
        for line in self.logs[which].read_text(errors="replace").splitlines():
            if f'"{name}"' in line:
                with contextlib.suppress(ValueError):
                    event = json.loads(line)
                    if event.get("event") == name:
                        found.append(event)
        return found

    def population(self) -> list[int]:
        """Everybody who lives and was started on this stage, but for the daemon and its own helpers."""
        own = {self.daemon.pid} if self.daemon else set()
        return [pid for pid in marked(self.mark) if pid not in own and not is_helper(pid)]

    def wait_until_alone(self, worker: str, count: int, limit_seconds: float = 60) -> list[int]:
        """So many serve, and whoever else lives is not of this stage. What the daemon shows may be a tenth of a second old."""

        def alone() -> list[int] | None:
            self.must_run()
            serving, there = self.serving(worker), self.population()
            return serving if len(serving) == count and sorted(serving) == sorted(there) else None

        try:
            return wait_for(f"{count} of {worker} serve and nobody else lives", limit_seconds, alone, every=0.05)
        except Failed as failure:
            there = self.population()
            raise Failed(f"{failure}; {self.replicas(worker)} are shown; there are {describe(there)}") from None

    def expect_nobody(self, when: str, limit_seconds: float = 1) -> None:
        deadline = time.monotonic() + limit_seconds
        while left := self.population():
            if time.monotonic() > deadline:
                raise Failed(f"{when}, {len(left)} live on: {describe(left)}")
            time.sleep(0.02)

    def close(self) -> None:
        if self.daemon is not None:
            self.daemon.terminate()
            try:
                self.daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.daemon.kill()
                self.daemon.wait()
        deadline = time.monotonic() + 10
        while (left := marked(self.mark)) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        shutil.rmtree(self.runtime, ignore_errors=True)
        # Of daemons that were killed and had no successor.
        wanted = {f"plimsoll-{pid}" for pid in self.pids}
        # Not a glob: that breaks off where another daemon removes its groups meanwhile.
        for folder, _, _ in os.walk("/sys/fs/cgroup", topdown=False):
            if wanted & set(Path(folder).parts):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)


def is_helper(pid: int) -> bool:
    """The daemon's own companions are the same program."""
    try:
        return os.readlink(f"/proc/{pid}/exe") == str(PLIMSOLL)
    except OSError:
        return True


@contextlib.contextmanager
def stage(settings: Settings) -> Iterator[Stage]:
    """A stage with its daemon running; nothing of it is left behind, and its log is shown when the block fails."""
    made = Stage(settings)
    try:
        made.start()
        made.wait_until_answering()
        yield made
    except BaseException:
        if made.daemon is not None and (code := made.daemon.poll()) is not None:
            print(f"the daemon had ended by itself with {code}")
        for log in made.logs:
            lines = log.read_text(errors="replace").splitlines()
            print(f"-- the last of {log.name} ({len(lines)} lines):\n" + "\n".join(lines[-60:]))
        raise
    finally:
        made.close()


def quantile(values: list[float], share: float) -> float:
    """The value that this share of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

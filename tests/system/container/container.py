"""One container of a case, seen from inside through the daemon's own commands and from outside through the kernel."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scenario import Metrics, expect, output, wait_for

# What ships; with the test workers added; a Python application that has the daemon in front of it.
SHIPPED = "plimsoll:test"
IMAGE = "workers:test"
APPLICATION = "application:test"
ASK = Path(__file__).resolve().parent / "apps/ask.py"
CGROUPS = Path("/sys/fs/cgroup")
PAGE = "http://127.0.0.1:18760/metrics"
READ_PAGE = f"import urllib.request; print(urllib.request.urlopen({PAGE!r}, timeout=5).read().decode())"
# The limits of a small instance: the ones design and seeds speak of.
SMALL = ("--memory=256m", "--cpus=0.5")


def docker(*arguments: str, limit_seconds: float = 60) -> str:
    return output("docker", *arguments, limit_seconds=limit_seconds).strip()


class Container:
    def __init__(self, *arguments: str, options: tuple[str, ...] = SMALL, image: str = IMAGE) -> None:
        """`arguments` follow the image's name: flags of `plimsoll run`, then `--` and the worker's command."""
        self.id = docker("run", "--detach", "--network=none", *options, image, *arguments)

    def __enter__(self) -> Container:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            print(self.logs())
        subprocess.run(["docker", "rm", "--force", self.id], check=False, capture_output=True)

    def inspect(self, field: str) -> str:
        return docker("inspect", "--format", f"{{{{.{field}}}}}", self.id)

    def expect_running(self) -> None:
        """A container that has ended will not do anything any more: waiting on is pointless."""
        expect(self.inspect("State.Running") == "true", f"the container ended with {self.inspect('State.ExitCode')}")

    @property
    def pid(self) -> int:
        """Of its process 1, in the machine's numbering."""
        self.expect_running()
        return int(self.inspect("State.Pid"))

    def wait(self, limit_seconds: float = 60) -> int:
        """Its exit code."""
        return int(docker("wait", self.id, limit_seconds=limit_seconds))

    def logs(self) -> str:
        done = subprocess.run(["docker", "logs", self.id], capture_output=True, text=True, errors="replace", check=False)
        return done.stdout + done.stderr

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs a command of ours in it, beside whatever else runs there."""
        self.expect_running()
        return subprocess.run(
            ["docker", "exec", self.id, "/usr/bin/plimsoll", *words], capture_output=True, text=True, check=False, timeout=60
        )

    def status(self) -> dict[str, Any]:
        done = self.command("status", "--json")
        if done.returncode != 0:
            raise OSError(f"plimsoll status ended with {done.returncode}: {done.stdout.strip()} {done.stderr.strip()}")
        return json.loads(done.stdout)

    def resource(self, name: str) -> dict[str, Any]:
        return next(r for r in self.status()["policy"]["resources"] if r["resource"] == name)

    def metrics(self) -> Metrics:
        """Read in the container's network, which nothing outside reaches."""
        done = subprocess.run(
            [*self.within_network(), "-c", READ_PAGE],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise OSError(f"no metrics page: {done.stderr.strip().splitlines()[-1:]}")
        return Metrics(done.stdout)

    def within_network(self) -> list[str]:
        """What a command is to begin with so that it runs in the container's network and otherwise outside."""
        return ["nsenter", f"--target={self.pid}", "--net", sys.executable]

    def ask(self, path: str) -> str:
        """What the application answers."""
        done = subprocess.run(
            [*self.within_network(), ASK, "once", f"http://127.0.0.1:8000{path}"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise OSError(f"no answer to {path}: {done.stderr.strip().splitlines()[-1:]}")
        return done.stdout.strip()

    @contextlib.contextmanager
    def load(self, path: str, threads: int) -> Iterator[None]:
        """Requests to the application without a pause, as long as the block lasts."""
        client = subprocess.Popen([*self.within_network(), ASK, "often", str(threads), f"http://127.0.0.1:8000{path}"])
        try:
            yield
        finally:
            client.kill()
            client.wait()

    def wait_until_up(self) -> None:
        wait_for("the metrics page answers", 30, self.metrics)

    def wait_until_throttled(self, resource: str) -> None:
        wait_for(f"{resource} is throttled", 60, lambda: self.resource(resource)["throttled"], every=0.5)

    def cpu_seconds(self) -> float:
        """All CPU time of the container so far, by the kernel's count."""
        group = self.group("cpuacct")
        if (group / "cpuacct.usage").exists():
            return int((group / "cpuacct.usage").read_text()) / 1e9
        return int((group / "cpu.stat").read_text().split()[1]) / 1e6

    def cores_used(self, seconds: float) -> float:
        begun, before = time.monotonic(), self.cpu_seconds()
        time.sleep(seconds)
        return (self.cpu_seconds() - before) / (time.monotonic() - begun)

    def memory_limit(self) -> int:
        group = self.group("memory")
        v1 = group / "memory.limit_in_bytes"
        return int((v1 if v1.exists() else group / "memory.max").read_text())

    def oom_kills(self) -> int:
        """How many of its processes the kernel has killed for want of memory."""
        group = self.group("memory")
        v1 = group / "memory.oom_control"
        lines = (v1 if v1.exists() else group / "memory.events").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))

    def group(self, controller: str) -> Path:
        """The control group of its process 1 for that controller: of v1 where there is one, else of v2."""
        unified = CGROUPS
        for line in Path(f"/proc/{self.pid}/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(","):
                return CGROUPS / controller / path.lstrip("/")
            if not controllers:
                unified = CGROUPS / path.lstrip("/")
        return unified

    def processes(self) -> dict[int, tuple[str, str]]:
        """Name and state letter of every process in it, by the machine's pid."""
        found = {}
        for pid in (self.group("pids") / "cgroup.procs").read_text().split():
            try:
                name, rest = Path(f"/proc/{pid}/stat").read_text().split("(", 1)[1].rsplit(")", 1)
            except OSError:
                continue
            found[int(pid)] = (name, rest.split()[0])
        return found

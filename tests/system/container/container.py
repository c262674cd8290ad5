"""One container of a case, seen from inside through the daemon's own commands and from outside through the kernel."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from scenario import Failed, Metrics, expect, wait_for

IMAGE = "workers:test"
CGROUPS = Path("/sys/fs/cgroup")
PAGE = "http://127.0.0.1:18760/metrics"
READ_PAGE = f"import urllib.request; print(urllib.request.urlopen({PAGE!r}, timeout=5).read().decode())"
# The limits of a small instance: the ones design and seeds speak of.
SMALL = ("--memory=256m", "--cpus=0.5")


def docker(*arguments: str, limit_seconds: float = 60) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False, timeout=limit_seconds)
    if done.returncode != 0:
        raise Failed(f"docker {' '.join(arguments)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout.strip()


class Container:
    def __init__(self, *arguments: str, options: tuple[str, ...] = SMALL) -> None:
        """`arguments` follow the image's name: flags of `plimsoll run`, then `--` and the worker's command."""
        self.id = docker("run", "--detach", "--network=none", *options, IMAGE, *arguments)

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

    def status(self) -> dict[str, Any]:
        self.expect_running()
        done = subprocess.run(
            ["docker", "exec", self.id, "/usr/bin/plimsoll", "status", "--json"], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise OSError(f"plimsoll status ended with {done.returncode}: {done.stdout.strip()} {done.stderr.strip()}")
        return json.loads(done.stdout)

    def resource(self, name: str) -> dict[str, Any]:
        return next(r for r in self.status()["policy"]["resources"] if r["resource"] == name)

    def metrics(self) -> Metrics:
        """Read in the container's network, which nothing outside reaches."""
        done = subprocess.run(
            ["nsenter", f"--target={self.pid}", "--net", sys.executable, "-c", READ_PAGE],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise OSError(f"no metrics page: {done.stderr.strip().splitlines()[-1:]}")
        return Metrics(done.stdout)

    def wait_until_up(self) -> None:
        wait_for("the metrics page answers", 30, self.metrics)

    def wait_until_throttled(self, resource: str) -> None:
        wait_for(f"{resource} is throttled", 60, lambda: self.resource(resource)["throttled"], every=0.5)

    def cpu_seconds(self) -> float:
        """All CPU time of the container so far, by the kernel's count."""
        v1, v2 = self.group("cpuacct") / "cpuacct.usage", self.group("") / "cpu.stat"
        if v1.exists():
            return int(v1.read_text()) / 1e9
        return int(v2.read_text().split()[1]) / 1e6

    def cores_used(self, seconds: float) -> float:
        begun, before = time.monotonic(), self.cpu_seconds()
        time.sleep(seconds)
        return (self.cpu_seconds() - before) / (time.monotonic() - begun)

    def group(self, controller: str) -> Path:
        """The control group of its process 1 for that v1 controller, or the v2 one where `controller` is empty."""
        for line in Path(f"/proc/{self.pid}/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(","):
                return CGROUPS / controller / path.lstrip("/")
        return CGROUPS

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

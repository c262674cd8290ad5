"""plimsoll.service as shipped, with the settings and limits of one case."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scenario import Failed, Metrics, expect, output, wait_for

UNIT = "plimsoll.service"
CGROUPS = Path("/sys/fs/cgroup")
# The units, the drop-ins and the user as they are shipped.
SHIPPED = Path(os.environ.get("UNITS", "/opt/test/systemd"))
PAGE = "http://127.0.0.1:18760/metrics"


def systemctl(*arguments: str) -> str:
    return output("systemctl", *arguments).strip()


class Unit:
    def __init__(self, settings: str, name: str = UNIT, drop_ins: tuple[str, ...] = (), **options: str) -> None:
        """`settings` is the file's text; `drop_ins` are shipped ones; `options` go into the unit's [Service] section."""
        self.name = name
        self.drop_ins = Path(f"/run/systemd/system/{name}.d")
        self.write(settings)
        shutil.rmtree(self.drop_ins, ignore_errors=True)
        self.drop_ins.mkdir(parents=True)
        for drop_in in drop_ins:
            shutil.copy(SHIPPED / "drop-ins" / drop_in, self.drop_ins)
        case = "[Service]\n" + "".join(f"{option}={value}\n" for option, value in options.items())
        # After the shipped ones.
        (self.drop_ins / "zz-case.conf").write_text(case)
        systemctl("daemon-reload")

    @classmethod
    def as_it_is(cls) -> Unit:
        """plimsoll.service with the settings that are there, for cases that start it by other means."""
        unit = cls.__new__(cls)
        unit.name, unit.drop_ins = UNIT, Path(f"/run/systemd/system/{UNIT}.d")
        return unit

    def __enter__(self) -> Unit:
        systemctl("start", self.name)
        try:
            wait_for("every worker runs", 60, self.workers_run)
        except Failed:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["systemctl", "stop", self.name], check=False)
        shutil.rmtree(self.drop_ins, ignore_errors=True)

    def write(self, settings: str) -> None:
        """Other settings, for a reload."""
        Path("/etc/plimsoll/plimsoll.toml").write_text(settings)

    @contextlib.contextmanager
    def started(self) -> Iterator[None]:
        """As `with` the unit itself, but for workers that do not stay up."""
        systemctl("start", self.name)
        try:
            yield
        finally:
            self.__exit__()

    def show(self, name: str) -> str:
        return systemctl("show", "--value", f"--property={name}", self.name)

    @property
    def group(self) -> Path:
        """The unit's control group: the daemon and all workers."""
        return CGROUPS / self.show("ControlGroup").lstrip("/")

    def metrics(self) -> Metrics:
        with urllib.request.urlopen(PAGE, timeout=5) as answer:
            return Metrics(answer.read().decode())

    def status(self) -> dict[str, Any]:
        done = subprocess.run(["plimsoll", "status", "--json"], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise OSError(f"plimsoll status ended with {done.returncode}: {done.stderr.strip()}")
        return json.loads(done.stdout)

    def resource(self, name: str) -> dict[str, Any]:
        """What `status` says of one resource; LookupError where it says nothing."""
        return [r for r in self.status()["policy"]["resources"] if r["resource"] == name][0]

    def events(self, name: str) -> list[dict[str, Any]]:
        """What the journal holds of that name since the unit was started, the oldest first, by the program's own field names."""
        asked = ["journalctl", f"_SYSTEMD_INVOCATION_ID={self.show('InvocationID')}", "--output=json", "--all"]
        done = subprocess.run(asked, capture_output=True, text=True, check=True)
        entries = ({key.lower(): value for key, value in json.loads(line).items()} for line in done.stdout.splitlines())
        return [entry for entry in entries if entry.get("event") == name]

    def workers_run(self) -> bool:
        state = self.show("ActiveState")
        if state not in ("active", "activating", "reloading"):
            raise Failed(f"the unit is {state}, result {self.show('Result')}, exit code {self.show('ExecMainStatus')}")
        page = self.metrics()
        wanted = sum(page.values("plimsoll_worker_replicas_desired"))
        # One that is held runs.
        there = sum(sum(page.values("plimsoll_worker_replicas", state=state)) for state in ("running", "throttled"))
        return wanted > 0 and there == wanted

    def pids(self) -> list[int]:
        """The pid of every replica."""
        return [r["pid"] for w in self.status()["workers"] for r in w["replicas"] if r.get("pid")]

    def cores_used(self, seconds: float) -> float:
        """CPU time of the whole unit per second, by the kernel's count, over that long from now."""
        group = self.group
        begun, before = time.monotonic(), cpu_seconds(group)
        time.sleep(seconds)
        return (cpu_seconds(group) - before) / (time.monotonic() - begun)


def cpu_seconds(group: Path) -> float:
    return keyed(group / "cpu.stat")["usage_usec"] / 1e6


def keyed(file: Path) -> dict[str, int]:
    """A flat keyed file of cgroup v2 (`cpu.stat`, `memory.events`)."""
    return {key: int(value) for key, value in (line.split() for line in file.read_text().splitlines())}


def group_of(pid: int) -> Path:
    return CGROUPS / Path(f"/proc/{pid}/cgroup").read_text().split("::", 1)[1].strip().lstrip("/")


def memory_line(group: Path) -> str:
    """`max`, or bytes."""
    return (group / "memory.high").read_text().strip()


def limited_groups(group: Path) -> list[str]:
    """Every group below `group` that is held by a CPU quota or frozen, with its value."""
    held = []
    for file in group.rglob("cpu.max"):
        if file.parent != group and not file.read_text().startswith("max"):
            held.append(f"{file} {file.read_text().strip()}")
    held += [str(file) for file in group.rglob("cgroup.freeze") if file.read_text().strip() != "0"]
    return held


def processes(command: str) -> dict[int, str]:
    """The state letter of each process of that name, by pid."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # pid (name) state …; the name may hold anything, so from the last bracket on.
            name, rest = (folder / "stat").read_text().split("(", 1)[1].rsplit(")", 1)
        except (OSError, IndexError):
            continue
        if name == command:
            found[int(folder.name)] = rest.split()[0]
    return found


def kill_all(command: str) -> None:
    """Ends every process of that name: what a case left behind on purpose."""
    for pid in processes(command):
        os.kill(pid, signal.SIGKILL)
    wait_for(f"every {command} is gone", 10, lambda: not processes(command))


def wait_until_throttled(unit: Unit, resource: str, limit_seconds: float = 90) -> None:
    wait_for(f"{resource} is throttled", limit_seconds, lambda: unit.resource(resource)["throttled"], every=0.5)


def expect_no_process(command: str) -> None:
    left = processes(command)
    expect(not left, f"{command} still runs: {left}")

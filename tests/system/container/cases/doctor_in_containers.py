#!/usr/bin/env python3
"""What the doctor says in six kinds of container is what is so there, seen from outside: limits, cgroups, capabilities, folders, process 1."""

import json
import os
from pathlib import Path

from container import SMALL, Container
from scenario import expect, run

# Numbers of capabilities, as in <linux/capability.h>.
SYS_NICE, SYS_RESOURCE = 23, 24
SETTINGS = {
    "default": (),
    "read-only root": ("--read-only",),
    "least privilege": ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--user=10001:10001"),
    "init": ("--init",),
    "root": ("--user=0:0", "--cap-add=SYS_NICE"),
    # As a container is given that is to have groups of its own.
    "writable cgroup": ("--user=0:0", "--cgroupns=host", "--volume=/sys/fs/cgroup:/sys/fs/cgroup"),
}


class Facts:
    """What is so in a container, by the kernel's word about its process 1 and nobody else's."""

    def __init__(self, container: Container) -> None:
        pid = container.pid
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
        self.user = int(status["Uid"].split()[0])
        # For root what an exec gets is the bounding set; for others nothing of it is effective.
        self.capabilities = int(status["CapBnd"], 16) if self.user == 0 else 0
        # What a process of that user sees as 1, by its name.
        self.first = Path(f"/proc/{pid}/comm").read_text().strip()
        self.read_only = {}
        for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
            words = line.split()
            self.read_only[words[4]] = "ro" in words[5].split(",")
        self.root = Path(f"/proc/{pid}/root")
        self.memory_limit = container.memory_limit()
        # Where real-time groups are compiled in, a v1 group has none of that time unless somebody gives it some.
        share = container.group("cpu") / "cpu.rt_runtime_us"
        self.real_time = self.has(SYS_NICE) and (not share.exists() or int(share.read_text()) > 0)

    def has(self, capability: int) -> bool:
        return bool(self.capabilities >> capability & 1)

    def group_writable(self) -> bool:
        hierarchies = [mount for mount in self.read_only if mount.startswith("/sys/fs/cgroup")]
        return self.user == 0 and not any(self.read_only[mount] for mount in hierarchies if mount.endswith(("/cpu", "/cpu,cpuacct", "/cgroup")))

    def writable(self, folder: str) -> bool:
        """By the mount it is on, its owner and its mode."""
        mount = max((m for m in self.read_only if folder == m or folder.startswith(m.rstrip("/") + "/")), key=len)
        # The namespace's own root is followed, not the machine's.
        path = self.root / folder.lstrip("/")
        if self.read_only[mount] or not path.is_dir():
            return False
        found = os.stat(path)
        return self.user == 0 or bool(found.st_mode & 0o002) or (found.st_uid == self.user and bool(found.st_mode & 0o200))


def compare(name: str, facts: Facts, findings: list[dict[str, str]]) -> int:
    """How many findings were compared."""
    by_name = {finding["what"]: finding for finding in findings}

    def level(what: str) -> str:
        expect(what in by_name, f"{name}: the doctor says nothing of {what!r}; it speaks of {list(by_name)}")
        return by_name[what]["level"]

    runtime = any(facts.writable(folder) for folder in ("/run/plimsoll", "/tmp", "/dev/shm"))
    state = any(facts.writable(folder) for folder in ("/var/lib/plimsoll", "/tmp"))
    wanted = {
        "runtime folder": ("ok",) if runtime else ("fail",),
        "state folder": ("ok",) if state else ("warn", "fail"),
        "groups of our own": ("ok",) if facts.group_writable() else ("note", "warn"),
        "SIGSTOP and SIGCONT": ("ok",),
        "pidfd": ("ok",),
        "nice, and back": ("ok",) if facts.has(SYS_NICE) else ("note",),
        "real-time priority": ("ok",) if facts.real_time else ("note",),
        "lowering oom_score_adj": ("ok",) if facts.has(SYS_RESOURCE) else ("note",),
        "process 1": ("ok", "note"),
        "pressure": ("ok",) if Path("/proc/pressure/memory").exists() else ("note", "warn"),
        "time zone data": ("ok",) if (facts.root / "usr/share/zoneinfo").is_dir() else ("note",),
        "CPU limit": ("ok",),
        "memory limit": ("ok",),
    }
    for what, levels in wanted.items():
        expect(level(what) in levels, f"{name}: {what} is said to be {by_name[what]}; it is so that {levels} is right")
    # The figures in the words: there is no other place for them.
    for what, figure in (("CPU limit", "0.50 cores"), ("memory limit", f"{facts.memory_limit >> 20} MiB"), ("process 1", facts.first)):
        expect(figure in by_name[what]["found"], f"{name}: {what} is said to be {by_name[what]['found']!r}, it is {figure}")
    if facts.group_writable():
        expect(level("CPU quota") == "ok", f"{name}: {by_name['CPU quota']}")
    return len(wanted)


def case() -> str:
    compared = 0
    for name, options in SETTINGS.items():
        # Nothing of ours runs there but the doctor, beside a worker that waits.
        with Container(options=(*SMALL, *options, "--entrypoint=/stubborn")) as container:
            done = container.command("doctor", "--json")
            expect("panicked" not in done.stderr, f"{name}: {done.stderr}")
            report = json.loads(done.stdout)
            failed = [finding for finding in report["findings"] if finding["level"] == "fail"]
            expect((done.returncode == 1) == bool(failed), f"{name}: exit code {done.returncode} with {failed}")
            facts = Facts(container)
            print(f"{name}: user {facts.user}, capabilities {facts.capabilities:x}, process 1 {facts.first}, {report['summary']}")
            compared += compare(name, facts, report["findings"])
    # As the entry point it is process 1 itself.
    with Container("doctor", "--json", options=(*SMALL, "--entrypoint=/usr/bin/plimsoll")) as itself:
        code = itself.wait()
        first = next(f for f in json.loads(itself.logs())["findings"] if f["what"] == "process 1")
        expect(code == 0 and "ourselves" in first["found"], f"as process 1: exit code {code}, {first}")
    return f"{compared} findings in {len(SETTINGS)} kinds of container"


run(case)

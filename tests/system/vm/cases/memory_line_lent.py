#!/usr/bin/python3
"""With file cache to give back, a growing worker is held by `memory.high` a small step below its use; the line does not outlive a killed daemon."""

import subprocess

from scenario import PROGRAMS, SCRATCH, expect, run, wait_for
from unit import Unit, group_of, memory_line

SETTINGS = f"""
[policy.memory]
limit = "256MB"
high = "30%"
low = "20%"
sustain = "500ms"
on_high = ["throttle"]
on_critical = []

[workers.leak]
command = ["sh", "-c", "dd if=/dev/zero of={SCRATCH}/ballast bs=1M count=60; sync; exec {PROGRAMS}/leak 8 {SCRATCH}/record"]
throttle = "cgroup"
"""


def case() -> str:
    with Unit(SETTINGS, KillMode="process", Restart="no") as unit:
        group = wait_for("the worker runs", 30, lambda: group_of(unit.pids()[0]))
        line = wait_for("it is held at a line", 90, lambda: None if memory_line(group) == "max" else memory_line(group), every=0.05)
        current = int((group / "memory.current").read_text())
        expect(int(line) > current * 0.8, f"held at {line}, far below its use of {current}")
        subprocess.run(["systemctl", "kill", "--kill-whom=main", "--signal=SIGKILL", "plimsoll.service"], check=True)
        wait_for("the line does not outlive the daemon", 5, lambda: memory_line(group) == "max", every=0.05)
        subprocess.run(["pkill", "-KILL", "-x", "leak"], check=False)
    return f"held at {int(line) >> 20} MiB, free when the daemon was killed"


run(case)

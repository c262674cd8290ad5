#!/usr/bin/python3
"""SIGKILL of the daemon at random instants of its work leaves no group of v2 frozen, limited or held at a memory line."""

import os
import random
import signal
import time
from pathlib import Path

from scenario import PROGRAMS, SCRATCH, expect, run, wait_for
from unit import Unit, limited_groups, memory_line, processes, systemctl

ROUNDS = 8
# From the start of the workers on: a line is set, tightened and moved within this.
SPAN_SECONDS = 5
# Undone within a second outside; the machine is emulated.
UNDONE_SECONDS = 4
# One held by quota, one by a duty cycle with the freezer, one by a memory line and the short freeze before it.
SETTINGS = f"""
[sampling]
interval = "200ms"
[policy.cpu]
sustain = "0s"
[policy.memory]
limit = "256MB"
high = "10%"
low = "5%"
sustain = "0s"
on_high = ["throttle"]
on_critical = []

[workers.by-group]
command = ["{PROGRAMS}/hog", "100"]
[workers.by-duty]
command = ["{PROGRAMS}/hog", "100"]
throttle = "duty"
[workers.leak]
command = ["sh", "-c", "dd if=/dev/zero of={SCRATCH}/ballast bs=1M count=40; sync; exec {PROGRAMS}/leak 8 {SCRATCH}/record"]
throttle = "cgroup"
"""
ALONE = {"CPUQuota": "100%", "KillMode": "process", "Restart": "no", "ExecStopPost": "", "SendSIGKILL": "no"}


def held(group: Path) -> list[str]:
    """Everything that is not as it was before anybody was held."""
    lines = [f"{file.parent} {memory_line(file.parent)}" for file in group.rglob("memory.high") if file.parent != group]
    stopped = [f"pid {pid} is stopped" for name in ("hog", "leak") for pid, state in processes(name).items() if state == "T"]
    return limited_groups(group) + [line for line in lines if not line.endswith(" max")] + stopped


def end_workers(group: Path) -> None:
    """Whatever they were about to become."""
    for file in group.glob("w-*/**/cgroup.kill"):
        file.write_text("1")


def case() -> str:
    dice = random.Random(os.urandom(8))
    with_something, slowest = 0, 0.0
    for at in range(ROUNDS):
        with Unit(SETTINGS, **ALONE) as unit:
            group, victim = unit.group, int(unit.show("MainPID"))
            time.sleep(dice.uniform(0, SPAN_SECONDS))
            with_something += bool(held(group))
            os.kill(victim, signal.SIGKILL)
            begun = time.monotonic()
            wait_for(f"nothing is held any more, round {at}", UNDONE_SECONDS, lambda: not held(group), every=0.02)
            slowest = max(slowest, time.monotonic() - begun)
            end_workers(group)
            wait_for("the groups are removed", 10, lambda: not list(group.glob("w-*")))
        systemctl("reset-failed")
    expect(with_something >= ROUNDS // 2, f"somebody was held in {with_something} of {ROUNDS} rounds only: this shows little")
    return f"{ROUNDS} rounds, {with_something} while somebody was held; undone after {slowest:.2f} s at the latest"


run(case)

#!/usr/bin/python3
"""Without swap and all anonymous, a worker held by `memory.high` below its use gets on again within 15 s; our own throttle never holds it so."""

import subprocess
import time
from pathlib import Path

from scenario import PROGRAMS, SCRATCH, expect, run, wait_for
from unit import Unit, group_of, keyed, memory_line

ROUNDS = SCRATCH / "rounds"
HELD_BY_OTHERS = f"""
[workers.churn]
command = ["{PROGRAMS}/churn", "64", "{ROUNDS}"]
"""
# 30 % of 256 MB is passed by 80 MiB that only grow by what cannot be taken back.
HELD_BY_US = f"""
[policy.memory]
limit = "256MB"
high = "30%"
low = "20%"
sustain = "500ms"
on_high = ["throttle"]
on_critical = []

[workers.leak]
command = ["{PROGRAMS}/leak", "12", "{SCRATCH}/record"]
throttle = "cgroup"
"""


def rounds() -> int:
    return int(ROUNDS.read_text().split()[0])


def rate(seconds: float) -> float:
    before, begun = rounds(), time.monotonic()
    time.sleep(seconds)
    return (rounds() - before) / (time.monotonic() - begun)


def by_others() -> str:
    with Unit(HELD_BY_OTHERS) as unit:
        wait_for("the worker gets on", 30, lambda: ROUNDS.exists() and rounds() > 20)
        free = rate(2)
        group = group_of(unit.pids()[0])
        expect(memory_line(group) == "max", f"memory.high is {memory_line(group)} at first")
        line = int((group / "memory.current").read_text()) * 3 // 4
        # The write may take as long as the kernel tries.
        writer = subprocess.Popen(["sh", "-c", f"echo {line} > {group}/memory.high"])
        begun = time.monotonic()
        wait_for("the line is set", 5, lambda: memory_line(group) != "max", every=0.05)
        stalled = rate(3)
        expect(stalled < free / 3, f"{stalled:.1f} rounds a second instead of {free:.1f}: this case shows nothing")
        wait_for("the line is taken off", 15 - (time.monotonic() - begun), lambda: memory_line(group) == "max", every=0.1)
        took = time.monotonic() - begun
        wait_for("the worker gets on again", 15 - took, lambda: rate(0.5) > free / 2, every=0)
        took = time.monotonic() - begun
        writer.wait(30)
        wait_for("it is told", 10, lambda: unit.events("memory_line_lifted"))
    return f"set by others: {free:.0f} rounds a second, {stalled:.1f} while held, free again after {took:.1f} s"


def by_us() -> str:
    with Unit(HELD_BY_US) as unit:
        wait_for("memory is throttled", 120, lambda: unit.resource("memory")["throttled"], every=0.5)
        group = group_of(unit.pids()[0])
        before = keyed(group / "memory.events")["high"]
        until = time.monotonic() + 8
        while time.monotonic() < until:
            expect(memory_line(group) == "max", f"memory.high is {memory_line(group)} although nothing could be taken back")
            time.sleep(0.25)
        after = keyed(group / "memory.events")["high"]
        expect(after == before, f"the worker was slowed by memory.high {after - before} times")
    return "asked for in the settings: the processor is held instead"


def case() -> str:
    return "; ".join(part() for part in (by_others, by_us))


run(case)

#!/usr/bin/python3
"""Page cache filled to the unit's limit raises no alarm; the same amount of shared and of anonymous memory does."""

from pathlib import Path

from scenario import PROGRAMS, SCRATCH, expect, run, wait_for
from unit import Unit, keyed

LIMIT = 192 << 20
FILE = SCRATCH / "large"
SHARED = Path("/dev/shm/plimsoll-case")
RULES = """
[policy.memory]
sustain = "1s"
on_high = ["notify"]
on_critical = ["notify"]
"""


def worker(command: str) -> str:
    return f'{RULES}\n[workers.web]\ncommand = ["/bin/sh", "-c", "{command}"]\n'


def is_full(unit: Unit) -> bool:
    current = int((unit.group / "memory.current").read_text())
    return current >= LIMIT * 0.97 and keyed(unit.group / "memory.events")["max"] > 50


def cache() -> str:
    # Its pages come from holes, which fill the cache all the same.
    with FILE.open("wb") as file:
        file.truncate(3 * LIMIT)
    with Unit(worker(f"while :; do cat {FILE} > /dev/null; done"), MemoryMax=str(LIMIT), MemorySwapMax="0") as unit:
        wait_for("the unit is full of cache and the kernel takes it back", 120, lambda: is_full(unit))
        ticks = unit.status()["tick"]
        wait_for("five more ticks", 60, lambda: unit.status()["tick"] >= ticks + 5)
        memory = unit.resource("memory")
        expect(memory["state"] == "normal" and memory["measure"] == "unreclaimable", f"cache raised an alarm: {memory}")
        expect(memory["utilization"] < 0.4, f"cache was counted: {memory}")
        used = unit.status()["memory"]
        hits = keyed(unit.group / "memory.events")["max"]
        return f"cache: {memory['utilization']:.0%} judged, {used['current_bytes'] / LIMIT:.0%} charged, limit met {hits} times"


def alarm(what: str, settings: str) -> str:
    with Unit(settings, MemoryMax=str(LIMIT), MemorySwapMax="0") as unit:
        memory = wait_for(
            f"{what} memory raises the alarm", 120, lambda: (found := unit.resource("memory"))["state"] != "normal" and found
        )
        expect(memory["measure"] == "unreclaimable", f"{what}: {memory}")
        expect(keyed(unit.group / "memory.events")["oom_kill"] == 0, f"{what}: the kernel was faster")
        return f"{what}: {memory['state']} at {memory['utilization']:.0%}"


def case() -> str:
    told = [cache()]
    FILE.unlink()
    try:
        told.append(alarm("shared", worker(f"dd if=/dev/zero of={SHARED} bs=1M count=164 2> /dev/null; exec sleep 1000")))
    finally:
        SHARED.unlink(missing_ok=True)
    told.append(alarm("anonymous", f'{RULES}\n[workers.web]\ncommand = ["{PROGRAMS}/leak", "8", "{SCRATCH}/record"]\n'))
    return "; ".join(told)


run(case)

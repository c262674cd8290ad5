#!/usr/bin/python3
"""A working set of files larger than the limit, touched again and again, raises the alarm; the same file read through over and over does not."""

import os
import time

from scenario import PROGRAMS, SCRATCH, expect, run, wait_for
from unit import Unit, keyed

LIMIT = 64 << 20
FILE = SCRATCH / "map"
RULES = """
[policy.memory]
sustain = "1s"
on_high = ["notify"]
on_critical = ["notify"]
"""
COUNTERS = ("workingset_refault_file", "workingset_activate_file", "pgmajfault")


def worker(command: str) -> str:
    return f'{RULES}\n[workers.web]\ncommand = ["/bin/sh", "-c", "{command}"]\n'


def make_file() -> None:
    """With its pages on the disk and in nobody's cache."""
    with FILE.open("wb") as file:
        for _ in range(LIMIT * 3 // 2 >> 20):
            file.write(bytes([1]) * (1 << 20))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def counters(unit: Unit) -> dict[str, int]:
    stat = keyed(unit.group / "memory.stat")
    return {name: stat[name] for name in COUNTERS}


def stalled(unit: Unit) -> float:
    """Seconds in which some task waited for memory."""
    return int((unit.group / "memory.pressure").read_text().split("total=")[1].split()[0]) / 1e6


def limits() -> dict[str, str]:
    return {"MemoryMax": str(LIMIT), "MemorySwapMax": "0"}


def read_through() -> str:
    with Unit(worker(f"while :; do cat {FILE} > /dev/null; done"), **limits()) as unit:
        wait_for("the limit is met", 120, lambda: keyed(unit.group / "memory.events")["max"] > 200)
        before, begun, waited = counters(unit), time.monotonic(), stalled(unit)
        # As long as the window over which evidence is looked for, and as `sustain` and some more.
        while (lasted := time.monotonic() - begun) < 13:
            memory = unit.resource("memory")
            expect(memory["state"] == "normal", f"a file that is read through raised an alarm: {memory}, {counters(unit)}")
            time.sleep(0.5)
        rates = [f"{name} {(after - before[name]) / lasted:.0f}/s" for name, after in counters(unit).items()]
        return f"read through: normal, {', '.join(rates)}, waits {(stalled(unit) - waited) / lasted:.0%}"


def touched() -> str:
    with Unit(worker(f"exec {PROGRAMS}/thrash {FILE}"), **limits()) as unit:
        before, begun, waited = counters(unit), time.monotonic(), stalled(unit)
        memory = wait_for("it raises the alarm", 90, lambda: (found := unit.resource("memory"))["state"] != "normal" and found)
        lasted = time.monotonic() - begun
        rates = [f"{name} {(after - before[name]) / lasted:.0f}/s" for name, after in counters(unit).items()]
        expect(memory["measure"] == "working_set", f"touched: {memory}")
        expect(memory.get("evidence"), f"touched, without evidence: {memory}")
        expect(unit.status()["memory"]["unreclaimable_bytes"] < LIMIT / 2, "it is no file cache that fills it")
        waits = f"waits {(stalled(unit) - waited) / lasted:.0%}"
        return f"touched in any order: {memory['state']} after {lasted:.0f} s ({memory['evidence']}), {', '.join(rates)}, {waits}"


def case() -> str:
    make_file()
    return "; ".join([read_through(), touched()])


run(case)

#!/usr/bin/python3
"""Memory pressure brings the next look by itself: with ten minutes between looks, a stalled group is seen within seconds."""

import time

from scenario import PROGRAMS, SCRATCH, expect, run, wait_for
from unit import Unit, group_of

SETTINGS = f"""
[sampling]
interval = "10m"

[policy.memory]
# Far away: no line brings a look.
high = "95%"
low = "94%"
critical = "99%"

[workers.leak]
command = ["{PROGRAMS}/leak", "2", "{SCRATCH}/record"]
"""


def case() -> str:
    # Without the watchdog, for whose sake looks would come every 90 s.
    with Unit(SETTINGS, MemoryMax="400M", WatchdogSec="0") as unit:
        how = unit.status()["environment"]["pressure"]
        expect(how.startswith("trigger"), f"no trigger is set here: {how}")

        def ticks() -> float:
            return unit.metrics().value("plimsoll_tick_duration_seconds_count")

        quiet = ticks()
        time.sleep(5)
        expect(ticks() <= quiet + 1, f"{ticks() - quiet:.0f} looks in 5 s of rest, though the interval is ten minutes")
        # What cannot be taken from the worker is more than it may have: it is made to wait for each page. In its own group: a line on the unit
        # would slow the daemon as well, and not by its workers' pressure.
        line = group_of(unit.pids()[0]) / "memory.high"
        before, begun = ticks(), time.monotonic()
        line.write_text("6M")
        wait_for("pressure has brought looks", 20, lambda: ticks() > before)
        seconds = time.monotonic() - begun
        line.write_text("max")
        stalled = unit.metrics().value("plimsoll_pressure_waiting_seconds_total", resource="memory")
    return f"{how}: a look {seconds:.1f} s after the squeeze, {stalled:.1f} s waited for memory"


run(case)

#!/usr/bin/python3
"""The same line held by stopping and continuing the workers, where a worker asks for that method; no stop is longer than 250 ms."""

import time
from pathlib import Path

from scenario import PROGRAMS, expect, expect_near, run, wait_for
from unit import Unit, limited_groups, wait_until_throttled

SETTINGS = f"""
[policy.cpu]
sustain = "2s"

[workers.greedy]
command = ["{PROGRAMS}/hog", "100"]
replicas = 2
throttle = "duty"
"""


def longest_stop(pids: list[int], seconds: float) -> float:
    """The longest time a process was stopped in one go: seen stopped, and without a nanosecond of CPU in between."""
    begun: dict[int, tuple[str, float]] = {}
    longest = 0.0
    end = time.monotonic() + seconds
    while (now := time.monotonic()) < end:
        for pid in pids:
            ran = Path(f"/proc/{pid}/schedstat").read_text().split()[0]
            stopped = ") T " in Path(f"/proc/{pid}/stat").read_text()
            if stopped and pid in begun and begun[pid][0] == ran:
                longest = max(longest, now - begun[pid][1])
            else:
                begun[pid] = (ran, now)
        time.sleep(0.002)
    return longest


def case() -> str:
    with Unit(SETTINGS, CPUQuota="100%") as unit:
        wait_until_throttled(unit, "cpu")
        wait_for("usage has come down to the line", 60, lambda: unit.cores_used(2) < 0.87)
        used = unit.cores_used(10)
        expect_near("cores used over 10 s", used, 0.80, 0.03)
        held = limited_groups(unit.group)
        expect(not held, f"a control group is limited though the duty cycle was asked for: {held}")
        methods = {r.get("throttle_method") for w in unit.status()["workers"] for r in w["replicas"]}
        # Stopped by signals, which the freezer of their groups helps to arrive at once.
        expect(methods == {"duty (freezer)"}, f"held by {methods}")
        stop = longest_stop(unit.pids(), 5)
        # Seen from outside, on an emulated machine: the setting plus one late wake-up.
        expect(0 < stop < 0.35, f"the longest stop seen was {stop * 1000:.0f} ms, expected up to 250 ms")
    return f"{used:.3f} cores used of a limit of 1, longest stop {stop * 1000:.0f} ms"


run(case)

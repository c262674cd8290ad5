#!/usr/bin/env python3
"""Where control groups are read-only, a hog is held at 80 % of the container's half core by stopping and continuing it."""

from container import Container
from scenario import expect, expect_near, run, wait_for


def case() -> str:
    with Container("--set", "policy.cpu.sustain=1s", "--", "/hog", "100") as small:
        small.wait_until_throttled("cpu")
        wait_for("usage has come down to the line", 30, lambda: small.cores_used(2) < 0.43)
        used = small.cores_used(10)
        # 80 % of half a core, and three points of that limit.
        expect_near("cores used over 10 s", used, 0.40, 0.015)
        states = wait_for(
            "the hog is seen held stopped",
            10,
            lambda: (s := [state for name, state in small.processes().values() if name == "hog"]) and "T" in s and s,
            every=0.005,
        )
        expect(len(states) == 1, f"one hog expected: {states}")
    return f"{used:.3f} cores used of 0.5"


run(case)

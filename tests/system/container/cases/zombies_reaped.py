#!/usr/bin/env python3
"""As process 1 the daemon reaps orphans it never started, while its worker runs on."""

from container import Container
from scenario import expect, run


def case() -> str:
    # The worker ends with 5 once none of its forty orphans is left, with 99 when they stay zombies.
    with Container("--", "/orphan", "40", "5") as container:
        code = container.wait()
        expect(code == 5, f"exit code {code}, expected 5")
    return "40 orphans reaped"


run(case)

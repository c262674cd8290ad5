#!/usr/bin/env python3
"""Not root, no capability, nothing writable: limits are found and the hog is held all the same."""

from container import SMALL, Container
from scenario import expect, expect_near, run, wait_for

OPTIONS = (*SMALL, "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--user=10001:10001")


def case() -> str:
    with Container("--set", "policy.cpu.sustain=1s", "--", "/hog", "100", options=OPTIONS) as small:
        small.wait_until_up()
        wait_for("CPU is throttled", 60, lambda: small.metrics().value("plimsoll_policy_throttled") == 1)
        wait_for("usage has come down to the line", 30, lambda: small.cores_used(2) < 0.43)
        used = small.cores_used(10)
        expect_near("cores used over 10 s", used, 0.40, 0.015)
        page = small.metrics()
        expect(page.value("plimsoll_memory_limit_bytes") == 256 << 20, "the memory limit was not found")
        failures = sum(page.values("plimsoll_action_failures_total"))
        expect(failures == 0, f"{failures:.0f} actions failed")
    return f"{used:.3f} cores used of 0.5"


run(case)

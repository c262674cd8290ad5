#!/usr/bin/python3
"""A worker that nobody holds is taken by the kernel at the limit, and only it: it is told of as that, daemon and others go on."""

from scenario import PROGRAMS, SCRATCH, expect, run, wait_for
from unit import Unit, keyed

# It is not to be caught before the kernel does. Its second life comes late, so that one kill is looked at.
SETTINGS = f"""
[policy]
dry_run = true

[workers.burst]
command = ["{PROGRAMS}/leak", "100", "{SCRATCH}/record"]
backoff = {{ first = "30s", longest = "60s" }}

[workers.calm]
command = ["{PROGRAMS}/hog", "1"]
replicas = 2
"""


def case() -> str:
    unit = Unit(SETTINGS, MemoryMax="128M", MemorySwapMax="0")
    with unit.started():
        exited = wait_for("the burst has ended", 60, lambda: [e for e in unit.events("worker_exited") if e["worker"] == "burst"])[0]
        status = unit.status()
        calm = [r["pid"] for w in status["workers"] if w["name"] == "calm" for r in w["replicas"]]
        kills = keyed(unit.group / "memory.events")["oom_kill"]
        expect(kills >= 1, "the kernel killed nobody: the case shows nothing")
        expect(exited["reason"] == "oom", f"the daemon says it ended by {exited['reason']}")
        others = [e for e in unit.events("worker_exited") if e["worker"] != "burst"]
        expect(not others, f"others ended too: {others}")
        expect(len(calm) == 2 and all(calm), f"two calm workers expected: {calm}")
        expect(unit.show("NRestarts") == "0" and unit.show("ActiveState") == "active", "the daemon did not go on")
    return f"{kills} killed by the kernel, told as oom; 2 others and the daemon went on"


run(case)

#!/usr/bin/python3
"""A leaking worker is asked to drop caches, then slowed, then replaced before its limit; the kernel kills nothing."""

from scenario import PROGRAMS, SCRATCH, expect, run, wait_for
from unit import Unit, keyed

RECORD = SCRATCH / "record"
# 256 MiB: high is passed at 179, critical at 236, and the leak would need seven seconds from one to the other: whoever asked and waited for
# the answer as long as there is time elsewhere would never come to slow it.
SETTINGS = f"""
[policy.memory]
high = "70%"
low = "60%"
sustain = "1s"

[workers.leak]
command = ["{PROGRAMS}/leak", "8", "{RECORD}"]
shed_signal = "SIGUSR1"
stop = {{ signal = "SIGTERM", within = "2s" }}
backoff = {{ first = "100ms" }}
"""


def case() -> str:
    with Unit(SETTINGS, MemoryMax="256M") as unit:
        wait_for("the worker was replaced", 120, lambda: unit.metrics().value("plimsoll_worker_recycles_total", worker="leak", cause="memory") >= 1)
        wait_for("a fresh one runs", 30, unit.workers_run)
        words = [line.split() for line in RECORD.read_text().splitlines()]
        first = [word for word, _, _ in words][:2]
        expect(words[0][0] == "asked", f"the worker was not asked first: {words}")
        ended = next((line for line in words if line[0] == "terminated"), None)
        expect(ended is not None, f"the worker was replaced without SIGTERM: {words}")
        expect(words[0][1] == ended[1], f"asked one process and ended another: {words}, {first}")
        events = keyed(unit.group / "memory.events")
        expect(events["oom_kill"] == 0, f"the kernel killed: {events}")
        done = [event["action"] for event in unit.events("action_performed") if event["outcome"] == "done"]
        steps = [done.index(action) for action in ("shed", "throttle", "recycle") if action in done]
        expect(len(steps) == 3 and steps == sorted(steps), f"actions, in order: {done}")
    return f"asked at {words[0][2]} MiB, slowed, ended at {ended[2]} MiB of 256"


run(case)

#!/usr/bin/python3
"""Where there is swap, the `reclaim` rung asks a leaking worker's group for memory by `memory.reclaim`, and it goes; without swap the rung is passed over and says so."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scenario import PROGRAMS, SCRATCH, expect, run, wait_for
from unit import Unit, group_of, keyed

SWAP = Path("/var/swap")
SETTINGS = f"""
[policy.memory]
limit = "256MB"
high = "30%"
low = "20%"
critical = "95%"
sustain = "500ms"
on_high = ["reclaim"]
on_critical = []

[workers.leak]
command = ["{PROGRAMS}/leak", "8", "{SCRATCH}/record"]
"""


@contextmanager
def swap() -> Iterator[None]:
    subprocess.run(["dd", "if=/dev/zero", f"of={SWAP}", "bs=1M", "count=200"], check=True, capture_output=True)
    SWAP.chmod(0o600)
    for tool in ("mkswap", "swapon"):
        subprocess.run([tool, str(SWAP)], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["swapoff", str(SWAP)], check=True)
        SWAP.unlink()


def without_swap() -> None:
    with Unit(SETTINGS) as unit:
        told = wait_for("it is passed over", 60, lambda: [e for e in unit.events("action_suppressed") if "swap" in e["detail"]][0])
        expect("reclaim" in told["detail"], f"what was passed over: {told}")
        expect(not unit.events("action_performed"), "it was asked all the same")


def with_swap() -> str:
    with Unit(SETTINGS) as unit:
        group = wait_for("the worker runs", 30, lambda: group_of(unit.pids()[0]))
        action = wait_for("memory is asked back", 60, lambda: [e for e in unit.events("action_performed") if e["action"] == "reclaim"][0])
        expect(action["outcome"] == "done", f"it was not done: {action}")
        out = wait_for("memory is swapped out", 30, lambda: (n := int((group / "memory.swap.current").read_text())) > 8 << 20 and n)
        effect = wait_for("its effect is told", 40, lambda: (unit.events("action_effective") or unit.events("action_ineffective"))[0])
        expect(keyed(group / "memory.events")["oom_kill"] == 0, "somebody was killed")
        return f"{out >> 20} MiB swapped out, {effect['event']}"


def case() -> str:
    without_swap()
    with swap():
        return with_swap()


run(case)

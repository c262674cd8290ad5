#!/usr/bin/python3
"""In a unit of its own the doctor makes a group and holds, freezes and kills a child in it; beside the daemon it keeps its hands off; it leaves nothing behind."""

import json
import subprocess
from pathlib import Path

from scenario import expect, run
from unit import CGROUPS, Unit

SETTINGS = """
[workers.idle]
command = ["/usr/bin/sleep", "infinity"]
"""
ALONE = ["systemd-run", "--quiet", "--pipe", "--wait", "--property=Delegate=yes"]


def findings(*before: str) -> dict[str, tuple[str, str]]:
    done = subprocess.run([*before, "/usr/bin/plimsoll", "doctor", "--json"], capture_output=True, text=True, check=False)
    expect(done.returncode == 0, f"doctor ended with {done.returncode}: {done.stdout}{done.stderr}")
    return {one["what"]: (one["level"], one["found"]) for one in json.loads(done.stdout)["findings"]}


def groups() -> set[Path]:
    # Units that come and go by themselves are not ours.
    return {path for path in CGROUPS.rglob("*") if path.is_dir() and path.name in ("supervisor", "probe", "w-doctor")}


def case() -> str:
    Path("/etc/plimsoll/plimsoll.toml").write_text(SETTINGS)
    alone = findings(*ALONE)
    for what in ("moving a child into a group", "CPU quota", "memory.high", "asking memory back", "freezing a group", "killing a group", "journal"):
        level, found = alone.get(what, ("missing", ""))
        expect(level == "ok", f"{what}: {level}: {found}; {alone}")
    for what in ("pressure trigger, 2 s", "pressure trigger, 500 ms", "lowering oom_score_adj", "mlockall", "nice, and back"):
        expect(alone[what][0] == "ok", f"{what}: {alone[what]}")
    expect("idle by cgroup" in alone["policy.cpu.on_high throttle"][1], str(alone["policy.cpu.on_high throttle"]))
    # What systemd itself says of the unit as shipped: none of the known traps.
    for what in ("grace", "Delegate", "KillMode", "OOMPolicy", "Type", "Restart"):
        level, found = alone.get(f"systemd: {what}", ("missing", ""))
        expect(level == "ok", f"systemd: {what}: {level}: {found}")
    expect(not groups(), f"left behind: {groups()}")

    # The harness and the test itself are in this group: whatever can be made there is gone afterwards.
    findings()
    expect(not groups(), f"left behind: {groups()}")

    with Unit(SETTINGS) as unit:
        before = (unit.group / "cgroup.subtree_control").read_text()
        beside = findings()
        # Which systemd knows only of a service that runs.
        expect(beside["systemd: watchdog"][0] == "ok", str(beside["systemd: watchdog"]))
        expect("a daemon is running" in beside["groups of our own"][1], str(beside["groups of our own"]))
        expect("idle by cgroup" in beside["policy.cpu.on_high throttle"][1], str(beside["policy.cpu.on_high throttle"]))
        expect((unit.group / "cgroup.subtree_control").read_text() == before, "the daemon's controllers were touched")
        explained = subprocess.run(["plimsoll", "explain"], capture_output=True, text=True, check=True).stdout
        expect(explained.startswith("all is normal") and "idle runs free" in explained, explained)
    return alone["CPU quota"][1]


run(case)

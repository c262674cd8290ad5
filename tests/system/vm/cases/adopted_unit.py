#!/usr/bin/python3
"""A service of systemd's own is taken over as it is: held to its line, replaced by its own manager, found again after a crash, let go free."""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from scenario import PROGRAMS, expect, run, wait_for
from unit import Unit, group_of, systemctl

SETTINGS = """
[workers.legacy]
adopt = { unit = "legacy.service", restart = ["systemctl", "restart", "legacy.service"] }
limits.cpu = "30%"
"""
SERVICE = Path("/run/systemd/system/legacy.service")
SERVICE_TEXT = f"""
[Service]
ExecStart={PROGRAMS}/hog 100
Restart=always
RestartSec=1
"""


def main_pid() -> int:
    return int(systemctl("show", "--value", "--property=MainPID", "legacy.service"))


def cores_used(pid: int, seconds: float) -> float:
    def ticks() -> int:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    begun, before = time.monotonic(), ticks()
    time.sleep(seconds)
    return (ticks() - before) / os.sysconf("SC_CLK_TCK") / (time.monotonic() - begun)


def case() -> str:
    SERVICE.write_text(SERVICE_TEXT)
    systemctl("daemon-reload")
    systemctl("start", "legacy.service")
    try:
        return adopted()
    finally:
        subprocess.run(["systemctl", "stop", "legacy.service"], check=False)
        SERVICE.unlink()


def adopted() -> str:
    first = main_pid()
    with Unit(SETTINGS) as unit:

        def replica() -> dict[str, Any]:
            return unit.status()["workers"][0]["replicas"][0]

        def held_pid() -> int | None:
            return replica().get("pid")

        def is_held() -> bool:
            return replica().get("throttle_method") == "duty"

        expect(held_pid() == first, f"systemd started pid {first}, taken was {held_pid()}")
        wait_for("it is held", 60, is_held, every=0.5)
        group = group_of(first)
        expect(group.name == "legacy.service", f"it was moved to {group}")
        held = cores_used(first, 10)
        expect(0.2 <= held <= 0.36, f"{held:.3f} cores used, 0.3 is its line")

        # It dies: its manager starts another, which is found.
        os.kill(first, signal.SIGKILL)
        wait_for("the next is found", 60, lambda: held_pid() not in (None, first))
        second = main_pid()
        expect(held_pid() == second, f"systemd started pid {second}, taken was {held_pid()}")
        wait_for("the next is held, too", 60, is_held, every=0.5)

        done = subprocess.run(["plimsoll", "workers", "restart", "legacy", "--wait", "60s"], capture_output=True, text=True, check=False)
        expect(done.returncode == 0, f"restart ended with {done.returncode}: {done.stdout}{done.stderr}")
        third = main_pid()
        expect(third != second and held_pid() == third, f"pid {second}, then {third}; taken is {held_pid()}")
        expect(group_of(third).name == "legacy.service", f"its manager did not start it: it is in {group_of(third)}")

        refused = subprocess.run(["plimsoll", "workers", "stop", "legacy"], capture_output=True, text=True, check=False)
        expect(refused.returncode != 0 and "may_end" in refused.stdout + refused.stderr, f"a stop was not refused: {refused}")
    expect(main_pid() == third, "it did not outlive the daemon")
    free = cores_used(third, 5)
    expect(free > 0.5, f"{free:.3f} cores used once nobody guards it")
    return f"{held:.2f} cores held to 0.30, {free:.2f} once let go"


run(case)

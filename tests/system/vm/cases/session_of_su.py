#!/usr/bin/python3
"""Workers begun with `su -` are put into login sessions, outside their groups: held to their limits, recycled and ended all the same."""

import os
import subprocess
import time
from pathlib import Path

from scenario import PROGRAMS, expect, run, wait_for
from unit import Unit, expect_no_process, group_of, processes

# As an administrator writes it who wants an application to run as another user, in that user's environment.
SETTINGS = f"""
[workers.hog]
command = ["su", "-", "app", "-c", "{PROGRAMS}/hog 100"]
limits = {{ cpu = 0.4 }}

[workers.leak]
command = ["su", "-", "app", "-c", "{PROGRAMS}/leak 4 /dev/null"]
limits = {{ memory = "64MiB" }}
"""


def cores_used(pid: int, seconds: float) -> float:
    def clock() -> float:
        user, system = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    begun, before = time.monotonic(), clock()
    time.sleep(seconds)
    return (clock() - before) / (time.monotonic() - begun)


def case() -> str:
    subprocess.run(["useradd", "--create-home", "--shell=/bin/sh", "app"], check=True)
    with Unit(SETTINGS) as unit:
        [hog] = wait_for("su has begun the hog", 60, lambda: list(processes("hog")))
        session = wait_for("it is in a session", 30, lambda: group_of(hog) if unit.group not in group_of(hog).parents else None)
        wait_for("it has come down to its limit", 60, lambda: cores_used(hog, 2) < 0.5)
        used = cores_used(hog, 10)
        # A busy host may keep it from what it is granted.
        expect(0.30 <= used <= 0.44, f"the hog used {used:.3f} cores over 10 s, its limit is 0.4")
        recycled = wait_for("the leak is recycled", 90, lambda: unit.events("worker_recycled"))
        expect((recycled[0]["worker"], recycled[0]["cause"]) == ("leak", "memory"), f"recycled: {recycled}")
        told = [event["detail"] for event in unit.events("degraded") if event["part"] == "cgroup"]
        expect({text.split(".")[0] for text in told} == {"hog", "leak"}, f"told: {told}")
    expect_no_process("hog")
    expect_no_process("leak")
    return f"{used:.3f} cores in {session.name}"


run(case)

#!/usr/bin/env python3
"""With a read-only root, with and without a place for the socket, the hog is held, and what cannot be kept is said."""

from pathlib import Path

from container import SMALL, Container
from scenario import expect, expect_near, run, wait_for

HOG = ("--set", "policy.cpu.sustain=1s", "--", "/hog", "100")


def held(container: Container) -> float:
    wait_for("usage has come down to the line", 30, lambda: container.cores_used(2) < 0.43)
    used = container.cores_used(6)
    expect_near("cores used over 6 s", used, 0.40, 0.02)
    return used


def socket(container: Container) -> str:
    """Where the daemon's socket is, seen from outside through its process 1."""
    paths = [line.split()[-1] for line in Path(f"/proc/{container.pid}/net/unix").read_text().splitlines()]
    return next(path for path in paths if path.endswith("/plimsoll.sock"))


def case() -> str:
    told = []
    for what, more, folder in (
        ("bare", (), "/dev/shm/plimsoll-65532"),
        ("tmpfs on /run/plimsoll", ("--tmpfs=/run/plimsoll:uid=65532,gid=65532,mode=0750",), "/run/plimsoll"),
    ):
        with Container(*HOG, options=(*SMALL, "--read-only", *more)) as small:
            small.wait_until_up()
            wait_for("CPU is throttled", 60, lambda: small.metrics().value("plimsoll_policy_throttled") == 1)
            expect(socket(small) == f"{folder}/plimsoll.sock", f"{what}: the socket is at {socket(small)}, expected in {folder}")
            # The commands find it where the daemon has found it.
            problem = small.status()["daemon"]["history_problem"]
            expect("/var/lib/plimsoll" in (problem or ""), f"{what}: nobody says that there is no record: {problem}")
            events = small.command("events")
            expect(events.returncode == 0 and "daemon_started" in events.stdout, f"{what}: events: {events.stdout}{events.stderr}")
            # By what it is held does not depend on where the socket is: measured once.
            told.append(what if more else f"{what}: {held(small):.3f} cores of 0.5")
    return ", ".join(told)


run(case)

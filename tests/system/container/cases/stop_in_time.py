#!/usr/bin/env python3
"""`docker stop` ends a throttled hog at once and a stubborn worker within its grace, without the engine's SIGKILL."""

import time

from container import Container, docker
from scenario import expect, run, wait_for


def timed_stop(container: Container, grace: int) -> float:
    begun = time.monotonic()
    docker("stop", f"--time={grace}", container.id)
    return time.monotonic() - begun


def case() -> str:
    with Container("--set", "policy.cpu.sustain=1s", "--", "/hog", "100") as hog:
        hog.wait_until_throttled("cpu")
        # In the moment it is held stopped: a stopped process does not see SIGTERM until it continues.
        wait_for("the hog is held stopped", 20, lambda: ("hog", "T") in hog.processes().values(), every=0.005)
        took_hog = timed_stop(hog, grace=10)
        expect(took_hog < 3, f"the stop of a throttled hog took {took_hog:.1f} s")
        code = hog.inspect("State.ExitCode")
        expect(code == "143", f"exit code {code}, expected 143: the command's own end, by SIGTERM")
    with Container("--set", "workers.main.stop.within=2s", "--", "/stubborn") as stubborn:
        stubborn.wait_until_up()
        took_stubborn = timed_stop(stubborn, grace=20)
        expect(2 <= took_stubborn < 8, f"the stop of a stubborn worker took {took_stubborn:.1f} s, expected its 2 s")
    return f"throttled hog {took_hog:.1f} s, stubborn worker {took_stubborn:.1f} s"


run(case)

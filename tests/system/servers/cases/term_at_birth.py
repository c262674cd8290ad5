#!/usr/bin/env python3
"""SIGTERM at a thousand random instants in the first 50 ms of a real Python worker: each one ends, is told of and followed by the next."""

import os
import random
import signal
import sys
import time
from pathlib import Path

from scenario import expect, run, wait_for
from stage import APPS, is_helper, stage

ROUNDS = int(os.environ.get("ROUNDS", "1000"))
WINDOW = 0.05

SETTINGS = f"""
[workers.web]
command = ["{sys.executable}", "-S", "-E", "{APPS}/birth.py"]
backoff = {{ first = "10ms", longest = "10ms", give_up = 1000000 }}
"""


def case() -> str:
    seed = int(os.environ.get("SEED", time.time_ns() % 1_000_000))
    print(f"SEED={seed}", flush=True)
    chance = random.Random(seed)
    with stage(SETTINGS) as here:
        here.wait_until_serving("web", 1)
        children = Path(f"/proc/{here.pid}/task/{here.pid}/children")
        companions = {int(pid) for pid in children.read_text().split() if is_helper(int(pid))}
        past: set[int] = set()
        for number in range(ROUNDS):
            last = time.monotonic()
            # Seen as soon as the kernel shows it: before its exec as well as after.
            while not (born := [pid for pid in map(int, children.read_text().split()) if pid not in companions and pid not in past]):
                here.must_run()
                expect(time.monotonic() < last + 20, f"nobody was started after the end of number {number}")
            expect(len(born) == 1, f"two at once: {born}")
            (pid,) = born
            instant = time.monotonic() + chance.uniform(0, WINDOW)
            while time.monotonic() < instant:
                pass
            # By a descriptor, so that nobody else can be met.
            held = os.pidfd_open(pid)
            signal.pidfd_send_signal(held, signal.SIGTERM)
            wait_for(f"number {number}, pid {pid}, ends", 20, lambda: not Path(f"/proc/{pid}").exists(), every=0.001)
            os.close(held)
            # A number may be given away again, though not as soon as this.
            past = {pid}
        here.must_run()
        here.wait_until_alone("web", 1)
        wait_for("each end is told", 10, lambda: len(here.events("worker_exited")) == ROUNDS)
        exits = here.events("worker_exited")
        by_handler = sum(event.get("exit_code") == 0 for event in exits)
        by_signal = sum(event.get("signal") == "SIGTERM" for event in exits)
        expect(by_handler + by_signal == ROUNDS, f"{by_handler} by the handler, {by_signal} by the signal, {ROUNDS} in all: {exits[:3]}")
        started = len(here.events("worker_started"))
        expect(started == ROUNDS + 1, f"{started} starts were told")
        here.stop()
        here.expect_nobody("after the daemon's end")
    return f"{ROUNDS} asked in their first {1e3 * WINDOW:.0f} ms: {by_signal} ended by the signal itself, {by_handler} by their handler"


run(case)

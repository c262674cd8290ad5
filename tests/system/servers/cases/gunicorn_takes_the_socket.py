#!/usr/bin/env python3
"""A real gunicorn master serves on the daemon's socket: recycled and restarted under load nothing is refused, and its tree goes with it.

Nothing is lost either, with workers of gunicorn's own and with those of uvicorn, which is mended as apps/patient.py says.
"""

import time
from pathlib import Path

from load import Load, first_of
from scenario import expect, run, wait_for
from stage import SERVERS, Stage, describe, free_port, stage

ROUNDS = 8


def settings(port: int, kind: list[str]) -> str:
    words = [f"{SERVERS}/gunicorn", *kind, "--workers", "2", "--graceful-timeout", "20", "--no-control-socket"]
    return f"""
[workers.web]
command = [{", ".join(f'"{word}"' for word in words)}]
listen = ["127.0.0.1:{port}"]
ready = {{ http = "http://127.0.0.1:{port}/", within = "60s" }}
stop = {{ within = "30s" }}
"""


def tree(master: int) -> list[int]:
    """The master and its workers, once both are there."""

    def whole() -> list[int] | None:
        children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
        return [master, *map(int, children)] if len(children) == 2 else None

    return wait_for("gunicorn has its two workers", 30, whole, every=0.05)


def gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def replaced(here: Stage, load: Load, verb: str, old: list[int]) -> list[int]:
    """What stands there after one recycle or restart; nobody of `old` is left by then."""
    begun = time.monotonic()
    here.do("workers", verb, "web")
    (master,) = here.wait_until_serving("web", 1)
    took = time.monotonic() - begun
    # When the daemon shows nobody but the new master, nobody is left of the old: not a moment of patience here.
    expect(gone(old), f"{verb} is over after {took:.1f} s, and some of {old} live on: {describe(old)}")
    new = tree(master)
    expect(not set(old) & set(new), f"{old}, then {new}")
    expect(sorted(here.population()) == sorted(new), f"{new} should be all: {here.population()}")
    expect(not load.refused, f"{verb}: {first_of(load.refused)}")
    return new


def flavour(name: str, kind: list[str]) -> str:
    port = free_port()
    with stage(settings(port, kind)) as here:
        (master,) = here.wait_until_serving("web", 1)
        old = tree(master)
        with Load(port, 4, keep_alive=False) as load:
            for _ in range(ROUNDS):
                old = replaced(here, load, "recycle", old)
            overlap = load.summary()
            expect(not load.lost, f"{name}, recycled: {overlap}: {first_of(load.lost)}")
            for _ in range(ROUNDS // 2):
                # Stopped first: who comes meanwhile waits on the socket.
                old = replaced(here, load, "restart", old)
        print(f"{name}: {load.summary()}", flush=True)
        expect(not load.lost, f"{name}, restarted: {load.summary()}: {first_of(load.lost)}")
        recycled = here.events("worker_recycled")
        early = ["ready before" in event["detail"] for event in recycled]
        # A restart is a recycle that stops first.
        expect(early == [True] * ROUNDS + [False] * (ROUNDS // 2), f"with overlap: {early}")
        here.do("workers", "stop", "web")
        expect(gone(old), f"stopped, and some of {old} live on")
        here.do("workers", "start", "web")
        here.wait_until_serving("web", 1)
        here.stop()
        here.expect_nobody("after the daemon's end")
    return f"{name}: {load.summary()}"


def case() -> str:
    return f"{ROUNDS} recycles and {ROUNDS // 2} restarts of each; " + "; ".join(
        [flavour("sync", ["wsgi:app"]), flavour("uvicorn workers", ["-k", "uvicorn_worker.UvicornWorker", "patient:app"])]
    )


run(case)

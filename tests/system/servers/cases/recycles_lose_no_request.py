#!/usr/bin/env python3
"""Two hundred recycles of real uvicorn replicas on one socket, under load with and without keep-alive, lose no request.

uvicorn itself resets a connection that it has accepted and not read when it is told to end (see apps/patient.py); with that
mended, nothing may be lost. Beside it runs uvicorn as it comes: there a connection may be reset in the moment of a recycle, before
the application has seen the request, and nothing else may happen.
"""

import os
import time
from concurrent.futures import ThreadPoolExecutor

from load import Load, first_of
from scenario import SCRATCH, expect, run
from stage import SERVERS, Stage, free_port, stage

RECYCLES = int(os.environ.get("ROUNDS", "200"))
REPLICAS = 2
# The application, and whether connections are kept.
VARIANTS = {"single": ("patient:app", False), "kept": ("patient:app", True), "stock": ("asgi:app", False)}
# Of all recycles.
SHARES = {"single": 0.4, "kept": 0.4, "stock": 0.2}


def worker(name: str, port: int) -> str:
    return f"""
[workers.{name}]
command = ["{SERVERS}/uvicorn", "{VARIANTS[name][0]}", "--fd", "3", "--no-access-log"]
listen = ["127.0.0.1:{port}"]
replicas = {REPLICAS}
env = {{ SEEN = "{SCRATCH}/seen-{name}" }}
ready = {{ http = "http://127.0.0.1:{port}/", within = "60s" }}
"""


def variant(here: Stage, name: str, port: int) -> str:
    before = here.wait_until_serving(name, REPLICAS)
    begun = time.monotonic()
    moments: list[float] = []
    with Load(port, 2, VARIANTS[name][1]) as load:
        for _ in range(round(RECYCLES * SHARES[name]) // REPLICAS):
            here.do("workers", "recycle", name)
            after = here.wait_until_serving(name, REPLICAS)
            expect(not set(before) & set(after), f"not all were replaced: {before}, then {after}")
            before = after
            moments.append(time.monotonic())
    said = f"{name}: {load.summary()} in {time.monotonic() - begun:.0f} s"
    print(said, flush=True)
    expect(not load.refused, f"{said}: {first_of(load.refused)}")
    expect(load.answered > 10 * len(moments), f"there was hardly any load: {said}")
    asked = (SCRATCH / f"seen-{name}").read_text().splitlines()
    expect(len(asked) == len(set(asked)), f"{len(asked) - len(set(asked))} requests were done twice")
    done = set(load.crossed) & set(asked)
    expect(not done, f"closed without an answer, but done: {sorted(done)[:5]}")
    if name == "stock":
        other = [fault for fault in load.lost if "before the first byte" not in fault.why or fault.number in asked]
        expect(not other, f"{said}: {first_of(other)}")
        # Each uvicorn that ends may do it to each client once.
        expect(len(load.lost) <= 2 * REPLICAS * len(moments) / 4, f"{said}: {first_of(load.lost)}")
    else:
        expect(not load.lost, f"{said}: {first_of(load.lost)}")
    return said


def case() -> str:
    ports = {name: free_port() for name in VARIANTS}
    # Side by side: most of a recycle is waiting for uvicorn to start and to end.
    with stage("".join(worker(*pair) for pair in ports.items())) as here:
        with ThreadPoolExecutor() as together:
            said = list(together.map(lambda pair: variant(here, *pair), ports.items()))
        recycled = here.events("worker_recycled")
        expect(len(recycled) == RECYCLES, f"{len(recycled)} recycles were told")
        unready = [event for event in recycled if "ready before" not in event["detail"]]
        expect(not unready, f"stopped before the replacement was ready: {unready}")
        here.stop()
        here.expect_nobody("after the daemon's end")
    return f"{RECYCLES} recycles; {'; '.join(said)}"


run(case)

#!/usr/bin/env python3
"""SIGKILL of a hundred workers and five daemons under load: nothing is refused, only what a killed worker had in hand is lost, all is as wanted after."""

import contextlib
import os
import random
import signal
import time

from load import Load, first_of
from scenario import expect, run, wait_for
from stage import SERVERS, free_port, stage

KILLS, DAEMONS, REPLICAS = int(os.environ.get("ROUNDS", "100")), 5, 4


def case() -> str:
    seed = int(os.environ.get("SEED", time.time_ns() % 1_000_000))
    print(f"SEED={seed}", flush=True)
    chance = random.Random(seed)
    port = free_port()
    settings = f"""
[workers.web]
command = ["{SERVERS}/uvicorn", "asgi:app", "--fd", "3", "--no-access-log"]
listen = ["127.0.0.1:{port}"]
replicas = {REPLICAS}
ready = {{ http = "http://127.0.0.1:{port}/", within = "60s" }}
# Killed in their first moments again and again they are no crash loop here.
backoff = {{ first = "50ms", longest = "200ms", give_up = 100000, healthy_after = "200ms" }}
"""
    killed: list[float] = []
    adopted = 0
    with stage(settings) as here:
        here.wait_until_serving("web", REPLICAS)
        with Load(port, 4, keep_alive=False) as load:
            storm = ["worker"] * KILLS
            for number in range(DAEMONS):
                storm.insert((number + 1) * len(storm) // (DAEMONS + 1), "daemon")
            for what in storm:
                time.sleep(chance.uniform(0, 0.8))
                here.must_run()
                there = here.population()
                if what == "worker":
                    if not there:
                        continue
                    # Noted before and after: whoever was in its hands at this moment may be lost.
                    killed.append(time.monotonic())
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(chance.choice(there), signal.SIGKILL)
                    killed.append(time.monotonic())
                    continue
                # The sockets are the workers' too, as long as there is one: who comes meanwhile waits.
                wait_for("somebody holds the socket", 20, here.population, every=0.01)
                here.kill()
                left = here.population()
                time.sleep(chance.uniform(0, 0.3))
                here.start()
                wait_for("the next daemon has begun", 30, lambda: here.events("worker_adopted") or here.events("worker_started"), every=0.02)
                told = here.events("worker_adopted")
                expect(told, f"nobody was adopted; left were {left}")
                strange = [event for event in told if event["pid"] not in left]
                expect(not strange, f"adopted without having been there: {strange}")
                adopted += len(told)
                wait_for("the next daemon answers", 30, lambda: here.replicas("web"), every=0.05)
            here.wait_until_alone("web", REPLICAS, 90)
            # All of a second more, in which nothing may be lost any more.
            calm = time.monotonic()
            answered = load.answered
            time.sleep(1)
            expect(load.answered > answered, "nobody is answered after the storm")
        late = [fault for fault in load.lost if fault.begun > calm]
        innocent = [fault for fault in load.lost if not fault.met(killed)]
        here.wait_until_alone("web", REPLICAS, 1)
        said = f"{KILLS} workers and {DAEMONS} daemons killed, {adopted} adopted; {load.summary()}"
        print(said, flush=True)
        expect(not load.refused, f"{said}: {first_of(load.refused)}")
        expect(not late, f"{said}; after the storm: {first_of(late)}")
        expect(not innocent, f"{said}; lost without a kill: {first_of(innocent)}")
        wrong = [fault for fault in load.lost if "Timeout" in fault.why or "timed out" in fault.why]
        expect(not wrong, f"{said}; not answered at all: {first_of(wrong)}")
        expect(len(load.lost) <= 4 * KILLS, f"{said}: more than each kill could have met")
        here.stop()
        here.expect_nobody("after the daemon's end")
    return said


run(case)

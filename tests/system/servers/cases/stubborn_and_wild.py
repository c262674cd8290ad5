#!/usr/bin/env python3
"""A deaf worker, a tree that forks anew without end, one that is never ready and one that crashes: each is stopped in time at any moment of its life."""

import contextlib
import os
import random
import signal
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from scenario import PROGRAMS, SCRATCH, Failed, expect, run
from stage import APPS, Stage, describe, marked, quantile, stage

ROUNDS = int(os.environ.get("ROUNDS", "200"))
WITHIN = 0.5
# Beyond `stop.within`: that long the kill and the clearing up may take.
GRACE = 0.5
# Nobody at all may be left by then.
LAST = 1.0
WILD = 200

COMMANDS = {
    "deaf": [f"{PROGRAMS}/deaf", "{alive}"],
    "wild": [f"{PROGRAMS}/wild", str(WILD), "{alive}"],
    "never": [sys.executable, f"{APPS}/never.py", "{alive}"],
    # Ends by itself and leaves deaf ones behind.
    "crash": ["/bin/sh", "-c", f"{PROGRAMS}/deaf {{alive}} & sleep 0.1; exit 1"],
}
EXTRA = {"never": 'ready = { tcp = "127.0.0.1:1", within = "400ms" }', "deaf": 'recycle = { overlap = "always" }'}
MOMENTS = ["birth", "run", "recycle", "restart", "crash", "late"]


@dataclass
class Kind:
    name: str
    here: Stage
    chance: random.Random
    took: list[float] = field(default_factory=list)
    moments: dict[str, int] = field(default_factory=dict)
    states: dict[str, int] = field(default_factory=dict)
    most: int = 0

    def open(self) -> None:
        # Open for reading from before the first start: nobody has to wait for the other end.
        self.alive = os.open(fifo(self.name), os.O_RDONLY | os.O_NONBLOCK)

    def somebody(self) -> bool:
        """Somebody holds the FIFO, or lives and has not come to it yet."""
        try:
            os.read(self.alive, 1)
        except BlockingIOError:
            return True
        return bool(self.members())

    def members(self) -> list[int]:
        return marked(f"{self.name}@{self.here.mark}", "KIND")

    def ask(self, what: str) -> int:
        return self.here.request("POST", f"/admin/workers/{self.name}/{what}")[0]

    def live(self, moment: str) -> None:
        """Up to the moment in which it will be stopped."""
        self.ask("start?wait=0s")
        if moment == "birth":
            time.sleep(self.chance.uniform(0, 0.05))
            return
        time.sleep(self.chance.uniform(0.1, 1.0))
        if moment == "late":
            # Into the pauses of those that end by themselves, and the second and third try of one that is not ready.
            time.sleep(self.chance.uniform(0, 1.5))
        elif moment in ("recycle", "restart"):
            self.ask(f"{moment}?wait=0s")
            time.sleep(self.chance.uniform(0, 0.8))
        elif moment == "crash":
            for replica in self.here.replicas(self.name):
                if pid := replica.get("pid"):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(self.chance.uniform(0, 0.8))

    def round(self, number: int) -> None:
        moment = MOMENTS[number % len(MOMENTS)]
        self.live(moment)
        for replica in self.here.replicas(self.name):
            self.states[replica["state"]] = self.states.get(replica["state"], 0) + 1
        self.most = max(self.most, len(self.members()))
        begun = time.monotonic()
        expect(self.ask("stop?wait=0s") in (200, 202), f"{self.name} was not to be stopped")
        while self.somebody():
            took = time.monotonic() - begun
            if took > WITHIN + LAST:
                left = self.members()
                raise Failed(f"{self.name}, stopped at {moment}: after {took:.2f} s {len(left)} live on: {describe(left[:5])}")
            time.sleep(0.005)
        self.took.append(time.monotonic() - begun)
        self.moments[moment] = self.moments.get(moment, 0) + 1
        status = self.ask("stop?wait=5s")
        expect(status == 200, f"{self.name}, stopped at {moment}: nobody is left, and the daemon says {status}")

    def all(self) -> None:
        self.open()
        for number in range(ROUNDS // len(COMMANDS)):
            self.round(number)

    def summary(self) -> str:
        late = sum(took > WITHIN + GRACE for took in self.took)
        text = f"{self.name} median {1e3 * statistics.median(self.took):.0f} ms, p95 {1e3 * quantile(self.took, 0.95):.0f}, worst {1e3 * max(self.took):.0f}"
        return text + (f", {late} late" if late else "")


def fifo(name: str) -> str:
    return f"{SCRATCH}/{name}.alive"


def worker(name: str, mark: str) -> str:
    words = ", ".join(f'"{word.format(alive=fifo(name))}"' for word in COMMANDS[name])
    return f"""
[workers.{name}]
command = [{words}]
env = {{ KIND = "{name}@{mark}" }}
stop = {{ within = "{WITHIN}s" }}
backoff = {{ first = "300ms", longest = "1s", give_up = 100000 }}
{EXTRA.get(name, "")}
"""


def case() -> str:
    seed = int(os.environ.get("SEED", time.time_ns() % 1_000_000))
    print(f"SEED={seed}", flush=True)
    for name in COMMANDS:
        os.mkfifo(fifo(name))
    settings = "".join(worker(name, "MARK") for name in COMMANDS)
    with stage(lambda mark: settings.replace("@MARK", f"@{mark}")) as here:
        kinds = [Kind(name, here, random.Random(f"{seed} {name}")) for name in COMMANDS]
        with ThreadPoolExecutor() as together:
            for done in [together.submit(kind.all) for kind in kinds]:
                done.result()
        for kind in kinds:
            print(f"{kind.summary()}; moments {kind.moments}; states met {kind.states}; up to {kind.most} processes", flush=True)
        here.must_run()
        for kind in kinds:
            late = [took for took in kind.took if took > WITHIN + GRACE]
            expect(not late, f"{kind.name}: {len(late)} of {len(kind.took)} took longer than {WITHIN + GRACE:.1f} s: {sorted(late)[-5:]}")
        wild = next(kind for kind in kinds if kind.name == "wild")
        expect(wild.most > WILD / 2, f"the wild tree never had more than {wild.most} processes")
        here.stop()
        here.expect_nobody("after the daemon's end")
    total = sum(len(kind.took) for kind in kinds)
    return f"{total} stops with {WITHIN} s to end in: " + "; ".join(kind.summary() for kind in kinds)


run(case)

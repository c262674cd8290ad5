#!/usr/bin/env python3
"""A leaking worker in a small container is asked, then replaced, and the container is never out of memory."""

from container import SMALL, Container
from scenario import SCRATCH, expect, run, wait_for

SETTINGS = """
[policy.memory]
sustain = "1s"

[workers.leak]
command = ["/leak", "10", "/data/record"]
shed_signal = "SIGUSR1"
stop = { signal = "SIGTERM", within = "2s" }
backoff = { first = "100ms" }
"""


def case() -> str:
    (SCRATCH / "plimsoll.toml").write_text(SETTINGS)
    SCRATCH.chmod(0o777)
    with Container("-c", "/data/plimsoll.toml", options=(*SMALL, f"--volume={SCRATCH}:/data")) as small:
        small.wait_until_up()
        wait_for(
            "the worker was replaced",
            90,
            lambda: small.metrics().value("plimsoll_worker_recycles_total", worker="leak", cause="memory") >= 1,
        )
        words = [line.split() for line in (SCRATCH / "record").read_text().splitlines()]
        ended = next((line for line in words if line[0] == "terminated"), None)
        expect(words[0][0] == "asked", f"the worker was not asked first: {words}")
        expect(ended is not None, f"the worker was replaced without SIGTERM: {words}")
        expect(small.inspect("State.OOMKilled") == "false", "the container was out of memory")
        expect(small.oom_kills() == 0, f"the kernel killed {small.oom_kills()}")
    return f"asked at {words[0][2]} MiB, ended at {ended[2]} MiB of 256"


run(case)

#!/usr/bin/env python3
"""The engine does what the other cases assume: a container of nothing but a hog is held by its own CPU and memory limits."""

from container import Container, docker
from scenario import expect, expect_near, run


def case() -> str:
    options = ("--memory=256m", "--cpus=0.5", "--entrypoint=/hog")
    with Container("100", options=options) as hog:
        used = hog.cores_used(3)
        # It asks for a whole core. Above the limit only by the rounding of its periods; below it on a busy machine.
        expect(0.2 < used < 0.55, f"{used:.3f} cores used with a limit of 0.5")
        limit = hog.memory_limit()
        expect_near("memory limit", limit, 256 << 20, 0)
        docker("stop", "--time=1", hog.id)
    return f"{used:.2f} cores of 0.5, {limit >> 20} MiB"


run(case)

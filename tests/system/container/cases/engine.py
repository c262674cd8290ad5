#!/usr/bin/env python3
"""The engine does what the other cases assume: a container of nothing but a hog is held by its own CPU and memory limits."""

from container import Container, docker
from scenario import expect_near, run


def case() -> str:
    options = ("--memory=256m", "--cpus=0.5", "--entrypoint=/hog")
    with Container("100", options=options) as hog:
        used = hog.cores_used(3)
        # 0.5 of a core, with the rounding of its 100 ms periods.
        expect_near("cores used", used, 0.5, 0.05)
        limit = int((hog.group("memory") / "memory.limit_in_bytes").read_text())
        expect_near("memory limit", limit, 256 << 20, 0)
        docker("stop", "--time=1", hog.id)
    return f"{used:.2f} cores of 0.5, {limit >> 20} MiB"


run(case)

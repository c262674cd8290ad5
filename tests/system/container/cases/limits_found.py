#!/usr/bin/env python3
"""As process 1 of a small container the daemon finds the container's limits, not the machine's."""

from container import Container
from scenario import expect, run


def case() -> str:
    with Container("--", "/hog", "5") as small:
        small.wait_until_up()
        page = small.metrics()
        memory, cores = page.value("plimsoll_memory_limit_bytes"), page.value("plimsoll_cpu_limit_cores")
        expect(memory == 256 << 20, f"memory limit {memory:.0f}, expected {256 << 20}")
        expect(cores == 0.5, f"CPU limit {cores}, expected 0.5")
        where = small.status()["environment"]
        expect(where["scope"] == "container", f"scope is {where['scope']}")
        expect(where["platform"] in ("docker", "container"), f"platform is {where['platform']}")
    return f"{memory / (1 << 20):.0f} MiB and {cores} cores, platform {where['platform']}, enforcement {where['enforcement']}"


run(case)

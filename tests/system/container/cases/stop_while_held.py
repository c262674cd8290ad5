#!/usr/bin/env python3
"""Three replicas that are all held stopped in the moment of a `docker stop` with little grace end by the signal they know, none is killed."""

import time

from container import SMALL, Container, docker
from scenario import SCRATCH, expect, run, wait_for

GRACE = 2
SETTINGS = """
[policy.cpu]
sustain = "1s"

[workers.hogs]
command = ["/hog", "100"]
replicas = 3
stop = { signal = "SIGUSR1", within = "30s" }
"""


def stopped_hogs(container: Container) -> int:
    return [state for name, state in container.processes().values() if name == "hog"].count("T")


def case() -> str:
    (SCRATCH / "plimsoll.toml").write_text(SETTINGS)
    SCRATCH.chmod(0o755)
    with Container(options=(*SMALL, f"--volume={SCRATCH}:/etc/plimsoll:ro")) as small:
        small.wait_until_throttled("cpu")
        wait_for("all three are held stopped at once", 60, lambda: stopped_hogs(small) == 3, every=0.002)
        begun = time.monotonic()
        docker("stop", f"--time={GRACE}", small.id)
        took = time.monotonic() - begun
        # 137 would be the engine's SIGKILL. A daemon that speaks for no command ends well.
        code = small.inspect("State.ExitCode")
        expect(code == "0", f"exit code {code} after {took:.1f} s of {GRACE}, expected 0")
        expect(small.logs().count("by SIGUSR1") + small.logs().count("SIGUSR1") > 0, "no worker is told to have ended by SIGUSR1")
    return f"three held hogs gone after {took:.1f} s of {GRACE}"


run(case)

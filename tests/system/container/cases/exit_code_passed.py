#!/usr/bin/env python3
"""The container's exit code is the command's own, 128 plus the signal's number when one ended it, 127 when there is no such command."""

from container import Container
from scenario import expect, run


def case() -> str:
    seen = {}
    for what, command, wanted in (
        ("its own code", ("/orphan", "1", "42"), 42),
        ("success", ("/orphan", "1", "0"), 0),
        ("killed by SIGKILL", ("/killed", "9"), 137),
        ("no such command", ("/no/such/command",), 127),
    ):
        with Container("--", *command) as container:
            code = seen[what] = container.wait()
            expect(code == wanted, f"{what}: exit code {code}, expected {wanted}")
    return ", ".join(f"{what} {code}" for what, code in seen.items())


run(case)

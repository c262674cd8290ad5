#!/usr/bin/env python3
"""In an image with nothing else in it every command works or says what it lacks and what helps; the health check follows the daemon."""

import json
import re
import subprocess

from container import SHIPPED, SMALL, Container, docker
from scenario import SCRATCH, expect, run, wait_for

# The command beside the running daemon, its exit code, and what its output has in it.
COMMANDS = [
    (("status",), 0, "CPU 0.50 cores"),
    (("status", "--json"), 0, '"scope": "container"'),
    (("events",), 0, "daemon_started"),
    (("explain",), 0, "memory"),
    (("explain", "memory"), 0, "256 MiB"),
    (("workers",), 0, ""),
    (("jobs", "list"), 0, "jobs"),
    (("jobs", "next"), 0, ""),
    (("backups", "list"), 2, "no backup job in the settings"),
    (("check",), 0, ""),
    (("doctor",), 0, "process 1"),
    (("health",), 0, ""),
    (("metrics",), 0, "plimsoll_memory_limit_bytes 268435456"),
    (("init", "--stdout"), 0, "256 MiB"),
    (("config", "show"), 0, "[policy.memory]"),
    (("config", "schema"), 0, "properties"),
    (("completions", "bash"), 0, "_plimsoll"),
    (("release",), 0, ""),
    (("reload",), 0, ""),
    (("--help",), 0, "plimsoll run -- "),
]
# Settings that need what is not in the image: what is said of them, and what helps.
LACKING = [
    ('[workers.a]\ncommand = ["/usr/bin/plimsoll", "health"]\nuser = "app"', "/etc/passwd is not there", "a number"),
    ('[workers.a]\ncommand = ["/usr/bin/plimsoll", "health"]\nuser = "0"\ngroup = "app"', "/etc/group is not there", "a number"),
    ('[workers.a]\ncommand = ["sh", "-c", "true"]', '"sh"', "program"),
    (
        '[jobs.j]\nkind = "files"\npaths = ["/data"]\nkeep = "1h"\ntimezone = "Europe/Berlin"',
        "no time zone data",
        "/usr/share/zoneinfo",
    ),
]
FITTING = """
[workers.a]
command = ["/usr/bin/plimsoll", "health"]
user = "65532"

[jobs.utc]
kind = "files"
paths = ["/data"]
keep = "1h"
schedule = "30 3 * * *"
timezone = "UTC"

[jobs.unnamed]
kind = "files"
paths = ["/data"]
keep = "1h"
schedule = "@daily"
"""


def once(*arguments: str, options: tuple[str, ...] = ()) -> tuple[int, str]:
    """The image run as a person would, to its end."""
    done = subprocess.run(
        ["docker", "run", "--rm", "--network=none", *SMALL, *options, SHIPPED, *arguments],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    text = done.stdout + done.stderr
    expect("panicked" not in text, f"{arguments}: {text}")
    return done.returncode, text


def commands(bare: Container) -> None:
    for words, code, wanted in COMMANDS:
        done = bare.command(*words)
        text = done.stdout + done.stderr
        expect(done.returncode == code, f"plimsoll {' '.join(words)} ended with {done.returncode}: {text}")
        expect(wanted in text, f"plimsoll {' '.join(words)} says nothing of {wanted!r}: {text}")
        expect("panicked" not in text, f"plimsoll {' '.join(words)}: {text}")


def health_follows(bare: Container) -> None:
    def becomes(state: str) -> None:
        wait_for(f"the engine takes it for {state}", 40, lambda: bare.inspect("State.Health.Status") == state)

    becomes("healthy")
    docker("kill", "--signal=SIGSTOP", bare.id)
    becomes("unhealthy")
    docker("kill", "--signal=SIGCONT", bare.id)
    becomes("healthy")


def ways_to_begin() -> None:
    code, text = once("--help")
    expect(code == 0 and "Usage: plimsoll run" in text, f"--help: {code} {text}")
    code, text = once("doctor")
    expect(code == 2 and "--entrypoint plimsoll IMAGE doctor" in text, f"a command in place of flags: {code} {text}")
    code, text = once("/app")
    expect(code == 2 and "plimsoll run -- /app" in text, f"a program without the dashes: {code} {text}")
    code, text = once("--", "/app")
    expect(code == 127 and "/app is not there" in text, f"a program that is not there: {code} {text}")
    code, text = once("--", "/usr/bin/plimsoll", "--version")
    expect(code == 0 and re.search(r"^plimsoll \d", text, re.MULTILINE), f"a program that is there: {code} {text}")


def lacking() -> None:
    for settings, why, remedy in LACKING:
        code, text = checked(settings)
        expect(code == 78 and why in text and remedy in text, f"{settings}\nis said to be: {code} {text}")
    code, text = checked(FITTING)
    expect(code == 0, f"{FITTING}\nis said to be: {code} {text}")


def checked(settings: str) -> tuple[int, str]:
    (SCRATCH / "plimsoll.toml").write_text(settings)
    return once("check", options=("--entrypoint=/usr/bin/plimsoll", f"--volume={SCRATCH}:/etc/plimsoll:ro"))


def case() -> str:
    SCRATCH.chmod(0o755)
    every = ("--health-interval=1s", "--health-timeout=2s", "--health-retries=2")
    with Container(options=(*SMALL, *every), image=SHIPPED) as bare:
        bare.wait_until_up()
        expect("nothing to supervise" in bare.logs(), f"it does not say that it has nothing to guard: {bare.logs()}")
        commands(bare)
        health_follows(bare)
        # Nobody to ask: the record is there all the same.
        docker("stop", bare.id)
        expect(bare.inspect("State.ExitCode") == "0", f"it ended with {bare.inspect('State.ExitCode')}")
        checks = json.loads(docker("inspect", "--format={{json .State.Health.Log}}", bare.id))
    ways_to_begin()
    lacking()
    return f"{len(COMMANDS)} commands, {len(LACKING)} things that are not there, {len(checks)} health checks at the end"


run(case)

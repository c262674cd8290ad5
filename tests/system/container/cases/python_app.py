#!/usr/bin/env python3
"""A uvicorn application behind our entry point in a small container: limits, CPU line, a leak, signals, its own shutdown and exit code."""

import re
import time

from container import APPLICATION, SMALL, Container, docker
from scenario import SCRATCH, expect, expect_near, run, wait_for

SETTINGS = """
[policy.cpu]
sustain = "1s"

[policy.memory]
sustain = "1s"

[workers.main]
backoff = { first = "100ms" }
"""
# Passed on to the command. SIGHUP is ours.
PASSED_ON = ("SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGWINCH")


def said(container: Container, what: str) -> list[int]:
    """The pid, in the container's numbering, of each life of the application that said so."""
    return [int(pid) for pid in re.findall(rf"^service (\d+): {what}$", container.logs(), re.MULTILINE)]


def wait_until_serving(container: Container) -> None:
    container.wait_until_up()
    wait_for("the application answers", 60, lambda: container.ask("/health") == "ok")


def limits_found(container: Container) -> None:
    page = container.metrics()
    expect(page.value("plimsoll_memory_limit_bytes") == container.memory_limit(), "the container's memory limit was not found")
    expect(page.value("plimsoll_cpu_limit_cores") == 0.5, "the container's CPU limit was not found")


def held_under_load(container: Container) -> tuple[float, float]:
    """Cores used, and how long the slowest answer to the light request took."""
    with container.load("/burn?seconds=0.1", threads=3):
        wait_for("CPU is throttled", 60, lambda: container.metrics().value("plimsoll_policy_throttled") == 1)
        wait_for("usage has come down to the line", 30, lambda: container.cores_used(2) < 0.43)
        begun, before, slowest, answers = time.monotonic(), container.cpu_seconds(), 0.0, 0
        while time.monotonic() < begun + 10:
            asked = time.monotonic()
            expect(container.ask("/health") == "ok", "the light request was not answered")
            slowest, answers = max(slowest, time.monotonic() - asked), answers + 1
            time.sleep(0.2)
        used = (container.cpu_seconds() - before) / (time.monotonic() - begun)
    print(f"{answers} light requests answered, the slowest after {slowest:.2f} s")
    expect_near("cores used over 10 s", used, 0.40, 0.02)
    expect(slowest < 5, f"a light request took {slowest:.1f} s")
    return used, slowest


def leak_recycled(container: Container) -> None:
    def recycled() -> bool:
        try:
            container.ask("/leak?mebibytes=6")
        except OSError:
            # It is being replaced.
            time.sleep(0.2)
        return container.metrics().value("plimsoll_worker_recycles_total", worker="main", cause="memory") >= 1

    wait_for("the leaking application is replaced", 90, recycled, every=0.02)
    wait_for("its successor answers", 60, lambda: len(said(container, "begun")) == 2 and container.ask("/health") == "ok")
    expect(container.oom_kills() == 0, f"the kernel killed {container.oom_kills()}")
    expect(container.inspect("State.OOMKilled") == "false", "the container was out of memory")


def signals_passed_on(container: Container) -> None:
    life = said(container, "begun")[-1]
    for name in PASSED_ON:
        docker("kill", f"--signal={name}", container.id)
        wait_for(f"{name} has reached the application", 15, lambda: said(container, f"got {name}") == [life])
    docker("kill", "--signal=SIGHUP", container.id)
    wait_for("SIGHUP has had the settings read again", 15, lambda: "config_reloaded" in container.logs())
    expect(not said(container, "got SIGHUP"), "SIGHUP, which is for the daemon, was passed on")


def case() -> str:
    (SCRATCH / "plimsoll.toml").write_text(SETTINGS)
    SCRATCH.chmod(0o755)
    options = (*SMALL, f"--volume={SCRATCH}/plimsoll.toml:/etc/plimsoll/plimsoll.toml:ro")
    with Container(options=(*options, "--user=10001:10001"), image=APPLICATION) as app:
        wait_until_serving(app)
        limits_found(app)
        used, slowest = held_under_load(app)
        wait_for("CPU is let go", 60, lambda: app.metrics().value("plimsoll_policy_throttled") == 0)
        leak_recycled(app)
        signals_passed_on(app)
        wait_for("it is healthy to the engine", 30, lambda: app.inspect("State.Health.Status") == "healthy")
        begun = time.monotonic()
        docker("stop", "--time=10", app.id)
        stopped = time.monotonic() - begun
        expect(stopped < 8, f"the stop took {stopped:.1f} s")
        expect(len(said(app, "shut down in order")) == 2, "not every life of the application ended by its own shutdown")
        # uvicorn has itself ended by the signal once it is done.
        code = app.inspect("State.ExitCode")
        expect(code == "143", f"exit code {code}, expected 143")
    with Container("python3", "-c", "raise SystemExit(7)", options=options, image=APPLICATION) as ends:
        code = ends.wait()
        expect(code == 7, f"exit code {code}, expected the command's own 7")
    return f"{used:.3f} cores of 0.5 with light requests within {slowest:.2f} s, recycled with no OOM, {len(PASSED_ON)} signals, stop in {stopped:.1f} s"


run(case)

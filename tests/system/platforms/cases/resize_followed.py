#!/usr/bin/env python3
"""Limits that change while it runs are followed with the settings of the Kubernetes examples, as the entry point and as a sidecar, nothing restarted."""

import concurrent.futures
import time
from collections.abc import Callable
from typing import Any

from container import Container, docker
from pod import POD_USER, Pod, write_limits
from scenario import SCRATCH, expect, run, wait_for
from shipped import PACKAGING

# Both made by the suite: the compose example's application with Plimsoll as its entry point, and Plimsoll alone.
APP, GUARD = "app:1", "plimsoll:0.1.0"
# What every manifest asks for, as the engine's own options.
HARDENED = (f"--user={POD_USER}", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--tmpfs=/tmp")
LIMITED = ("--memory=512m", "--memory-swap=512m", "--cpus=1")
MIB = 1 << 20
# A look is 2 s apart at most; the rest is for asking by `docker exec` on a busy machine.
LONGEST_SECONDS = 4
# The one thing that is not as shipped: how long a line must be exceeded before anything is done, 10 s, is not what is tested.
SOONER = "--env=PLIMSOLL_POLICY__CPU__SUSTAIN=2s"
# The folders that are volumes in the manifests.
STATE = tuple(f"--tmpfs={path}:mode=1777" for path in ("/var/lib/plimsoll", "/run/plimsoll"))
VOLUME = SCRATCH / "limits"


def settings(example: str) -> str:
    return f"--volume={PACKAGING / 'kubernetes' / example / 'plimsoll.toml'}:/etc/plimsoll/plimsoll.toml:ro"


def limits(status: dict[str, Any]) -> tuple[float, int]:
    return status["cpu"]["limit_cores"], status["memory"]["limit_bytes"] // MIB


def resized(guard: Container, change: Callable[[], object], wanted: tuple[float, int]) -> float:
    """How long after the change the daemon says so."""
    change()
    begun = time.monotonic()
    wait_for(f"the limits are {wanted}", 30, lambda: limits(guard.status()) == wanted)
    took = time.monotonic() - begun
    expect(took < LONGEST_SECONDS, f"{wanted} were seen after {took:.1f} s")
    return took


def held(guard: Container, app: Container, line: float) -> float:
    """Under a load that would take all there is, what the application uses: its line has moved with the limit.

    How exactly a line is held is for the container suite to measure; here others are busy at the same time.
    """
    with app.load("/burn?seconds=3", threads=3):
        guard.wait_until_throttled("cpu")

        def at_the_line() -> float:
            cores = app.cores_used(4)
            return cores if line - 0.1 < cores < line + 0.03 else 0

        used = wait_for(f"usage is at the line of {line} cores", 40, at_the_line)
    print(f"cores used over 4 s: {used:.3f}")
    return used


def entry_point() -> tuple[float, float]:
    """`packaging/kubernetes/resize`: the kubelet writes the container's control group, as `docker update` does."""
    with Container(image=APP, options=(*HARDENED, *LIMITED, *STATE, SOONER, settings("resize"))) as app:
        wait_for("the application answers", 30, lambda: app.ask("/health") == "ok")
        begun = app.inspect("State.StartedAt")
        wait_for("the limits are found", 10, lambda: limits(app.status()) == (1.0, 512))
        took = resized(app, lambda: docker("update", "--memory=1g", "--memory-swap=1g", "--cpus=0.5", app.id), (0.5, 1024))
        used = held(app, app, 0.4)
        told = [line for line in app.logs().splitlines() if "limit_changed" in line]
        expect(len(told) >= 2, f"told of {told}")
        # And the other way: more of one, less of the other.
        took = max(took, resized(app, lambda: docker("update", "--memory=256m", "--memory-swap=256m", "--cpus=1", app.id), (1.0, 256)))
        expect(app.inspect("State.StartedAt") == begun, "the container was restarted")
        expect(app.metrics().value("plimsoll_worker_starts_total", worker="main") == 1, "the application was restarted")
    return took, used


def sidecar() -> tuple[float, float]:
    """`packaging/kubernetes/sidecar`: the limits are told by a downward API's volume, written anew as the kubelet does."""
    write_limits(VOLUME, memory=512 * MIB, cpu=1000)
    # What the pod has: the application as it is, without Plimsoll, and nothing said of the sidecar's CPU.
    command = ("app.main:app", "--host", "127.0.0.1", "--port", "8000")
    beside = ("--memory=64m", *HARDENED, *STATE, SOONER, settings("sidecar"), f"--volume={VOLUME}:/etc/podlimits:ro")
    with (
        Pod() as pod,
        Container(*command, image=APP, options=(pod.shared, *HARDENED, *LIMITED, "--entrypoint=/usr/local/bin/uvicorn")) as app,
        Container("-c", "/etc/plimsoll/plimsoll.toml", image=GUARD, options=(pod.shared, *beside)) as guard,
    ):
        wait_for("the application answers", 30, lambda: app.ask("/health") == "ok")
        wait_for("the application's container is seen", 30, lambda: guard.status()["environment"]["scope"] == "worker")
        wait_for("the limits are found", 10, lambda: limits(guard.status()) == (1.0, 512))

        def resize() -> None:
            docker("update", "--memory=1g", "--memory-swap=1g", "--cpus=0.8", app.id)
            write_limits(VOLUME, memory=1024 * MIB, cpu=800)

        took = resized(guard, resize, (0.8, 1024))
        # The file alone: a lower limit of it holds, whatever the control group has.
        took = max(took, resized(guard, lambda: write_limits(VOLUME, memory=256 * MIB, cpu=500), (0.5, 256)))
        status = guard.status()
        expect((status["cpu"]["limit_source"], status["memory"]["limit_source"]) == ("file", "file"), f"limits from {status['cpu']}, {status['memory']}")
        used = held(guard, app, 0.4)
        expect("limit_changed" in guard.logs(), "it is not told")
    return took, used


def case() -> str:
    # Side by side: most of the time goes by until a line has been exceeded for long enough.
    with concurrent.futures.ThreadPoolExecutor() as pool:
        both = [pool.submit(way) for way in (entry_point, sidecar)]
        (inside, held_inside), (beside, held_beside) = (way.result() for way in both)
    return f"seen after {inside:.1f} s and held at {held_inside:.3f} of 0.5 cores; as a sidecar after {beside:.1f} s, held at {held_beside:.3f} of 0.5"


run(case)

#!/usr/bin/env python3
"""Beside an application whose container it may not look at, the daemon says so, holds its processes to the limits of a volume, and follows a resize."""

import json

from container import Container
from pod import POD_USER, Pod, sidecar, write_limits
from scenario import SCRATCH, expect, expect_near, run, wait_for

VOLUME = SCRATCH / "limits"


def case() -> str:
    write_limits(VOLUME, memory=256 << 20, cpu=500)
    # Both are root, but the application has capabilities that the daemon has not: that is no right to look.
    with Pod() as pod, pod.app("/hog", "100", user="0:0") as app, sidecar(pod, user="0:0", volume=VOLUME) as side:
        told = wait_for("it is told", 30, lambda: event(side, "degraded", part="scope"))
        expect("permission denied" in told["detail"] and "as the same user" in told["detail"], f"it says {told['detail']}")
        status = side.status()
        expect(status["environment"]["scope"] == "workers", f"the scope is {status['environment']['scope']}")
        notes = " ".join(status["environment"]["limitations"])
        expect("sampling.scope: the view of worker app may not be read" in notes, f"the notes are {notes}")
        limits = (status["cpu"]["limit_cores"], status["memory"]["limit_bytes"], status["cpu"]["limit_source"])
        expect(limits == (0.5, 256 << 20, "file"), f"the limits are {limits}")
        side.wait_until_throttled("cpu")
        expect(side.resource("cpu")["basis"] == "workers", "what the workers use together is judged")
        wait_for("usage has come down to the line", 30, lambda: app.cores_used(2) < 0.43)
        before = app.cores_used(8)
        expect_near("cores used over 8 s", before, 0.40, 0.02)

        write_limits(VOLUME, memory=256 << 20, cpu=250)
        changed = wait_for("the resize is seen", 10, lambda: event(side, "limit_changed", resource="cpu", now=0.25))
        expect(changed["source"] == "file" and changed["was"] == 0.5, f"it says {changed}")
        wait_for("usage follows", 30, lambda: app.cores_used(2) < 0.23)
        after = app.cores_used(8)
        expect_near("cores used over 8 s", after, 0.20, 0.02)

        expect(sum(1 for e in events(side, "degraded") if e["part"] == "scope") == 1, "it is told once")

    # Another user's process is not even looked for.
    with Pod() as pod, pod.app("/hog", "100", user=POD_USER), sidecar(pod, user="10002:10002") as side:
        told = wait_for("it is told", 40, lambda: event(side, "degraded", part="scope"))
        expect("no process of worker app is seen" in told["detail"] and "another user" in told["detail"], f"it says {told['detail']}")
    return f"{before:.3f} cores of 0.5, then {after:.3f} of 0.25"


def events(side: Container, name: str) -> list[dict]:
    lines = (line for line in side.logs().splitlines() if line.startswith("{"))
    return [event for event in map(json.loads, lines) if event.get("event") == name]


def event(side: Container, name: str, **fields: object) -> dict | None:
    matching = (e for e in events(side, name) if all(e.get(field) == value for field, value in fields.items()))
    return next(matching, None)


run(case)

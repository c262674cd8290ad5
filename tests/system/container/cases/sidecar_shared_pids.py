#!/usr/bin/env python3
"""Beside an application, in its pid namespace and as its user, the daemon finds that container's limits, holds it to 80 % of them and lets it go."""

from container import Container, docker
from pod import POD_USER, Pod, sidecar
from scenario import expect, expect_near, run, wait_for


def case() -> str:
    with Pod() as pod, pod.app("/hog", "100", user=POD_USER) as app, sidecar(pod, user=POD_USER) as side:
        side.wait_until_up()
        status = wait_for("the application's container is seen", 30, lambda: seen(side))
        limits = (status["cpu"]["limit_cores"], status["memory"]["limit_bytes"])
        expect(limits == (0.5, 256 << 20), f"the limits found are {limits}")
        sources = (status["cpu"]["limit_source"], status["memory"]["limit_source"])
        expect(sources == ("cgroup", "cgroup"), f"they are said to come from {sources}")
        # What the application uses, not the daemon or the machine.
        own = (app.group("memory") / "memory.usage_in_bytes", app.group("") / "memory.current")
        charged = next(int(file.read_text()) for file in own if file.exists())
        expect_near("memory of the scope", status["memory"]["current_bytes"], charged, 8 << 20)

        side.wait_until_throttled("cpu")
        wait_for("usage has come down to the line", 30, lambda: app.cores_used(2) < 0.43)
        used = app.cores_used(10)
        expect_near("cores used over 10 s", used, 0.40, 0.02)
        expect(side.resource("cpu")["basis"] == "scope", "all of the application's container is judged")

        # Its container is restarted: another process, another group.
        docker("restart", "--time=1", app.id)
        status = wait_for("the new one is seen", 30, lambda: seen(side))
        wait_for("it is held as well", 60, lambda: 0.3 < app.cores_used(3) < 0.43)

        docker("stop", "--time=10", side.id)
        expect(side.inspect("State.ExitCode") == "0", "the daemon ended in order")
        free = wait_for("the application is let go", 20, lambda: (cores := app.cores_used(3)) > 0.46 and cores)
    return f"{used:.3f} cores used of 0.5, {free:.3f} when let go"


def seen(side: Container) -> dict:
    status = side.status()
    return status if status["environment"]["scope"] == "worker" and status["cpu"]["used_cores"] is not None else {}


run(case)

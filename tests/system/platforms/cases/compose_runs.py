#!/usr/bin/env python3
"""The compose example runs under a real engine: limits found and followed when changed, alerts loaded, CPU held, key asked for, ended in time."""

import concurrent.futures
import contextlib
import json
import os
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import check_jsonschema

from container import docker
from scenario import Metrics, expect, output, run, wait_for
from server import fetch, free_port, query, value
from shipped import PACKAGING, documents, dockerfile, expect_coherent, expect_refused, expect_valid, metrics_port, seconds, toml

FILE = PACKAGING / "compose/docker-compose.yml"
KEY = "a-key-of-this-case"
APP_PORT, PROMETHEUS_PORT = free_port(), free_port()
# The classic builder is part of every engine; the application's image needs nothing more.
ENVIRONMENT = {
    # Not what the cases import: docker-compose is Debian's own Python program.
    **{name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
    "PLIMSOLL_API_KEY": KEY,
    "APP_PORT": str(APP_PORT),
    "PROMETHEUS_PORT": str(PROMETHEUS_PORT),
    "DOCKER_BUILDKIT": "0",
    "COMPOSE_DOCKER_CLI_BUILD": "0",
    "COMPOSE_PROJECT_NAME": "example",
}
MIB = 1 << 20


def compose(*arguments: str) -> str:
    return output("docker-compose", "--file", FILE, *arguments, env=ENVIRONMENT)


def inspected(container: str) -> dict[str, Any]:
    return json.loads(docker("inspect", container))[0]


def status_of(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def written_as_the_specification_has_it() -> None:
    (example,) = documents(FILE)
    folder = Path(check_jsonschema.__file__).parent / "builtin_schemas/vendor"
    specification = json.loads((folder / "compose-spec.json").read_text())
    expect_valid("docker-compose.yml", example, specification)
    expect_refused("a misspelt key", {"services": {"app": {"mem_limt": "1g"}}}, specification)
    settings, app = toml(PACKAGING / "compose/plimsoll.toml"), example["services"]["app"]
    (volume,) = [mount.split(":")[1] for mount in app["volumes"]]
    expect_coherent(settings, seconds(app["stop_grace_period"]), volume)
    expect(int(app["environment"]["PORT"]) == dockerfile("compose")["port"], "the application's port")
    (scraped,) = documents(PACKAGING / "compose/prometheus.yml")
    (target,) = scraped["scrape_configs"][0]["static_configs"][0]["targets"]
    expect(target == f"app:{metrics_port(settings)}", f"Prometheus scrapes {target}")


def held(app: str, server: str, metrics: str, meanwhile: Callable[[], object]) -> tuple[float, float]:
    """The application burns all it may have: held at the line, its health check is answered all the while. The share, the slowest answer."""

    def page() -> Metrics:
        return Metrics(fetch(metrics)[1])

    def cores(seconds: float) -> float:
        name, begun, before = "plimsoll_worker_cpu_seconds_total", time.monotonic(), page()
        time.sleep(seconds)
        return (page().value(name, worker="main") - before.value(name, worker="main")) / (time.monotonic() - begun)

    over = threading.Event()

    def burn() -> int:
        """How many requests were answered; an error of one is the caller's."""
        answered = 0
        while not over.is_set():
            with urllib.request.urlopen(f"http://{app}/burn?seconds=0.5", timeout=30) as answer:
                answered += answer.status == 200
        return answered

    def ask() -> float:
        slowest = 0.0
        while not over.is_set():
            asked = time.monotonic()
            expect(fetch(f"http://{app}/health")[1] == "ok\n", "the health check fails while the application is held")
            slowest = max(slowest, time.monotonic() - asked)
            time.sleep(0.2)
        return slowest

    with concurrent.futures.ThreadPoolExecutor() as pool:
        burning, asking = [pool.submit(burn) for _ in range(2)], pool.submit(ask)
        try:
            # It takes ten seconds over the line until anything is done.
            meanwhile()
            wait_for("the CPU is over its line", 40, lambda: page().value("plimsoll_policy_throttled") == 1)
            wait_for("the application is held", 20, lambda: page().value("plimsoll_worker_throttle_ratio", worker="main") > 0)
            wait_for("usage has come down to the line", 30, lambda: cores(2) < 0.43)
            # Over several looks and many stops.
            share = cores(6)
        finally:
            over.set()
        expect(all(answers.result() > 0 for answers in burning), "a request was lost")
        slowest = asking.result()
    # What grafana_queries has not on a whole machine.
    expect(query(server, "increase(plimsoll_memory_events_total[20s])"), "the panel of memory events shows nothing")
    wait_for("Prometheus knows of it", 20, lambda: query(server, 'plimsoll_actions_total{resource="cpu",action="throttle"} > 0'))
    return share, slowest


def case() -> str:
    written_as_the_specification_has_it()
    compose("build", "app")
    try:
        # Grafana is in no package index, so that service is left out: grafana_queries checks its files, and what its panels show.
        compose("up", "--detach", "app", "prometheus")
        return running()
    except BaseException:
        print(subprocess.run(["docker-compose", "--file", FILE, "logs", "--no-color"], env=ENVIRONMENT, capture_output=True, text=True).stdout)
        raise
    finally:
        with contextlib.suppress(Exception):
            compose("down", "--volumes", "--timeout", "0")


def alerts_loaded(server: str) -> int:
    """How many rules Prometheus evaluates: all that are shipped."""

    def rules() -> list[dict[str, Any]]:
        groups = json.loads(fetch(f"http://{server}/api/v1/rules")[1])["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    (shipped,) = documents(PACKAGING / "prometheus/plimsoll.rules.yml")
    expect(len(rules()) == sum(len(group["rules"]) for group in shipped["groups"]), f"{len(rules())} rules are loaded")
    wait_for("every rule is well", 30, lambda: {rule["health"] for rule in rules()} == {"ok"})
    return len(rules())


def key_asked_for(inside: str) -> None:
    expect(status_of(f"{inside}/admin/workers") == 401, "control needs no key from outside")
    expect(status_of(f"{inside}/admin/workers", **{"X-API-Key": KEY}) == 200, "the key of the environment is refused")


def running() -> str:
    app, server = f"127.0.0.1:{APP_PORT}", f"127.0.0.1:{PROMETHEUS_PORT}"
    # Prometheus was begun only when the health check of the image's entry point had passed.
    expect(inspected("example_app_1")["State"]["Health"]["Status"] == "healthy", "app is not healthy")
    (network,) = inspected("example_app_1")["NetworkSettings"]["Networks"].values()
    inside = f"http://{network['IPAddress']}:18760"
    metrics = f"{inside}/metrics"
    expect(fetch(f"http://{app}/health")[1] == "ok\n", "the application does not answer on the host's port")
    wait_for("Prometheus has scraped", 40, lambda: value(server, 'up{job="plimsoll"}') == 1)
    wait_for("the limits are known", 20, lambda: value(server, "plimsoll_memory_limit_bytes") == 512 * MIB)
    expect(value(server, "plimsoll_cpu_limit_cores") == 1, "the CPU limit is not found")
    expect(query(server, 'plimsoll_filesystem_size_bytes{mountpoint="/data"}'), "the volume is not watched")
    expect(query(server, 'plimsoll_job_next_run_timestamp_seconds{name="audio-cleanup"}'), "the job is not scheduled")
    said = docker("exec", "example_app_1", "plimsoll", "status")
    expect("main" in said, f"status inside: {said}")

    # As the page has it: the grace is told, since nobody inside can see it.
    looked = json.loads(docker("exec", "example_app_1", "plimsoll", "doctor", "--platform", "docker", "--grace", "30s", "--json"))
    wrong = [finding for finding in looked["findings"] if finding["level"] in ("warn", "fail")]
    expect(not wrong, f"the doctor finds {wrong}")

    # What Kubernetes calls a resize in place: the limits of the running container change, nothing is restarted.
    changed = time.monotonic()
    docker("update", "--memory", "768m", "--memory-swap", "768m", "--cpus", "0.5", "example_app_1")

    def seen() -> bool:
        page = Metrics(fetch(metrics)[1])
        return (page.value("plimsoll_memory_limit_bytes"), page.value("plimsoll_cpu_limit_cores")) == (768 * MIB, 0.5)

    wait_for("the new limits are seen", 10, seen, every=0.05)
    followed = time.monotonic() - changed
    expect(followed < 4, f"the new limits were seen after {followed:.1f} s, a tick is 2 s")

    def meanwhile() -> None:
        alerts_loaded(server)
        key_asked_for(inside)

    share, slowest = held(app, server, metrics, meanwhile)
    # How exactly is for the container suite to measure; others are busy here at the same time.
    expect(0.3 < share < 0.43, f"{share:.3f} cores are used, the line is 0.4")
    expect(slowest < 3, f"the slowest health check took {slowest:.1f} s")
    expect(Metrics(fetch(metrics)[1]).value("plimsoll_worker_starts_total", worker="main") == 1, "the application was restarted")

    begun = time.monotonic()
    compose("stop", "app")
    ended = time.monotonic() - begun
    state = inspected("example_app_1")["State"]
    expect(state["ExitCode"] != 137 and not state["OOMKilled"], f"killed, not ended: {state}")
    expect(ended < 20, f"ended after {ended:.0f} s")
    return (
        f"new limits after {followed:.1f} s, held at {share:.2f} of 0.4 cores, slowest health check {slowest:.2f} s, "
        f"{alerts_loaded(server)} rules, ended after {ended:.1f} s with {state['ExitCode']}; without Grafana"
    )


run(case)

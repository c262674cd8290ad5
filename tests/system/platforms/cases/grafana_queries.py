#!/usr/bin/env python3
"""Every expression of the dashboard shows something, asked of a real Prometheus while a real daemon acts; what this machine has not is named."""

import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scenario import PLIMSOLL, PROGRAMS, SCRATCH, Failed, expect, output, run, wait_for
from server import fetch, free_port, process, prometheus, value
from shipped import PACKAGING, REPOSITORY, documents

GRAFANA = PACKAGING / "grafana"
# As Grafana fills them in with everything chosen, for a scrape every second.
CHOSEN = {"job": ".*", "instance": ".*", "worker": ".*", "__rate_interval": "10s", "__interval": "5s", "__range": "1m"}
# What this daemon's page has not, and why; compose_runs asks for what a container has.
NOT_HERE = {
    "plimsoll_memory_events_total": "a control group counts them, and this daemon guards the machine",
    "plimsoll_memory_swap_bytes": "this machine has no swap",
    "plimsoll_pressure_waiting_seconds_total": "this kernel has no pressure stall information",
    "plimsoll_pressure_stalled_seconds_total": "this kernel has no pressure stall information",
    "plimsoll_cpu_throttled_seconds_total": "this machine does not say what was stolen from it",
}
# Counts what goes wrong and cannot be made to go wrong here: that the series are there, and at 0, is all there is to see.
NEVER_HERE = {
    "plimsoll_action_failures_total": "nothing refuses root an action",
    "plimsoll_tick_overruns_total": "the loop is in time",
    "plimsoll_log_dropped_total": "the log is read",
}


def metrics_of(expression: str) -> set[str]:
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"\b(?:plimsoll|process)_[a-z0-9_]+", expression)}


def settings(address: str, runtime: str) -> str:
    """A daemon with so little room, and such jobs, that there is something to see in every panel within seconds."""
    return f"""\
[daemon]
state_dir = "{SCRATCH}/state"
runtime_dir = "{runtime}"

[http]
listen = ["{address}"]

[sampling]
interval = "500ms"

[policy.cpu]
# Over its line from the first second on: something is done. The file is not there: reading it fails.
limit = {{ file = "{SCRATCH}/no-such-file" }}
high = 0.1
low = 0.05
sustain = "0s"

[policy.memory]
# Near its line, more of the machine's memory is looked at.
high = "64MB"
critical = "100%"
on_high = ["notify"]
on_critical = ["notify"]

[[policy.disks]]
path = "{SCRATCH}"
# Over its line, and nothing on the ladder would help.
high = "1MB"
on_high = ["notify"]

[workers.busy]
command = ["{PROGRAMS}/hog", "100"]

[workers.filling]
command = ["{PROGRAMS}/leak", "5", "{SCRATCH}/asked"]
# Far enough that it is foretold and not reached.
limits = {{ memory = "1GB" }}
throttle = "never"

[workers.quiet]
command = ["sleep", "infinity"]
replicas = 2

[jobs.clean]
kind = "files"
schedule = "@hourly"
paths = ["{SCRATCH}/old"]
owner = "root"
# No file can be made older than it is: by number they go when they are young.
max_files = 1
min_age = "1s"

[jobs.never-quiet]
kind = "files"
schedule = "* * * * * *"
paths = ["{SCRATCH}/old"]
owner = "root"
when_high = {{ wait = "0s", then = "skip" }}

[jobs.copy]
kind = "backup"
schedule = "@daily"
databases = ["{SCRATCH}/application.db"]
to = "{SCRATCH}/copies"

[jobs.forget]
kind = "sessions"
database = "{SCRATCH}/application.db"
format = "table"
table = {{ name = "sessions", id = "id", time = "last_used" }}
second_look = "0s"
"""


@contextlib.contextmanager
def daemon() -> Iterator[tuple[str, Path]]:
    """Its address and its settings."""
    address, runtime = f"127.0.0.1:{free_port()}", tempfile.mkdtemp(prefix="plimsoll-")
    for folder in ("state", "old", "copies"):
        (SCRATCH / folder).mkdir()
    for number in range(5):
        (SCRATCH / f"old/{number}.mp3").write_bytes(b"x" * 10_000)
    with contextlib.closing(sqlite3.connect(SCRATCH / "application.db")) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE sessions (id TEXT PRIMARY KEY, last_used INTEGER)")
        database.executemany("INSERT INTO sessions VALUES (?, ?)", [("old", 0), *((f"young-{n}", int(time.time())) for n in range(4))])
        database.commit()
        config = SCRATCH / "plimsoll.toml"
        config.write_text(settings(address, runtime))
        with process("plimsoll", [PLIMSOLL, "run", "-c", config]) as child:

            def answers() -> bool:
                expect(child.poll() is None, f"the daemon ended with {child.returncode}")
                return fetch(f"http://{address}/readyz")[1] is not None

            wait_for("the daemon is ready", 30, answers)
            yield address, config
    shutil.rmtree(runtime)


def told(config: Path, *command: str) -> str:
    return output(PLIMSOLL, "-c", config, *command)


def things_happen(config: Path) -> None:
    """One of each that a panel counts, seen by Prometheus as a change: it has scraped before."""
    for job in ("clean", "copy", "forget"):
        told(config, "jobs", "run", job, "--yes")
    told(config, "workers", "recycle", "quiet")
    workers = json.loads(told(config, "status", "--json"))["workers"]
    (busy,) = [replica["pid"] for worker in workers if worker["name"] == "busy" for replica in worker["replicas"]]
    # A worker of this daemon's: it ends badly.
    os.kill(busy, signal.SIGKILL)


def filled(expression: str) -> str:
    """As Grafana asks it, everything chosen."""
    for name, chosen in CHOSEN.items():
        expression = expression.replace(f"${name}", chosen)
    expect("$" not in expression, f"a variable nobody fills in: {expression}")
    return expression


def shown(server: str, expression: str, since: float) -> bool:
    """Whether a graph from then until now shows anything; of what is counted, that it was counted."""
    asked = {"query": filled(expression), "start": since, "end": time.time(), "step": 1}
    answer = json.loads(fetch(f"http://{server}/api/v1/query_range?{urllib.parse.urlencode(asked)}")[1])
    expect(answer["status"] == "success", f"{expression}: {answer}")
    values = [float(value) for series in answer["data"]["result"] for _, value in series["values"]]
    counts = "increase(" in expression and not metrics_of(expression) & set(NEVER_HERE)
    return any(value > 0 for value in values) if counts else bool(values)


def structure(dashboard: dict[str, Any]) -> dict[str, str]:
    """Each expression with where it stands; and what Grafana itself would stumble over."""
    expect(dashboard["uid"] == "plimsoll" and "id" not in dashboard, "the address of the dashboard is not fixed")
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    expect(variables == {"datasource", "job", "instance", "worker"}, f"variables: {variables}")
    taken: set[tuple[int, int]] = set()
    ids, found, rows = set(), {}, []
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        expect(not cells & taken and place["x"] + place["w"] <= 24, f"{panel['title']} lies on another panel or beside the page")
        taken |= cells
        expect(panel["id"] not in ids, f"two panels are {panel['id']}")
        ids.add(panel["id"])
        if panel["type"] == "row":
            rows.append(panel["title"].split(":")[0])
            continue
        for target in panel["targets"]:
            expect(target["datasource"]["uid"] == "${datasource}", f"{panel['title']} has a data source of its own")
            found[f"{panel['title']}, {target['refId']}"] = target["expr"]
    expect(rows == ["Scope", "Policy", "Workers", "Jobs", "Events"], f"rows: {rows}")
    for mark in dashboard["annotations"]["list"]:
        found[f"annotation {mark['name']}"] = mark["expr"]
    return found


def provisioned() -> None:
    (sources,), (providers,) = documents(GRAFANA / "provisioning/datasources/prometheus.yml"), documents(GRAFANA / "provisioning/dashboards/plimsoll.yml")
    compose = (PACKAGING / "compose/docker-compose.yml").read_text()
    (source,), (provider,) = sources["datasources"], providers["providers"]
    expect(source["url"] == "http://prometheus:9090" and source["type"] == "prometheus", f"data source: {source}")
    expect(f"../grafana/plimsoll.json:{provider['options']['path']}/plimsoll.json" in compose, "compose puts the dashboard elsewhere")
    expect("../grafana/provisioning:/etc/grafana/provisioning" in compose, "compose does not provision")


def without_what_never_happens(expression: str) -> str:
    return expression.removesuffix(" > 0") if metrics_of(expression) & set(NEVER_HERE) else expression


def case() -> str:
    text = (GRAFANA / "plimsoll.json").read_text()
    made = subprocess.run([GRAFANA / "dashboard", "--print"], capture_output=True, text=True, check=True).stdout
    expect(text == made, "packaging/grafana/plimsoll.json is stale: packaging/grafana/dashboard writes it anew")
    asked = structure(json.loads(text))
    documented = set(re.findall(r"^\| `([a-z_]+)` \|", (REPOSITORY / "docs/metrics.md").read_text(), re.MULTILINE))
    unknown = {name for expression in asked.values() for name in metrics_of(expression)} - documented
    expect(not unknown, f"not in docs/metrics.md: {unknown}")
    for variable in json.loads(text)["templating"]["list"][1:]:
        expect(metrics_of(variable["definition"]) <= documented, f"variable {variable['name']} asks {variable['definition']}")
    provisioned()
    begun = time.time()
    with daemon() as (address, config), prometheus(address) as server:
        wait_for("the daemon is up for Prometheus", 20, lambda: value(server, "up") == 1)
        # Two scrapes, so that what happens next is an increase.
        wait_for("it has been scraped twice", 20, lambda: value(server, "count_over_time(up[1m])") >= 2)
        things_happen(config)

        def absent() -> dict[str, set[str]]:
            """What expressions ask for and the page has not."""
            page = fetch(f"http://{address}/metrics")[1]
            there = {name for name in documented if re.search(rf"^{name}(_bucket)?[ {{]", page, re.MULTILINE)}
            return {where: metrics_of(e) - there for where, e in asked.items() if not metrics_of(e) <= there}

        def unexplained() -> set[str]:
            return {name for names in absent().values() for name in names} - set(NOT_HERE)

        with contextlib.suppress(Failed):
            wait_for("the page has all that it can have", 30, lambda: not unexplained())
        expect(not unexplained(), f"not on the daemon's page: {unexplained()}")
        lacking = absent()
        wanted = {where: without_what_never_happens(e) for where, e in asked.items() if where not in lacking}

        def empty() -> list[str]:
            return [where for where, expression in wanted.items() if not shown(server, expression, begun)]

        with contextlib.suppress(Failed):
            wait_for("every panel shows something", 40, lambda: not empty(), every=1)
        missing = empty()
        expect(not missing, f"nothing is shown by: {missing}")
        for where in lacking:
            # Nothing to show, but Prometheus takes it.
            expect(not shown(server, asked[where], begun), f"{where} shows what is not on the page")
    reasons = {f"{where}: {NOT_HERE[name]}" for where, names in lacking.items() for name in names}
    print("\n".join(sorted(reasons)))
    quiet = sum(bool(metrics_of(expression) & set(NEVER_HERE)) for expression in wanted.values())
    left = f"; only taken: {'; '.join(sorted(reasons))}" if reasons else ""
    return f"{len(wanted)} of {len(asked)} expressions show what happened, of them {quiet} at 0 ({', '.join(NEVER_HERE.values())}){left}"


run(case)

"""A daemon under test and a Prometheus that scrapes it, both with ports and folders of their own."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scenario import PLIMSOLL, SCRATCH, Failed, expect, wait_for


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def process(name: str, command: list[str | Path], grace_seconds: float = 20) -> Iterator[subprocess.Popen[bytes]]:
    """Runs as long as the block, its output in the case's folder; printed when the block fails."""
    log = SCRATCH / f"{name}.log"
    with log.open("w") as out:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        yield child
    except BaseException:
        print(f"-- {name} said:\n{log.read_text(errors='replace')}")
        raise
    finally:
        child.terminate()
        try:
            child.wait(timeout=grace_seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@contextlib.contextmanager
def daemon(*command: str) -> Iterator[str]:
    """The address of a daemon that supervises `command`."""
    address = f"127.0.0.1:{free_port()}"
    (SCRATCH / "state").mkdir()
    # A socket's path may have 107 bytes, fewer than a checkout's may have.
    runtime = tempfile.mkdtemp(prefix="plimsoll-")
    settings = [f'http.listen=["{address}"]', f"daemon.state_dir={SCRATCH}/state", f"daemon.runtime_dir={runtime}"]
    flags = [word for setting in settings for word in ("--set", setting)]
    with process("plimsoll", [PLIMSOLL, "run", *flags, "--", *command]) as child:

        def answers() -> bool:
            expect(child.poll() is None, f"the daemon ended with {child.returncode}")
            return fetch(f"http://{address}/healthz")[1] is not None

        wait_for("the daemon answers", 20, answers)
        yield address
    shutil.rmtree(runtime)


@contextlib.contextmanager
def prometheus(target: str) -> Iterator[str]:
    """The address of a Prometheus that scrapes `target` every second."""
    address = f"127.0.0.1:{free_port()}"
    config = SCRATCH / "prometheus.yml"
    config.write_text(
        f"""\
global:
  scrape_interval: 1s
scrape_configs:
  - job_name: plimsoll
    static_configs:
      - targets: ["{target}"]
"""
    )
    command = [
        "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={SCRATCH}/series",
        f"--web.listen-address={address}",
    ]
    with process("prometheus", command) as child:

        def ready() -> bool:
            expect(child.poll() is None, f"Prometheus ended with {child.returncode}")
            return fetch(f"http://{address}/-/ready")[1] is not None

        wait_for("Prometheus is ready", 40, ready)
        yield address


def fetch(url: str, **headers: str) -> tuple[str, str]:
    """The content type and the body."""
    request = urllib.request.Request(url, headers={name.replace("_", "-"): value for name, value in headers.items()})
    with urllib.request.urlopen(request, timeout=5) as answer:
        return answer.headers.get("Content-Type", ""), answer.read().decode()


def query(server: str, expression: str) -> list[dict[str, Any]]:
    """The instant vector Prometheus gives for `expression`."""
    _, body = fetch(f"http://{server}/api/v1/query?{urllib.parse.urlencode({'query': expression})}")
    answer = json.loads(body)
    if answer["status"] != "success":
        raise Failed(f"{expression}: {answer}")
    return answer["data"]["result"]


def value(server: str, expression: str) -> float:
    """The one value of `expression`; LookupError where there is none yet."""
    result = query(server, expression)
    if len(result) != 1:
        raise LookupError(f"{expression} has {len(result)} values")
    return float(result[0]["value"][1])

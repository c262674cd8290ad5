"""The files of packaging/ as data, and what all examples have in common."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from scenario import expect

REPOSITORY = Path(__file__).resolve().parents[3]
PACKAGING = REPOSITORY / "packaging"
SCHEMAS = Path(__file__).resolve().parent / "schemas"


def toml(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text())


def documents(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text()))


def schema(name: str) -> dict[str, Any]:
    return json.loads((SCHEMAS / name).read_text())


def problems(value: Any, against: dict[str, Any]) -> list[str]:
    validator = jsonschema.validators.validator_for(against)
    validator.check_schema(against)
    found = validator(against).iter_errors(value)
    return [f"{'.'.join(map(str, problem.absolute_path))}: {problem.message}" for problem in found]


def expect_valid(what: str, value: Any, against: dict[str, Any]) -> None:
    found = problems(value, against)
    expect(not found, f"{what}: {'; '.join(found)}")


def expect_refused(what: str, value: Any, against: dict[str, Any]) -> None:
    """So that a schema which takes anything is noticed."""
    expect(problems(value, against), f"the schema takes {what}")


def seconds(duration: str | int | float) -> float:
    """As Plimsoll, Compose and Fly write it: "25s", "1m30s", or a number."""
    if isinstance(duration, (int, float)):
        return float(duration)
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", duration)
    expect(parts and "".join(a + b for a, b in parts) == duration, f"{duration!r} is no duration")
    return sum(float(amount) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[unit] for amount, unit in parts)


def metrics_port(settings: dict[str, Any]) -> int:
    (address,) = settings["http"]["listen"]
    return int(address.rsplit(":", 1)[1])


def expect_coherent(settings: dict[str, Any], grace_seconds: float, volume: str | None) -> None:
    """What holds on every platform: done before the platform kills, and the state and the disk's line on the volume."""
    shutdown = seconds(settings["daemon"]["shutdown_timeout"])
    expect(shutdown < grace_seconds, f"shutdown_timeout {shutdown:g} s is not below the platform's {grace_seconds:g} s")
    for worker in settings.get("workers", {}).values():
        if "stop" in worker:
            expect(seconds(worker["stop"]["within"]) < shutdown, f"stop.within is not below shutdown_timeout: {worker['stop']}")
    address = settings["http"]["listen"][0]
    expect(address.startswith(("0.0.0.0:", "[::]:")), f"http.listen is {address}: nobody outside reaches that")
    expect("api_key_file" not in settings["http"], "the key comes from PLIMSOLL_HTTP__API_KEY, not from a file of the image")
    if volume is not None:
        expect(settings["daemon"]["state_dir"].startswith(f"{volume}/"), "the state is not on the volume")
        for disk in settings["policy"]["disks"]:
            expect(disk["path"] == volume, f"the disk's line is for {disk['path']}, the volume is {volume}")
        for job in settings["jobs"].values():
            expect(all(path.startswith(f"{volume}/") for path in job["paths"]), f"a job deletes beside the volume: {job['paths']}")


def dockerfile(folder: str) -> dict[str, Any]:
    """What matters of an example's Dockerfile: its instructions by name, entry point and command as lists."""
    text = (PACKAGING / folder / "Dockerfile").read_text()
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    instructions: dict[str, Any] = {}
    for name, rest in lines:
        instructions.setdefault(name, []).append(rest)
    entry, command = json.loads(instructions["ENTRYPOINT"][0]), json.loads(instructions["CMD"][0])
    expect(entry == ["plimsoll", "run", "-c", "/etc/plimsoll/plimsoll.toml", "--"], f"{folder}: the entry point is {entry}")
    expect("--from=plimsoll /usr/bin/plimsoll /usr/bin/plimsoll" in instructions["COPY"], f"{folder}: plimsoll is not copied in")
    expect("${PORT:-" in command[-1] and command[-1].startswith("exec "), f"{folder}: PORT is not the application's: {command}")
    return {**instructions, "ENTRYPOINT": entry, "CMD": command, "port": int(command[-1].split("${PORT:-")[1].split("}")[0])}

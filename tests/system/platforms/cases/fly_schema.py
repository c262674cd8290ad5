#!/usr/bin/env python3
"""fly.toml passes the public schema with no field that it does not know, and agrees with the settings beside it."""

from typing import Any

from scenario import expect, run
from shipped import PACKAGING, dockerfile, expect_coherent, expect_refused, expect_valid, metrics_port, schema, seconds, toml


def closed(part: Any) -> Any:
    """The schema leaves every table open; here a key it does not name is a mistake."""
    if isinstance(part, list):
        return [closed(item) for item in part]
    if not isinstance(part, dict):
        return part
    made = {key: closed(value) for key, value in part.items()}
    if isinstance(part.get("properties"), dict) and not any(word in part for word in ("allOf", "anyOf", "oneOf", "$ref")):
        if made.get("additionalProperties") in (None, True):
            made["additionalProperties"] = False
    return made


def case() -> str:
    fly, strict = toml(PACKAGING / "fly/fly.toml"), closed(schema("fly.json"))
    expect_valid("fly.toml", fly, strict)
    for what, change in {
        "a field that is not there": {"kill_timout": 30},
        "a wrong signal": {"kill_signal": 15},
        "a wrong field of a volume": {"mounts": [{**fly["mounts"][0], "size": "1GB"}]},
    }.items():
        expect_refused(what, {**fly, **change}, strict)
    settings = toml(PACKAGING / "fly/plimsoll.toml")
    (volume,) = fly["mounts"]
    expect_coherent(settings, seconds(fly["kill_timeout"]), volume["destination"])
    expect(fly["kill_signal"] == "SIGTERM", "without SIGTERM the application gets SIGINT")
    expect(fly["metrics"] == {"port": metrics_port(settings), "path": "/metrics"}, f"[metrics] is {fly['metrics']}")
    expect(settings["http"]["listen"][0].startswith("0.0.0.0:"), "Fly scrapes 0.0.0.0")
    port = fly["http_service"]["internal_port"]
    expect(int(fly["env"]["PORT"]) == port == dockerfile("fly")["port"], f"the application is not on {port}")
    (disk,) = settings["policy"]["disks"]
    expect(int(disk["high"].rstrip("%")) < volume["auto_extend_size_threshold"], "the volume grows before anything is deleted")
    return f"{len(fly)} tables and keys, none unknown"


run(case)

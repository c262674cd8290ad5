#!/usr/bin/env python3
"""Render's Blueprint has only fields, values and combinations that its reference names, and agrees with the settings beside it."""

import copy

from scenario import expect, run
from shipped import PACKAGING, dockerfile, documents, expect_coherent, expect_refused, expect_valid, metrics_port, schema, toml

# Where none is given; and the ports a service may not use for itself.
SHUTDOWN_DELAY = 30
RESERVED = {10000, 18012, 18013, 19099}


def case() -> str:
    (blueprint,) = documents(PACKAGING / "render/render.yaml")
    render = schema("render.json")
    expect_valid("render.yaml", blueprint, render)
    (web,) = blueprint["services"]
    for what, change in {
        "a field that is not there": {"healthCheckTimeout": 5},
        "a delay of 301 s": {"maxShutdownDelaySeconds": 301},
        "two instances beside a disk": {"numInstances": 2},
    }.items():
        changed = copy.deepcopy(blueprint)
        changed["services"][0] |= change
        expect_refused(what, changed, render)
    for path in ("dockerfilePath", "dockerContext"):
        expect((PACKAGING / "render" / web[path]).exists(), f"{path}: there is no {web[path]}")
    keys = {variable["key"]: variable for variable in web["envVars"]}
    expect(keys["PLIMSOLL_HTTP__API_KEY"].get("generateValue") is True, "the key is not made by Render")
    expect("PORT" not in keys and dockerfile("render")["port"] == 10000, "PORT is Render's to give, 10000 unless set")
    settings = toml(PACKAGING / "render/plimsoll.toml")
    expect_coherent(settings, web.get("maxShutdownDelaySeconds", SHUTDOWN_DELAY), web["disk"]["mountPath"])
    expect(metrics_port(settings) not in RESERVED, "Plimsoll's port is one that Render keeps for itself")
    return f"{len(web)} fields; our own schema of the reference, not Render's"


run(case)

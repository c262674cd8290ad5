#!/usr/bin/env python3
"""Railway's own SDK takes the project in code: the compiler finds nothing, and evaluated it is what the page promises."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from scenario import SCRATCH, expect, run
from shipped import PACKAGING, dockerfile, expect_coherent, metrics_port, toml

NODE, SDK = Path(os.environ["NODE"]), Path(os.environ["RAILWAY"])
OPTIONS = {"strict": True, "noEmit": True, "module": "nodenext", "moduleResolution": "nodenext", "target": "es2022", "types": [], "skipLibCheck": True}
# The SDK has no offline plan (that is in Railway's own command, and asks Railway). It evaluates the program, and checks the graph.
EVALUATE = """
import program from "./.railway/railway.ts";
import { createRailwayContext, project, validateGraph } from "railway/iac";
const made = await program(createRailwayContext({ environment: "production" }), project);
const resources = made.resources.flat();
const edges = resources.flatMap(r => Object.values(r.volumeAttachments ?? {}).map(a => ({ from: r.address, to: a.volume, type: "mount" })));
const problems = validateGraph({ version: 1, project: { name: made.name }, environments: [], resources, edges });
console.log(JSON.stringify({ name: made.name, resources, edges, problems }));
"""


def compiled(folder: Path, *programs: str) -> list[str]:
    """What the compiler has to say about them."""
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "tsconfig.json").write_text(json.dumps({"compilerOptions": OPTIONS, "files": programs}))
    (folder / "node_modules").symlink_to(SDK / "node_modules")
    command = [NODE, SDK / "node_modules/typescript/bin/tsc", "--project", folder, "--pretty", "false"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).splitlines()


def case() -> str:
    folder, program = SCRATCH / "example", (PACKAGING / "railway/.railway/railway.ts").read_text()
    # The types must be able to say no. In one run with the example: most of it is reading the SDK.
    misspelt = program.replace("healthcheckTimeout:", "healthcheckTimeot:")
    expect(misspelt != program, "the example has no healthcheckTimeout to misspell")
    for name, text in {".railway": program, "misspelt": misspelt}.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "railway.ts").write_text(text)
    said = compiled(folder, ".railway/railway.ts", "misspelt/railway.ts")
    expect(any(line.startswith("misspelt/railway.ts") and "healthcheckTimeot" in line for line in said), f"tsc takes a misspelt field: {said}")
    # Lines that begin with a space go on about the one before.
    others = [line for line in said if not line.startswith((" ", "misspelt/railway.ts"))]
    expect(not others, f"tsc: {said}")

    (folder / "evaluate.mjs").write_text(EVALUATE)
    done = subprocess.run([NODE, "evaluate.mjs"], cwd=folder, capture_output=True, text=True, check=False)
    expect(done.returncode == 0, f"evaluating: {done.stdout}{done.stderr}")
    made: dict[str, Any] = json.loads(done.stdout)
    expect(made["problems"] == [], f"the graph: {made['problems']}")
    by_address = {resource["address"]: resource for resource in made["resources"]}
    web = by_address["service.web"]
    (attached,) = web["volumeAttachments"].values()
    expect(attached["volume"] in by_address, f"{attached} is no resource of the project")
    variables = {name: value.get("value") for name, value in web["variables"].items()}
    expect("PORT" not in variables, "PORT is Railway's to give")
    expect("startCommand" not in web["deploy"], "a start command takes the place of the entry point")
    expect(web["variables"]["PLIMSOLL_HTTP__API_KEY"] == {"type": "preserve"}, "the key is in the file")
    expect(web["deploy"]["healthcheckPath"] == "/health", f"healthcheck: {web['deploy']}")
    expect((PACKAGING / "railway" / web["build"]["dockerfilePath"]).exists(), f"no {web['build']}")
    settings = toml(PACKAGING / "railway/plimsoll.toml")
    expect_coherent(settings, float(variables["RAILWAY_DEPLOYMENT_DRAINING_SECONDS"]), attached["mountPath"])
    expect(settings["http"]["listen"] == [f"[::]:{metrics_port(settings)}"], "older environments have IPv6 alone")
    expect(dockerfile("railway")["port"] != metrics_port(settings), "the application's port is Plimsoll's")
    sdk = json.loads((SDK / "node_modules/railway/package.json").read_text())["version"]
    return f"railway {sdk}: {len(made['resources'])} resources, drained for {variables['RAILWAY_DEPLOYMENT_DRAINING_SECONDS']} s"


run(case)

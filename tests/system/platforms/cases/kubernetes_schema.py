#!/usr/bin/env python3
"""The manifests pass the schemas of Kubernetes and of the Prometheus Operator strictly, their names meet, the rules are the shipped ones."""

import copy
import re
from pathlib import Path
from typing import Any

import kubernetes_validate

from scenario import Failed, expect, run
from shipped import PACKAGING, documents, expect_coherent, expect_refused, expect_valid, metrics_port, schema, toml

FOLDER = PACKAGING / "kubernetes"
# The first that has all that is used here as stable; the newest the checker knows.
VERSIONS = ["1.35", "1.37"]


def checked(manifest: dict[str, Any]) -> None:
    for version in VERSIONS:
        kubernetes_validate.validate(manifest, version, strict=True)


def refused(manifest: dict[str, Any]) -> bool:
    try:
        checked(manifest)
    except kubernetes_validate.ValidationError:
        return True
    return False


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def pod_holds(where: str, template: dict[str, Any], settings: dict[str, Any]) -> None:
    """Names that are used are there, and the settings fit the pod."""
    pod, all_containers = template["spec"], containers(template["spec"])
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in all_containers:
        ports = {port["name"] for port in container.get("ports", [])}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            if probe in container:
                port = container[probe]["httpGet"]["port"]
                expect(port in ports, f"{where}: {probe} of {container['name']} asks port {port}")
        for mount in container.get("volumeMounts", []):
            expect(mount["name"] in volumes, f"{where}: {container['name']} mounts {mount['name']}")
    expect(volumes == {m["name"] for c in all_containers for m in c.get("volumeMounts", [])}, f"{where}: a volume nobody mounts")
    (guard,) = [c for c in all_containers if any(port["name"] == "plimsoll" for port in c.get("ports", []))]
    (port,) = [port["containerPort"] for port in guard["ports"] if port["name"] == "plimsoll"]
    expect(port == metrics_port(settings), f"{where}: Plimsoll listens on {metrics_port(settings)}, the port is {port}")
    expect(template["metadata"]["labels"].get("plimsoll") == "guarded", f"{where}: the PodMonitor does not see it")
    expect_coherent(settings, pod["terminationGracePeriodSeconds"], None)
    expect("cpu" not in guard["resources"]["limits"] or guard["name"] == "app", f"{where}: the sidecar has a limit for CPU")
    written = [settings["daemon"].get("state_dir", "/var/lib/plimsoll"), "/run/plimsoll"]
    mounts = [mount["mountPath"] for mount in guard["volumeMounts"] if not mount.get("readOnly")]
    for path in written:
        expect(any(Path(path).is_relative_to(mount) for mount in mounts), f"{where}: {path} cannot be written")


def sidecar_holds(template: dict[str, Any], settings: dict[str, Any]) -> None:
    pod = template["spec"]
    (guard,) = pod["initContainers"]
    expect(guard.get("restartPolicy") == "Always", "without restartPolicy: Always the init container never lets the application begin")
    expect(pod.get("shareProcessNamespace") is True, "the sidecar does not see the application")
    for container in containers(pod):
        expect("runAsUser" not in container.get("securityContext", {}), f"{container['name']} is another user: its signals are refused")
    expect(guard["startupProbe"]["httpGet"]["path"] == "/healthz", "the start waits for the application, which waits for the start")
    (limits,) = [volume["downwardAPI"]["items"] for volume in pod["volumes"] if "downwardAPI" in volume]
    (mount,) = [mount["mountPath"] for mount in guard["volumeMounts"] if mount["name"] == "limits"]
    app = {container["name"]: container for container in pod["containers"]}
    for item in limits:
        field = item["resourceFieldRef"]
        resource = field["resource"].removeprefix("limits.")
        expect(resource in app[field["containerName"]]["resources"]["limits"], f"{field} has no limit: the node's would be told")
        limit = settings["policy"][resource]["limit"]
        expect(limit["file"] == f"{mount}/{item['path']}", f"policy.{resource}.limit is {limit}, the file {mount}/{item['path']}")
        expect(limit.get("divisor", "1") == str(field["divisor"]), f"{resource}: divided by {field['divisor']}, read as {limit}")
    expect(len(limits) == 2, "CPU and memory are told")
    (worker,) = settings["workers"]
    expect(settings["sampling"]["scope"] == {"worker": worker}, "the scope is another worker's")
    match = re.compile(settings["workers"][worker]["adopt"]["match"])
    shown = "/usr/local/bin/python3.13 /usr/local/bin/uvicorn app.main:app --host 0.0.0.0 --port 8000"
    expect(match.search(shown), f"{match.pattern} does not match what uvicorn looks like in its image: {shown}")
    expect(not match.search("tail -f /usr/local/bin/uvicorn app.main:app"), f"{match.pattern} matches others")


def rules_are_the_shipped_ones() -> int:
    source = (PACKAGING / "prometheus/plimsoll.rules.yml").read_text()
    (rule,) = documents(FOLDER / "base/prometheusrule.yaml")
    (wanted,) = documents(PACKAGING / "prometheus/plimsoll.rules.yml")
    expect(rule["spec"] == wanted, "base/prometheusrule.yaml is stale: packaging/kubernetes/prometheusrule writes it anew")
    # To the letter, comments too.
    _, _, body = (FOLDER / "base/prometheusrule.yaml").read_text().partition("\nspec:\n")
    expect("".join(line.removeprefix("  ") for line in body.splitlines(True)) == source[source.index("groups:") :], "the comments differ")
    expect_valid("prometheusrule.yaml", rule, schema("prometheusrule.json"))
    expect_refused("a rule with a misspelt key", {**rule, "spec": {"groups": [{"name": "x", "rules": [{"exp": "up"}]}]}}, schema("prometheusrule.json"))
    return sum(len(group["rules"]) for group in wanted["groups"])


def case() -> str:
    seen: dict[str, dict[str, Any]] = {}
    for folder in sorted(path for path in FOLDER.iterdir() if path.is_dir()):
        (kustomization,) = documents(folder / "kustomization.yaml")
        expect_valid(f"{folder.name}/kustomization.yaml", kustomization, {**schema("kustomization.json"), "additionalProperties": False})
        there = {path.name for path in folder.iterdir()} - {"kustomization.yaml"}
        (generated,) = kustomization["configMapGenerator"]
        used = {*kustomization["resources"], *generated["files"]}
        expect(there == used, f"{folder.name}: in the folder {there}, in the kustomization {used}")
        settings = toml(folder / "plimsoll.toml")
        for name in kustomization["resources"]:
            for manifest in documents(folder / name):
                where = f"{folder.name}/{name}"
                seen[where] = manifest
                if manifest["apiVersion"].startswith("monitoring.coreos.com/"):
                    continue
                try:
                    checked(manifest)
                except kubernetes_validate.ValidationError as error:
                    raise Failed(f"{where}: {error}") from error
                if manifest["kind"] in ("Deployment", "StatefulSet"):
                    template = manifest["spec"]["template"]
                    pod_holds(where, template, settings)
                    configs = [volume["configMap"]["name"] for volume in template["spec"]["volumes"] if "configMap" in volume]
                    expect(configs == [generated["name"]], f"{where}: {configs} is not the generated {generated['name']}")
                    selector = manifest["spec"]["selector"]["matchLabels"]
                    expect(selector.items() <= template["metadata"]["labels"].items(), f"{where}: selects {selector}, which it is not")

    misspelt = copy.deepcopy(seen["base/deployment.yaml"])
    misspelt["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    expect(refused(misspelt), "the schema takes a misspelt key")
    sidecar_holds(seen["sidecar/deployment.yaml"]["spec"]["template"], toml(FOLDER / "sidecar/plimsoll.toml"))
    (resized,) = seen["resize/statefulset.yaml"]["spec"]["template"]["spec"]["containers"]
    policies = {policy["resourceName"]: policy["restartPolicy"] for policy in resized["resizePolicy"]}
    expect(policies == {"cpu": "NotRequired", "memory": "NotRequired"}, f"a resize restarts: {policies}")

    copies = seen["unchanged-image/deployment.yaml"]["spec"]["template"]["spec"]
    (copy_in,), (app,) = copies["initContainers"], copies["containers"]
    program = app["command"][0]
    expect(copy_in["command"] == ["cp", "/image/usr/bin/plimsoll", program], f"{copy_in['command']} does not make {program}")
    mounted = {container["name"]: {m["mountPath"]: m["name"] for m in container["volumeMounts"]} for container in (copy_in, app)}
    expect(mounted[app["name"]][str(Path(program).parent)] == mounted[copy_in["name"]][str(Path(program).parent)], "two different volumes")

    monitor = seen["base/podmonitor.yaml"]
    expect_valid("podmonitor.yaml", monitor, schema("podmonitor.json"))
    changed = copy.deepcopy(monitor)
    changed["spec"]["podMetricsEndpoints"][0]["intervall"] = "15s"
    expect_refused("a misspelt interval", changed, schema("podmonitor.json"))
    base = seen["base/deployment.yaml"]["spec"]["template"]
    ports = {port["name"] for container in base["spec"]["containers"] for port in container["ports"]}
    expect({endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]} <= ports, "the PodMonitor asks another port")
    expect(monitor["spec"]["selector"]["matchLabels"].items() <= base["metadata"]["labels"].items(), "the PodMonitor selects others")
    service = seen["base/service.yaml"]["spec"]
    expect(service["selector"].items() <= base["metadata"]["labels"].items(), "the Service selects others")
    expect({port["targetPort"] for port in service["ports"]} <= ports, "the Service leads to another port")
    rules = rules_are_the_shipped_ones()
    return f"{len(seen)} manifests for Kubernetes {' and '.join(VERSIONS)}, {rules} rules"


run(case)

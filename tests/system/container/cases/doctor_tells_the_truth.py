#!/usr/bin/env python3
"""In each way a container is started the doctor says what is so: limits, process 1, folders, whom it may stop; and what it advises helps."""

import json
import subprocess

from container import IMAGE, SMALL, Container
from pod import POD_USER, Pod
from scenario import expect, run

Findings = dict[str, tuple[str, str, str]]

READ_ONLY = (*SMALL, "--read-only")
LEAST = (*READ_ONLY, "--cap-drop=ALL", "--security-opt=no-new-privileges", "--user=10001:10001")
SIDECAR = ("--set", "workers.app.adopt.match=^/hog ")


def doctor(*options: str, arguments: tuple[str, ...] = ()) -> Findings:
    command = ["docker", "run", "--rm", "--network=none", "--entrypoint=/usr/bin/plimsoll", *options, IMAGE, "doctor", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    expect(done.returncode == 0, f"doctor ended with {done.returncode}: {done.stdout}{done.stderr}")
    return {one["what"]: (one["level"], one["found"], one.get("remedy", "")) for one in json.loads(done.stdout)["findings"]}


def expect_told(findings: Findings, what: str, level: str, words: str) -> None:
    told = findings.get(what, ("missing", "", ""))
    expect(told[0] == level and words in told[1], f"{what} is told as {told}, expected {level}: {words}")


def follow(findings: Findings, options: tuple[str, ...], user: str) -> None:
    """What is advised about the state folder is done, and helps."""
    advice = f"--tmpfs /var/lib/plimsoll:uid={user},gid={user}"
    expect(advice in findings["state folder"][2], findings["state folder"][2])
    expect_told(doctor(*options, *advice.split()), "state folder", "ok", "/var/lib/plimsoll written to")


def case() -> str:
    small = doctor(*SMALL)
    expect_told(small, "platform", "ok", "docker")
    expect_told(small, "scope", "ok", "container")
    expect_told(small, "CPU limit", "ok", "0.50 cores, set by cgroup")
    expect_told(small, "memory limit", "ok", "256 MiB, set by cgroup")
    expect_told(small, "process 1", "ok", "ourselves")
    expect_told(small, "state folder", "ok", "/var/lib/plimsoll written to")
    expect_told(small, "groups of our own", "note", "none can be made")
    expect_told(small, "docker: grace", "warn", "docker stop waits 10 s")
    expect_told(small, "docker: memory limit", "ok", "cgroup")
    said = doctor(*SMALL, arguments=("--grace", "31s"))
    expect_told(said, "docker: grace", "ok", "waits 31 s")

    bare = doctor()
    expect_told(bare, "scope", "ok", "host")
    expect_told(bare, "docker: memory limit", "warn", "the whole machine")
    expect_told(doctor("--init"), "docker: process 1", "ok", "passes signals on")

    read_only = doctor(*READ_ONLY)
    expect_told(read_only, "runtime folder", "ok", "/dev/shm/plimsoll-65532 can be made")
    expect_told(read_only, "state folder", "warn", "nothing is recorded then")
    follow(read_only, READ_ONLY, "65532")

    least = doctor(*LEAST)
    for what in ("nice, and back", "lowering oom_score_adj", "real-time priority"):
        expect_told(least, what, "note", "does not work")
    follow(least, LEAST, "10001")
    for what in ("pidfd", "SIGSTOP and SIGCONT", "subreaper"):
        expect(least[what][0] == "ok", f"{what}: {least[what]}")

    with Pod() as pod, pod.app("/hog", "5", user=POD_USER):
        beside = doctor(*LEAST, pod.shared, arguments=SIDECAR)
        expect_told(beside, "process 1", "note", "pause")
        expect_told(beside, "app process", "ok", "found by")
        expect_told(beside, "app limit", "warn", "the daemon's")
        expect_told(beside, "policy.cpu.on_high throttle", "ok", "app by duty")
        through = doctor(*LEAST, pod.shared, arguments=(*SIDECAR, "--set", "sampling.scope.worker=app"))
        expect_told(through, "scope", "ok", "worker")
        expect("app limit" not in through, f"{through.get('app limit')}")
        stranger = doctor(pod.shared, "--user=10002:10002", arguments=SIDECAR)
        expect_told(stranger, "app process", "warn", "nobody matches")

    # Nobody but the kernel stops process 1 of a namespace from inside.
    with Container("5", options=(*SMALL, f"--user={POD_USER}", "--entrypoint=/hog")) as app:
        first = doctor(*LEAST, f"--pid=container:{app.id}", arguments=SIDECAR)
        expect_told(first, "app process", "warn", "it cannot be slowed")
        expect_told(first, "policy.cpu.on_high throttle", "note", "app not")
    return f"{len(small)} findings in a small container, {len(beside)} beside an application"


run(case)

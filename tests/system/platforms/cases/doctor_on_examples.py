#!/usr/bin/env python3
"""`plimsoll doctor --platform NAME`, as the pages have it, finds nothing wrong with that platform's example, and each known trap put into it."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from scenario import PLIMSOLL, SCRATCH, expect, run
from shipped import PACKAGING, REPOSITORY

PAGES = REPOSITORY / "docs/platforms"
# The example a platform's page is about, and what its command has to be told: a variable of Railway's cannot be seen from elsewhere.
EXAMPLES = {
    "railway": ["railway"],
    "render": ["render"],
    "fly": ["fly"],
    "docker": ["compose"],
    "kubernetes": ["kubernetes/base", "kubernetes/unchanged-image", "kubernetes/sidecar", "kubernetes/resize"],
}
GRACE = {"railway": ["--grace", "30s"], "docker": ["--grace", "30s"]}


@dataclasses.dataclass(frozen=True)
class Trap:
    platform: str
    # The finding that tells of it.
    told: str
    settings: tuple[str, ...] = ()
    variables: dict[str, str] = dataclasses.field(default_factory=dict)
    # A file of the folder, and what is taken out of it or put into it.
    file: str = ""
    without: str = ""
    added: str = ""
    # The grace is not told.
    untold: bool = False


TRAPS = [
    Trap("railway", "grace", untold=True),
    Trap("railway", "port", variables={"PORT": "18760"}),
    Trap("railway", "private network", settings=('http.listen=["0.0.0.0:18760"]',)),
    Trap("railway", "volume", variables={"RAILWAY_VOLUME_MOUNT_PATH": "/elsewhere"}),
    Trap("railway", "config as code", file="railway.toml", added="[deploy]\n"),
    Trap("render", "grace", file="render.yaml", without="    plan: starter\n", added="    plan: starter\n    maxShutdownDelaySeconds: 20\n"),
    Trap("render", "health check", settings=('workers.main.command=["true"]', "workers.main.longest_stop=6s")),
    Trap("render", "volume", file="render.yaml", without="/data", added="/elsewhere"),
    Trap("fly", "grace", file="fly.toml", without="kill_timeout = 30\n"),
    Trap("fly", "metrics", settings=('http.listen=["127.0.0.1:18760"]',)),
    Trap("fly", "volume", file="fly.toml", without='"/data"', added='"/elsewhere"'),
    Trap("kubernetes", "grace", settings=("daemon.shutdown_timeout=40s",)),
    Trap("kubernetes", "out of memory", settings=("policy.memory.critical=100%",)),
]


def found(folder: Path, platform: str, *flags: str, **variables: str) -> dict[str, tuple[str, str]]:
    """The level and the text of each finding about the platform."""
    done = subprocess.run(
        [PLIMSOLL, "doctor", "--platform", platform, "-c", "plimsoll.toml", *flags, "--json"],
        cwd=folder,
        env={"PATH": os.environ["PATH"], **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    expect(done.returncode == 0, f"doctor --platform {platform} on {folder.name} ended with {done.returncode}: {done.stdout}{done.stderr}")
    findings = json.loads(done.stdout)["findings"]
    return {finding["what"].removeprefix(f"{platform}: "): (finding["level"], finding["found"]) for finding in findings if finding["area"] == "platform"}


def laid_out(example: str, name: str) -> Path:
    """A copy of the example beside no other file."""
    folder = SCRATCH / name
    shutil.copytree(PACKAGING / example, folder)
    return folder


def sound(platform: str, example: str) -> int:
    seen = found(laid_out(example, example.replace("/", "-")), platform, *GRACE.get(platform, []))
    worse = {what: finding for what, finding in seen.items() if finding[0] not in ("ok", "note")}
    expect(not worse, f"{example}: {worse}")
    # Looked at it was.
    expect(seen["grace"][0] == "ok", f"{example}: {seen}")
    return len(seen)


def told(trap: Trap, number: int) -> None:
    folder = laid_out(EXAMPLES[trap.platform][0], f"trap-{number}")
    if trap.file:
        path = folder / trap.file
        text = path.read_text() if path.exists() else ""
        expect(trap.without in text, f"{trap.file} has no {trap.without!r} to take out")
        path.write_text(text.replace(trap.without, trap.added) if trap.without else text + trap.added)
    flags = [word for setting in trap.settings for word in ("--set", setting)]
    if not trap.untold:
        flags += GRACE.get(trap.platform, [])
    seen = found(folder, trap.platform, *flags, **trap.variables)
    expect(seen.get(trap.told, ("", ""))[0] == "warn", f"{trap} is not warned of: {seen}")


def on_pages() -> None:
    """Each page has the command for its platform, and from elsewhere too, with what it has to be told."""
    for platform in EXAMPLES:
        page = (PAGES / f"{platform}.md").read_text()
        blocks = "\n".join(re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
        commands = re.findall(rf"plimsoll doctor --platform {platform}[^\n\"#]*", blocks)
        expect(commands, f"{platform}.md does not say how its doctor is called")
        flags = " ".join(["plimsoll doctor --platform", platform, *GRACE.get(platform, [])])
        expect(any(command.startswith(flags) for command in commands), f"{platform}.md: none of {commands} is {flags}")


def case() -> str:
    on_pages()
    # What is examined on a machine of the platform's own is for the container suite; this one may be no docker.
    elsewhere = {platform: examples for platform, examples in EXAMPLES.items() if platform != "docker"}
    findings = sum(sound(platform, example) for platform, examples in elsewhere.items() for example in examples)
    for number, trap in enumerate(TRAPS):
        told(trap, number)
    return f"{sum(map(len, elsewhere.values()))} examples with {findings} findings, none a warning; {len(TRAPS)} traps told"


run(case)

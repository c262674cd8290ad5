#!/usr/bin/python3
"""The machine loses its power while workers are held: after the boot the service is up and guards, nothing of the boot before is put back, its record is kept."""

import json
import shutil
from pathlib import Path
from typing import Any

from scenario import PROGRAMS, SCRATCH, STARTS, Reboot, expect, output, run, wait_for
from unit import UNIT, Unit, limited_groups, systemctl, wait_until_throttled

# On the disk, where the boot before is still to be read; in /run it would be gone by itself.
RUNTIME = SCRATCH / "run"
OLD = SCRATCH / "old"
# In a folder that is the same one after the boot: what were put back would be seen here.
WITNESS = SCRATCH / "witness/value"
NOTES = SCRATCH / "notes.json"
# What is under test comes from a disk that is mounted late; a worker's program has to be there when the service starts.
HOG = SCRATCH / "hog"

SETTINGS = f"""
[daemon]
runtime_dir = "{RUNTIME}"

[policy.cpu]
sustain = "1s"

[workers.hog]
command = ["{HOG}", "100"]
replicas = 3

[jobs.tidy]
kind = "files"
paths = ["{OLD}"]
include = ["*.tmp"]
keep = "1d"
# The age of a file counts from its last change of any kind, so none can be made to look old: one too many goes.
max_files = 1
min_age = "1s"
"""


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def leftover(boot: str, pid: int) -> Path:
    """What a daemon of that boot would leave that had changed the witness, which said `put back` before."""
    folder = WITNESS.parent.stat()
    entry = {"boot": boot, "kind": "file", "path": str(WITNESS), "dev": folder.st_dev, "ino": folder.st_ino, "old": "put back"}
    file = RUNTIME / f"undo-{pid}.jsonl"
    file.write_text(json.dumps(entry) + "\n")
    return file


def runs() -> list[dict[str, Any]]:
    return json.loads(output("plimsoll", "jobs", "history", "tidy", "--json"))


def before() -> None:
    RUNTIME.mkdir()
    OLD.mkdir()
    shutil.copy(PROGRAMS / "hog", HOG)
    WITNESS.parent.mkdir()
    WITNESS.write_text("as it is")
    old, newer = OLD / "a.tmp", OLD / "b.tmp"
    old.write_text("x")
    wait_for("the next file is a newer one", 10, lambda: newer.write_text("x") and newer.stat().st_ctime > old.stat().st_ctime)
    unit = Unit(SETTINGS)
    expect(systemctl("is-enabled", UNIT) == "enabled", "the package has not enabled the unit")
    systemctl("start", UNIT)
    wait_for("every worker runs", 60, unit.workers_run)
    wait_until_throttled(unit, "cpu")
    output("plimsoll", "jobs", "run", "tidy", "--yes")
    expect(not old.exists() and newer.exists(), f"one of two files was to be deleted, and there are {sorted(OLD.iterdir())}")
    held = wait_for("something is to be undone", 30, lambda: [file for file in RUNTIME.glob("undo-*.jsonl") if file.read_text()])
    expect(boot_id() in held[0].read_text(), f"{held[0]} does not say of which boot it is: {held[0].read_text()}")
    leftover(boot_id(), 4000000)
    NOTES.write_text(json.dumps({"boot": boot_id(), "held": [str(file) for file in held], "runs": runs()}))
    raise Reboot


def after() -> str:
    notes = json.loads(NOTES.read_text())
    expect(boot_id() != notes["boot"], "the machine was not started again")
    unit = Unit.as_it_is()
    # Nobody but the boot itself has started it.
    wait_for("the unit is up", 60, lambda: unit.show("ActiveState") == "active")
    wait_for("every worker runs", 60, unit.workers_run)
    restarts = unit.show("NRestarts")
    expect(restarts == "0", f"it was started {restarts} times in vain")
    wait_until_throttled(unit, "cpu")
    expect(limited_groups(unit.group), "nothing is held by a quota")
    expect(WITNESS.read_text() == "as it is", f"what the boot before had left was put back: {WITNESS.read_text()}")
    left = [file for file in RUNTIME.glob("undo-*") if notes["boot"] in file.read_text(errors="replace")]
    expect(not left, f"the leftovers are still there: {left}")
    expect(runs()[: len(notes["runs"])] == notes["runs"] and notes["runs"], f"runs were {notes['runs']} and are {runs()}")
    systemctl("stop", UNIT)

    # The same entry, of this boot, is put back: it was the boot that kept it from that.
    leftover(boot_id(), 4000001)
    output("plimsoll", "release")
    expect(WITNESS.read_text() == "put back", "an entry of this boot was not put back either")
    return f"up again and held; {len(notes['held'])} files of the boot before ignored, {len(notes['runs'])} job runs kept"


def case() -> str | None:
    return before() if STARTS == 1 else after()


run(case)

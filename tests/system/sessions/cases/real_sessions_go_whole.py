#!/usr/bin/env python3
"""Old sessions of the real library go whole while it writes; it resumes every other, interrupted, forked, crashed and nested ones too.

In databases of two versions of the library. What was archived is brought back and resumed as well, and long-term memory stays.
"""

import json

from library import VERSIONS, Database
from scenario import expect, run


def cleaned(version: str) -> str:
    database = Database(version)
    known = database.fill()
    before = database.rows("SELECT count(*) FROM checkpoints")
    dry = database.clean_up("--dry-run")
    expect(dry.returncode == 0, f"the dry run failed: {dry.stderr}")
    expect(database.rows("SELECT count(*) FROM checkpoints") == before, "a dry run has deleted something")

    archive = f'archive = "{database.folder / "archive"}"'
    writer = database.write()
    done = database.clean_up(more=archive)
    output, errors = writer.communicate("", timeout=60)
    expect(done.returncode == 0, f"the cleanup failed: {done.stderr}")
    expect(writer.returncode == 0, f"the application failed meanwhile: {errors[-2000:]}")
    written = json.loads(output)

    memory = database.rows("SELECT prefix, value FROM store ORDER BY 1")
    expect(memory == [("old-plain-0", "tea"), ("young-plain-0", "coffee")], f"memory was touched: {memory}")
    expect(database.rows("PRAGMA integrity_check") == [("ok",)], "the database is damaged")
    restored = "old-waiting-1"
    back = database.restore(restored, archive)
    expect(back.returncode == 0, f"the session was not brought back: {back.stderr}")

    found = json.loads(database.app("check"))
    kept = 0
    for thread, what in known.items():
        now = found[thread]
        if what["age"] == "young" or thread == restored:
            expect(now["same"], f"{version}: {thread} is {now['state']}, was {what['state']}")
            expect(now["went_on"], f"{version}: {thread} does not go on")
            kept += 1
        else:
            expect(now["rows"] == {"checkpoints": 0, "writes": 0}, f"{version}: of {thread} there is left {now['rows']}")
            expect(not now["state"]["values"], f"{version}: {thread} has still a state")
    gone = len(known) - kept
    expect(gone == 14 and kept == 21, f"{version}: {gone} gone, {kept} kept")
    return f"{version}: {gone} gone, {kept} resumed, {written['turns']} turns meanwhile, the longest {written['longest_seconds']:.3f} s"


def case() -> str:
    return "; ".join(cleaned(version) for version in VERSIONS)


run(case)

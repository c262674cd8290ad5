#!/usr/bin/env python3
"""Plimsoll's session cleanup beside the loops applications write in Python, on one live database: time, peak memory, growth of the log of
changes, and what the application that writes notices.

    cargo build --release
    benches/cleanup.py --binary target/release/plimsoll

The database is in WAL mode, in LangGraph's schema: --rows rows (checkpoints and their writes) of sessions that are to go, and a tenth as many
of others. Each contestant has a fresh copy of it, a warm page cache, and beside it another process that commits one row every 10 ms with
synchronous = FULL; how long each of its transactions takes, from BEGIN IMMEDIATE to the end of COMMIT, is what the application notices.
All contestants must leave the same rows.

- Memory: the largest resident set of any process of it.
- Log: the largest -wal at any look (every 5 ms).
"""

import argparse
import pathlib
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time

from backups import Most, Writer, flush_and_warm, run

FIND = """
old = [thread for thread, newest in connection.execute("SELECT thread_id, max(checkpoint_id) FROM checkpoints GROUP BY thread_id") if newest < cutoff]
"""
BEGIN = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=120, isolation_level=None)
cutoff = sys.argv[2]
"""
DELETE = """
    connection.execute("DELETE FROM writes WHERE thread_id = ?", (thread,))
    connection.execute("DELETE FROM checkpoints WHERE thread_id = ?", (thread,))
"""
IN_ONE = BEGIN + FIND + 'connection.execute("BEGIN IMMEDIATE")\nfor thread in old:' + DELETE + 'connection.execute("COMMIT")\n'
BY_SESSION = BEGIN + FIND + 'for thread in old:\n    connection.execute("BEGIN IMMEDIATE")' + DELETE + '    connection.execute("COMMIT")\n'
VACUUMED = IN_ONE + 'connection.execute("VACUUM")\n'

DAY = 86400.0
STEPS = 25
WRITES = 3


def checkpoint_id(at, step, node):
    """A UUID of version 6 as the library makes them: the step where the clock sequence stands."""
    ticks = int(at * 1e7) + 0x01B21DD213814000
    number = (ticks >> 12) << 80 | 6 << 76 | (ticks & 0xFFF) << 64 | (0x8000 | step & 0x3FFF) << 48 | node
    text = f"{number:032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def make_database(path, rows, now):
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript("""
        PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;
        CREATE TABLE checkpoints (thread_id TEXT NOT NULL, checkpoint_ns TEXT NOT NULL DEFAULT '', checkpoint_id TEXT NOT NULL,
            parent_checkpoint_id TEXT, type TEXT, checkpoint BLOB, metadata BLOB, PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id));
        CREATE TABLE writes (thread_id TEXT NOT NULL, checkpoint_ns TEXT NOT NULL, checkpoint_id TEXT NOT NULL, task_id TEXT NOT NULL,
            idx INTEGER NOT NULL, channel TEXT NOT NULL, type TEXT, value BLOB, PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id, task_id, idx));
        BEGIN;""")
    old = rows // (STEPS * (1 + WRITES))
    for number in range(old + old // 10):
        age = (9 if number < old else 1) * DAY + number
        for step in range(STEPS):
            made = checkpoint_id(now - age + step * 1e-3, step, number + 1)
            thread, metadata = f"thread-{number:06}", f'{{"source":"loop","step":{step},"parents":{{}}}}'
            connection.execute("INSERT INTO checkpoints VALUES (?, '', ?, NULL, 'msgpack', ?, ?)", (thread, made, bytes(400), metadata.encode()))
            for index in range(WRITES):
                connection.execute("INSERT INTO writes VALUES (?, '', ?, 'task', ?, 'messages', 'msgpack', ?)", (thread, made, index, bytes(100)))
    connection.execute("COMMIT")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/plimsoll")
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where the databases are made; otherwise a temporary folder")
    arguments = parser.parse_args()
    base = pathlib.Path(tempfile.mkdtemp(prefix="plimsoll-cleanup-", dir=arguments.folder))
    try:
        original, database, settings = base / "original.db", base / "memory.db", base / "plimsoll.toml"
        now = time.time()
        make_database(original, arguments.rows, now)
        settings.write_text(f"""
[daemon]
state_dir = "{base}/state"
runtime_dir = "{base}/run"
[jobs.cleanup]
kind = "sessions"
database = "{database}"
keep = "7d"
""")
        cutoff = checkpoint_id(now - 7 * DAY, 0, 0)
        python = lambda script: [sys.executable, "-c", script, str(database), cutoff]
        contestants = {
            "plimsoll": [arguments.binary, "jobs", "run", "cleanup", "--yes", "-c", str(settings)],
            "Python, in one transaction": python(IN_ONE),
            "the same, then VACUUM": python(VACUUMED),
            "Python, a transaction for each session": python(BY_SESSION),
        }
        print(f"{original.stat().st_size / 1e6:.0f} MB, {arguments.rows} rows to go, {arguments.rounds} rounds\n")
        found, left = {}, set()
        for _ in range(arguments.rounds):
            for name, command in contestants.items():
                for file in base.glob("memory.db*"):
                    file.unlink()
                shutil.copy(original, database)
                flush_and_warm(database)
                writer, log = Writer(str(database)), Most(lambda: (base / "memory.db-wal").stat().st_size)
                taken, memory = run(command, 600)
                found.setdefault(name, []).append((taken, memory, log.end() / 1e6, *writer.end()))
                with sqlite3.connect(database) as connection:
                    left.add(connection.execute("SELECT count(*) FROM checkpoints WHERE thread_id != 'live'").fetchone())
        assert len(left) == 1, f"they do not leave the same: {left}"
        print("| | seconds | peak memory, MiB | largest log, MB | writer p50 / p99 / longest, ms |\n|---|---|---|---|---|")
        for name, rounds in found.items():
            median = lambda place: statistics.median(one[place] for one in rounds)
            longest = max(one[5] for one in rounds)
            print(f"| {name} | {median(0):.2f} | {median(1):.0f} | {median(2):.0f} | {median(3):.1f} / {median(4):.0f} / {longest:.0f} |")
    finally:
        shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    main()

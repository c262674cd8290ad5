#!/usr/bin/env python3
"""Plimsoll's backup beside `sqlite3 .backup` and `VACUUM INTO`, each with zstd, of one live database: time, peak memory, extra disk, and what
the application that writes notices.

    cargo build --release
    benches/backups.py --binary target/release/plimsoll

Wants the Debian packages sqlite3 and zstd. The database is in WAL mode, of so many MB (--megabytes), with rows as LangGraph's checkpointer
writes them: text that packs to about a sixth. Beside each contestant another process commits one row every 10 ms with
synchronous = FULL; how long each of its transactions takes, from BEGIN IMMEDIATE to the end of COMMIT, is what the application notices.
Each contestant begins with a warm page cache and an empty log of changes, and takes turns with the others.

- Time: from the start of the process until its end, the copy forced to the disk. Plimsoll's includes its proof (verify = "quick": read back,
  unpacked, compared, rows counted); `zstd -t` is added to the others to have at least that.
- Memory: the largest resident set of any process of it.
- Extra disk: the most the folder of copies held at any look (every 5 ms) over the size of the database.
- `.backup` begins anew with each commit of somebody else: it is given up after --patience seconds.
"""

import argparse
import os
import pathlib
import random
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time

WRITER = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], timeout=120, isolation_level=None)
connection.execute("PRAGMA synchronous = FULL")
print("writing", flush=True)
taken, number, due = [], 0, time.monotonic()
import threading
over = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
while not over.is_set():
    begun = time.monotonic()
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT INTO checkpoints VALUES ('live', '', ?, NULL, 'msgpack', ?, '{}')", (f"{time.time_ns():020}", "x" * 2000))
    connection.execute("COMMIT")
    taken.append(time.monotonic() - begun)
    due = max(due + 0.01, time.monotonic())
    time.sleep(max(0, due - time.monotonic()))
print(*(f"{one:.6f}" for one in taken), flush=True)
"""


def make_database(path, megabytes):
    words = [bytes(random.choices(b"abcdefghijklmnopqrstuvwxyz", k=random.randint(2, 10))).decode() for _ in range(3000)]
    weights = [1 / (place + 1) for place in range(len(words))]
    texts = [" ".join(random.choices(words, weights, k=1600)) for _ in range(3000)]
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript("""
        PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;
        CREATE TABLE checkpoints (thread_id TEXT NOT NULL, checkpoint_ns TEXT NOT NULL DEFAULT '', checkpoint_id TEXT NOT NULL,
            parent_checkpoint_id TEXT, type TEXT, checkpoint BLOB, metadata BLOB, PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id));
        CREATE TABLE writes (thread_id TEXT NOT NULL, checkpoint_ns TEXT NOT NULL DEFAULT '', checkpoint_id TEXT NOT NULL, task_id TEXT,
            idx INTEGER NOT NULL, channel TEXT, type TEXT, value BLOB, PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id, task_id, idx));""")
    connection.execute("BEGIN")
    number = 0
    while os.path.getsize(path) < megabytes * 1e6 * 0.995:
        for _ in range(500):
            thread, text = f"thread-{number % 500}", texts[number % len(texts)]
            cut = random.randrange(len(text))
            connection.execute("INSERT INTO checkpoints VALUES (?, '', ?, NULL, 'msgpack', ?, '{}')", (thread, f"{number:020}", (text[cut:] + text[:cut]).encode()))
            for index in range(2):
                connection.execute("INSERT INTO writes VALUES (?, '', ?, 'task', ?, 'messages', 'msgpack', ?)", (thread, f"{number:020}", index, text[:300].encode()))
            number += 1
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("BEGIN")
    connection.execute("COMMIT")
    connection.close()


class Writer:
    def __init__(self, database):
        self.process = subprocess.Popen([sys.executable, "-c", WRITER, database], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline().strip() == "writing"

    def end(self):
        out, _ = self.process.communicate("")
        taken = sorted(float(word) * 1000 for word in out.split())
        place = lambda share: taken[min(len(taken) - 1, int(len(taken) * share))]
        return place(0.5), place(0.99), taken[-1]


class Most:
    """The most that a measure said, asked every 5 ms."""

    def __init__(self, measure):
        self.measure, self.most, self.over = measure, 0, threading.Event()
        self.thread = threading.Thread(target=self.look)
        self.thread.start()

    def look(self):
        while not self.over.wait(0.005):
            try:
                self.most = max(self.most, self.measure())
            except FileNotFoundError:
                pass  # Not there yet, or not any more.

    def end(self):
        self.over.set()
        self.thread.join()
        return self.most


def taken_by(folder):
    return sum(entry.stat().st_blocks * 512 for entry in os.scandir(folder))


def largest(session):
    """The largest peak in MiB of any process of a session; what wait4 tells holds the memory of Python before the exec."""
    most = 0
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                if os.getsid(int(entry.name)) == session:
                    peak = [line for line in open(f"/proc/{entry.name}/status") if line.startswith("VmHWM")]
                    most = max([most, *(int(line.split()[1]) / 1024 for line in peak)])
            except OSError:
                pass
    return most


def run(command, patience):
    """Seconds (None when it was given up) and the largest resident set in MiB."""
    begun = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    timer = threading.Timer(patience, lambda: os.killpg(process.pid, signal.SIGKILL))
    timer.start()
    most = 0
    while (waited := os.wait4(process.pid, os.WNOHANG))[0] == 0:
        most = max(most, largest(process.pid))
        time.sleep(0.01)
    status = waited[1]
    timer.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    taken = time.monotonic() - begun
    if process.returncode == -signal.SIGKILL and taken >= patience:
        return None, most
    assert process.returncode == 0, f"{command}: exit {process.returncode}"
    return taken, most


def flush_and_warm(database):
    """What was made or removed before is none of what is measured; the database is read from memory."""
    os.sync()
    with open(database, "rb") as file:
        while file.read(1 << 24):
            pass


def contestants(binary, database, folder, settings):
    copy = folder / "copy.db"
    packed = f"zstd -q -3 --check -f {copy} -o {copy}.zst && sync {copy}.zst && rm {copy} && zstd -q -t {copy}.zst"
    return {
        "plimsoll": [binary, "jobs", "run", "backup", "-c", str(settings)],
        "VACUUM INTO + zstd": ["sh", "-c", f"sqlite3 {database} \"VACUUM INTO '{copy}'\" && {packed}"],
        ".backup + zstd": ["sh", "-c", f"sqlite3 {database} '.timeout 120000' '.backup {copy}' && {packed}"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/plimsoll")
    parser.add_argument("--megabytes", type=int, default=655)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--patience", type=float, default=45)
    parser.add_argument("--folder", help="where the database and the copies are made; otherwise a temporary folder")
    arguments = parser.parse_args()
    for program in ["sqlite3", "zstd"]:
        if shutil.which(program) is None:
            sys.exit(f"{program} is not there: apt-get install {program}")
    base = pathlib.Path(tempfile.mkdtemp(prefix="plimsoll-backups-", dir=arguments.folder))
    try:
        database, folder, settings = base / "memory.db", base / "copies", base / "plimsoll.toml"
        make_database(database, arguments.megabytes)
        size = database.stat().st_size
        settings.write_text(f"""
[daemon]
state_dir = "{base}/state"
runtime_dir = "{base}/run"
[jobs.backup]
kind = "backup"
databases = ["{database}"]
to = "{folder}"
""")
        print(f"{size / 1e6:.0f} MB, {arguments.rounds} rounds, {os.cpu_count()} cores\n")
        found = {}
        for _ in range(arguments.rounds):
            for name, command in contestants(arguments.binary, database, folder, settings).items():
                if found.get(name, [(0,)])[-1][0] is None:
                    continue  # It will not end the next time either.
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(mode=0o700)
                flush_and_warm(database)
                writer, disk = Writer(str(database)), Most(lambda: taken_by(folder))
                taken, memory = run(command, arguments.patience)
                extra = disk.end() / size
                found.setdefault(name, []).append((taken, memory, extra, *writer.end()))
        print("| | seconds | peak memory, MiB | extra disk | writer p50 / p99 / longest, ms |\n|---|---|---|---|---|")
        for name, rounds in found.items():
            median = lambda place: statistics.median(one[place] for one in rounds)
            taken = f"never ({arguments.patience:.0f} s)" if rounds[-1][0] is None else f"{median(0):.2f}"
            longest = max(one[5] for one in rounds)
            print(f"| {name} | {taken} | {median(1):.0f} | {median(2):.2f} | {median(3):.1f} / {median(4):.0f} / {longest:.0f} |")
    finally:
        shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""How exactly a budget is held, what holding it costs, and how soon a leak is answered: measured from outside.

    benches/reaction.py --binary target/release/plimsoll

Budgets: a worker of so many busy shells with `limits.cpu`, its use read from the CPU clocks of its processes over 10 s,
five seconds after its start; the daemon's own use over the same time is the price. Fills: a worker that takes 100 or 200
MB/s from rest, against a limit of its own and against that of a memory cgroup with the daemon in it; it looks itself at
every step whether the line is crossed, does not catch up when the machine held it up, and the time runs until its handler hears the signal (SIGTERM at the critical line,
which is acted on at once, SIGUSR1 at the high one). Nothing but the standard library is used.
"""

import argparse
import os
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import whole_process  # noqa: E402
from whole_process import Daemon, cpu_seconds, stats  # noqa: E402

FILL = """
import os, pathlib, signal, sys, time
heard, line, before, rate, stat = sys.argv[1], *map(float, sys.argv[2:5]), sys.argv[5]
page, blocks, crossed = os.sysconf("SC_PAGESIZE"), [], None
def used():
    if stat == "own":
        _, resident, shared, *_ = map(int, pathlib.Path("/proc/self/statm").read_text().split())
        # Its own pages: the program's file, which others share, is not charged to it.
        return (resident - shared) * page
    found = dict(line.split() for line in pathlib.Path(stat).read_text().splitlines())
    return sum(int(found["total_" + name]) for name in ("inactive_anon", "active_anon", "unevictable"))
def hear(*_):
    now = time.monotonic()
    took = 0 if crossed is None else now - crossed
    with open(heard + ".new", "w") as out: out.write(f"{1e3 * took!r} {used()!r}")
    os.rename(heard + ".new", heard)
    os._exit(0)
signal.signal(signal.SIGTERM, hear)
signal.signal(signal.SIGUSR1, hear)
step = 256 * 1024
while len(blocks) * step < before: blocks.append(b"x" * step)
time.sleep(3)
begun, first = time.monotonic(), len(blocks)
while len(blocks) * step < 2e9:
    blocks.append(b"x" * step)
    if crossed is None and used() >= line: crossed = time.monotonic()
    ahead = begun + (len(blocks) - first) * step / rate - time.monotonic()
    # Whoever was held up goes on at its rate: catching up would be another, far faster fill.
    if ahead < -0.01: begun -= ahead
    time.sleep(max(0, ahead))
"""

LIMIT = 512 << 20
MEMORY_GROUPS = pathlib.Path("/sys/fs/cgroup/memory")


def worker(command, extra, limits):
    lines = [f"[workers.hungry]\ncommand = {command!r}".replace("'", '"'), *extra, "[workers.hungry.limits]", limits]
    whole_process.WORKER = "\n".join(lines).replace("{", "{{").replace("}", "}}")


def tree(pid):
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid] + [below for child in children for below in tree(int(child))]


def budget(binary, method, budget_cores, processes):
    # One shell and its children, all of them busy.
    busy = "while :; do :; done"
    worker(["sh", "-c", f"{busy} & " * (processes - 1) + busy], [f'throttle = "{method}"'], f"cpu = {budget_cores}")
    daemon = Daemon(binary, 1, "1s", True)
    try:
        time.sleep(5)
        root = stats(daemon.port)["workers"][0]["replicas"][0]["pid"]
        members = tree(root)
        begun, own = time.monotonic(), cpu_seconds(daemon.pid)
        before = last = sum(map(cpu_seconds, members))
        seconds = []
        for second in range(1, 11):
            time.sleep(max(0, begun + second - time.monotonic()))
            now = sum(map(cpu_seconds, members))
            seconds.append(now - last)
            last = now
        took = time.monotonic() - begun
        used, price = (last - before) / took, (cpu_seconds(daemon.pid) - own) / took
    finally:
        daemon.stop()
    deviation = statistics.pstdev(seconds)
    print(f"| {method} | {processes} | {100 * budget_cores:.0f} | {100 * used:.2f} | {100 * (used - budget_cores):+.2f} | {100 * deviation:.2f} | {100 * price:.2f} |", flush=True)


def fill(binary, interval, kind, level, rate):
    """One filler from three fifths of the limit to the line. Yields milliseconds and the share past the line, both as it
    hears the signal."""
    folder = pathlib.Path(f"/tmp/plimsoll-fill-{os.getpid()}")
    folder.mkdir(exist_ok=True)
    script, heard, group = folder / "fill.py", folder / "heard", MEMORY_GROUPS / f"plimsoll-bench-{os.getpid()}"
    script.write_text(FILL)
    heard.unlink(missing_ok=True)
    line = (0.92 if level == "critical" else 0.8) * LIMIT
    stat = "own"
    limits = "cpu = 8" if kind == "scope" else f"memory = {LIMIT}"
    if kind == "scope":
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(LIMIT))
        stat = str(group / "memory.stat")
    ladder = ("notify", "recycle") if level == "critical" else ("shed", "notify")
    command = [sys.executable, str(script), str(heard), str(line), str(0.6 * LIMIT), str(rate), stat]
    ladder = f'[policy.memory]\non_high = ["{ladder[0]}"]\non_critical = ["{ladder[1]}"]'
    worker(command, ['shed_signal = "SIGUSR1"'], f"{limits}\n{ladder}")
    enter = (lambda: (group / "cgroup.procs").write_text(str(os.getpid()))) if kind == "scope" else None
    daemon = Daemon(binary, 1, interval, True, enter)
    try:
        deadline = time.monotonic() + 30
        while not heard.exists():
            if time.monotonic() > deadline:
                sys.exit(f"nothing was heard: {pathlib.Path(daemon.folder.name, 'log').read_text()}")
            time.sleep(0.02)
        took, used = map(float, heard.read_text().split())
        return took, 100 * (used - line) / LIMIT
    finally:
        daemon.stop()
        for left in (script, heard):
            left.unlink(missing_ok=True)
        folder.rmdir()
        if kind == "scope":
            group.rmdir()


def fills(binary, interval, runs):
    print("| whose limit of 512 MiB | line | MB/s | ms from the line to the signal, median (worst) | past the line, % of the limit (worst) |\n" + "|---" * 5 + "|")
    kinds = ["scope", "worker"] if os.access(MEMORY_GROUPS, os.W_OK) else ["worker"]
    for kind in kinds:
        for level in ("critical", "high"):
            for rate in (100e6, 200e6):
                seen = [fill(binary, interval, kind, level, rate) for _ in range(runs)]
                took, past = zip(*seen)
                print(f"| {kind} | {level} | {rate / 1e6:.0f} | {statistics.median(took):.1f} ({max(took):.1f}) | {statistics.median(past):.2f} ({max(past):.2f}) |", flush=True)
    if kinds == ["worker"]:
        print(f"\nskipped: the scope's limit, {MEMORY_GROUPS} cannot be written")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/plimsoll")
    parser.add_argument("--fills", type=int, default=9, help="runs for each latency of a fill")
    parser.add_argument("--no-budgets", action="store_true", help="fills alone")
    parser.add_argument("--interval", default="2s")
    args = parser.parse_args()
    if not args.no_budgets:
        print("| method | busy processes | budget % of a core | used % | off by | deviation of seconds | daemon CPU % |\n" + "|---" * 7 + "|")
        for method in ("cgroup", "duty"):
            for cores, processes in ((0.25, 1), (0.25, 4), (0.5, 10)):
                budget(args.binary, method, cores, processes)
        print()
    if args.fills:
        fills(args.binary, args.interval, args.fills)
    print(f"load of the machine: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()

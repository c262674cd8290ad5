#!/usr/bin/env python3
"""How exactly a budget is held, what holding it costs, and how soon a leak is answered: measured from outside.

    benches/reaction.py --binary target/dist/plimsoll

Budgets: a worker of so many busy shells with `limits.cpu`, its use read from the CPU clocks of its processes over 10 s,
five seconds after its start; the daemon's own use over the same time is the price. Leaks: a worker that takes 100 MB/s
against `limits.memory`; the time runs from the first millisecond in which its own resident memory is at the line (92 % of
its limit) until its handler hears SIGTERM. Nothing but the standard library is used.
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

LEAK = """
import mmap, os, signal, sys, time
def heard(*_):
    with open(sys.argv[1], "w") as out: out.write(repr(time.monotonic()))
    os._exit(0)
signal.signal(signal.SIGTERM, heard)
step, rate, blocks, begun = 256 * 1024, 100e6, [], time.monotonic()
while len(blocks) * step < 1e9:
    blocks.append(b"x" * step)
    time.sleep(max(0, begun + len(blocks) * step / rate - time.monotonic()))
"""


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


def leak(binary, interval):
    folder = pathlib.Path(f"/tmp/plimsoll-leak-{os.getpid()}")
    folder.mkdir(exist_ok=True)
    script, heard = folder / "leak.py", folder / "heard"
    script.write_text(LEAK)
    heard.unlink(missing_ok=True)
    worker([sys.executable, str(script), str(heard)], [], 'memory = "400MB"\n[policy.memory]\non_high = ["notify"]\non_critical = ["recycle"]')
    daemon = Daemon(binary, 1, interval, True)
    try:
        children = pathlib.Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
        pid = next(child for child in children if b"leak.py" in pathlib.Path(f"/proc/{child}/cmdline").read_bytes())
        crossed = None
        while crossed is None:
            # Its own pages: the program's file, which others share, is not charged to it.
            _, resident, shared, *_ = map(int, pathlib.Path(f"/proc/{pid}/statm").read_text().split())
            crossed = time.monotonic() if (resident - shared) * os.sysconf("SC_PAGESIZE") >= 0.92 * 400e6 else None
            time.sleep(0.001)
        while not heard.exists() or not heard.read_text():
            time.sleep(0.001)
        return 1e3 * (float(heard.read_text()) - crossed)
    finally:
        daemon.stop()
        for left in (script, heard):
            left.unlink(missing_ok=True)
        folder.rmdir()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/plimsoll")
    parser.add_argument("--leaks", type=int, default=7, help="runs for the latency of a leak")
    parser.add_argument("--interval", default="2s")
    args = parser.parse_args()
    print("| method | busy processes | budget % of a core | used % | off by | deviation of seconds | daemon CPU % |\n" + "|---" * 7 + "|")
    for method in ("cgroup", "duty"):
        for cores, processes in ((0.25, 1), (0.25, 4), (0.5, 10)):
            budget(args.binary, method, cores, processes)
    took = [leak(args.binary, args.interval) for _ in range(args.leaks)]
    if took:
        print(f"\nleak of 100 MB/s, from the line to SIGTERM: median {statistics.median(took):.0f} ms ({min(took):.0f}–{max(took):.0f}), {len(took)} runs")
    print(f"load of the machine: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()

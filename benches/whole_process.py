#!/usr/bin/env python3
"""What the whole daemon costs while nothing happens: CPU, memory and wake-ups with so many idle workers.

    cargo build --release
    benches/whole_process.py --binary target/release/plimsoll --replicas 0 10 100 1000 --interval 1s

Each row is one daemon in a folder of its own, with its history, its log and its HTTP listeners on. After all workers
are up it is left alone for SETTLE seconds; then it is watched for `--windows` windows of `--window` seconds. CPU comes from the CPU
clock of the process (nanoseconds, every thread), memory from smaps_rollup, wake-ups are voluntary context switches of
every thread. Figures are medians over the windows with the smallest and the largest. The sentinel, the daemon's small
companion, is watched in the same way. Nothing but the standard library is used, and nothing is left behind.
"""

import argparse
import json
import os
import pathlib
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

SETTLE = 5.0
CONFIG = """
[daemon]
state_dir = "{folder}/state"
runtime_dir = "{folder}/run"
[http]
listen = ["127.0.0.1:{port}"]
[sampling]
interval = "{interval}"
[policy.cpu]
# Held against what the workers use: work of others on this machine must not begin a throttle in the middle of a measurement.
limit = {cores}
{host}
"""
WORKER = """
[workers.idle]
command = ["sleep", "100000"]
replicas = {replicas}
"""


def cpu_seconds(pid):
    """Seconds of CPU used by all threads of a process, from its CPU clock."""
    return time.clock_gettime_ns((~pid << 3) | 2) / 1e9


def memory_kib(pid):
    """Resident, proportional and anonymous memory."""
    found = {}
    for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value, *_ = line.split()
        found[name.rstrip(":")] = int(value)
    return found["Rss"], found["Pss"], found["Anonymous"]


def threads(pid):
    return list(pathlib.Path(f"/proc/{pid}/task").iterdir())


def wakeups(pid):
    count = 0
    for thread in threads(pid):
        for line in (thread / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                count += int(line.split()[1])
    return count


def sentinel_of(pid):
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for child in children:
        if b"\0sentinel\0" in pathlib.Path(f"/proc/{child}/cmdline").read_bytes():
            return int(child)
    return None


def ask(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def stats(port):
    return json.loads(ask(port, "/admin/resources/stats")[1])


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Daemon:
    def __init__(self, binary, replicas, interval, groups, enter=None):
        self.folder = tempfile.TemporaryDirectory(prefix="plimsoll-bench-")
        folder = self.folder.name
        self.port = free_port()
        # A folder without a single cgroup in it: workers then get none of their own.
        host = "" if groups else f'[host]\ncgroup = "{folder}/none"'
        text = CONFIG.format(folder=folder, port=self.port, interval=interval, cores=max(0.1, (os.cpu_count() or 1) - 0.1), host=host)
        if replicas:
            text += WORKER.format(replicas=replicas)
        for name in ("state", "run", "none"):
            os.mkdir(f"{folder}/{name}")
        pathlib.Path(f"{folder}/plimsoll.toml").write_text(text)
        begun = time.monotonic()
        self.log = open(f"{folder}/log", "wb")
        self.process = subprocess.Popen([binary, "run", "-c", f"{folder}/plimsoll.toml"], stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL, preexec_fn=enter)
        self.pid = self.process.pid
        while ask(self.port, "/readyz")[0] != 200:
            if self.process.poll() is not None:
                sys.exit(f"the daemon ended: {pathlib.Path(folder, 'log').read_text()}")
            time.sleep(0.01)
        self.ready_in = time.monotonic() - begun
        self.start_cpu = cpu_seconds(self.pid)

    def stop(self):
        begun = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=120)
        self.log.close()
        self.folder.cleanup()
        return time.monotonic() - begun


def spread(values, form):
    text = form.format(statistics.median(values))
    return text if len(values) < 2 else f"{text} ({form.format(min(values))}–{form.format(max(values))})"


def measure(args, replicas):
    daemon = Daemon(args.binary, replicas, args.interval, not args.no_groups)
    try:
        time.sleep(SETTLE)
        pids = [daemon.pid, sentinel_of(daemon.pid)]
        shares, per_tick, wakes, sentinel = [], [], [], []
        for _ in range(args.windows):
            # Asked before and after, outside of the window: an answer of a thousand workers is work as well.
            ticks = stats(daemon.port)["tick"]
            time.sleep(0.3)
            begun = time.monotonic()
            before = [(cpu_seconds(pid), wakeups(pid)) for pid in pids if pid]
            time.sleep(args.window)
            after = [(cpu_seconds(pid), wakeups(pid)) for pid in pids if pid]
            took = time.monotonic() - begun
            ticks = (stats(daemon.port)["tick"] - ticks) * took / (took + 0.3)
            spent = [(now[0] - then[0], now[1] - then[1]) for then, now in zip(before, after)]
            shares.append(100 * spent[0][0] / took)
            per_tick.append(1e3 * spent[0][0] / max(1, ticks))
            wakes.append(spent[0][1] / took)
            if len(spent) > 1:
                sentinel.append(100 * spent[1][0] / took)
        rss, pss, anonymous = memory_kib(daemon.pid)
        own = memory_kib(pids[1]) if pids[1] else (0, 0, 0)
        row = {
            "workers": str(replicas),
            "CPU % of a core": spread(shares, "{:.3f}"),
            "CPU ms a tick": spread(per_tick, "{:.2f}"),
            "wake-ups/s": spread(wakes, "{:.1f}"),
            "RSS MiB": f"{rss / 1024:.1f}",
            "PSS MiB": f"{pss / 1024:.1f}",
            "anonymous MiB": f"{anonymous / 1024:.1f}",
            "threads": str(len(threads(daemon.pid))),
            "ready s": f"{daemon.ready_in:.2f}",
            "start CPU s": f"{daemon.start_cpu:.2f}",
            "sentinel CPU %": spread(sentinel, "{:.3f}") if sentinel else "–",
            "sentinel RSS/PSS MiB": f"{own[0] / 1024:.1f}/{own[1] / 1024:.1f}",
        }
    finally:
        stopped = daemon.stop()
    row["stop s"] = f"{stopped:.2f}"
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/plimsoll")
    parser.add_argument("--replicas", type=int, nargs="+", default=[0, 10, 100, 1000])
    parser.add_argument("--interval", default="1s", help="sampling.interval")
    parser.add_argument("--window", type=float, default=10, help="seconds")
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--no-groups", action="store_true", help="as where no cgroup can be written: workers get none of their own")
    args = parser.parse_args()
    before = os.getloadavg()[0]
    rows = []
    for replicas in args.replicas:
        rows.append(measure(args, replicas))
        if len(rows) == 1:
            print("| " + " | ".join(rows[0]) + " |\n" + "|---" * len(rows[0]) + "|", flush=True)
        print("| " + " | ".join(rows[-1].values()) + " |", flush=True)
    print(f"\nload of the machine: {before:.1f} before, {os.getloadavg()[0]:.1f} after; interval {args.interval}; groups: {'no' if args.no_groups else 'yes'}")


if __name__ == "__main__":
    main()

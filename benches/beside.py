#!/usr/bin/env python3
"""Plimsoll beside its peers, on the same workers in the same seconds: cost at rest, crossing to action, throttle accuracy.

    cargo build --release
    benches/beside.py --binary target/release/plimsoll

Wants, and leaves out with a word where they are missing: the Debian packages earlyoom, monit, prometheus-node-exporter
and cpulimit, and psutil for this Python. All peers run at once, so that whatever else the machine does happens to each of
them alike. Everybody looks once a second; the exporter is scraped once a second.

- Rest: CPU by the processes' CPU clocks (children that were waited for included), memory by smaps_rollup, wake-ups as
  voluntary context switches; medians over the windows.
- Crossing: a worker takes 200 MB/s. The time runs from the first millisecond in which an independent look finds the line
  crossed until the worker's handler hears the signal. One line is the worker's own resident memory (Plimsoll's
  `limits.memory`, monit's totalmem, a psutil loop), the other the machine's MemAvailable (Plimsoll's scope, earlyoom, which
  is let loose in a PID namespace where it finds nobody but the worker).
- Throttle: a busy loop and a pool of four threads at 25 % of a core over ten seconds; cpulimit holds their twins meanwhile.
"""

import argparse
import contextlib
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import whole_process  # noqa: E402
from whole_process import Daemon, cpu_seconds, free_port, memory_kib, spread, stats, wakeups  # noqa: E402

RATE = 200e6
LIMIT = 300e6

PSUTIL_LOOP = """
import psutil, signal, sys, time
limit = float(sys.argv[1])
workers = [psutil.Process(int(pid)) for pid in sys.argv[2:]]
while True:
    for worker in workers:
        worker.cpu_times()
        if worker.memory_info().rss > limit:
            worker.send_signal(signal.SIGTERM)
    time.sleep(1)
"""

# Takes memory at a steady rate from its start on and says when it heard the signal. An ordinary heap would be given in
# huge pages, which come in leaps.
FILLER = """
import mmap, os, signal, sys, time
heard, rate, most, wait_for = sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
def stop(*_):
    with open(heard + ".new", "w") as out: out.write(repr(time.monotonic()))
    os.rename(heard + ".new", heard)
    os._exit(0)
signal.signal(signal.SIGTERM, stop)
while wait_for != "-" and not os.path.exists(wait_for): time.sleep(0.01)
step, filled, begun = 256 * 1024, 0, time.monotonic()
while filled < most:
    block = mmap.mmap(-1, step)
    block.madvise(mmap.MADV_NOHUGEPAGE)
    for page in range(0, step, 4096): block[page] = 1
    globals().setdefault("blocks", []).append(block)
    filled += step
    time.sleep(max(0, begun + filled / rate - time.monotonic()))
signal.pause()
"""

POOL = """
import ctypes, sys, threading
libc = ctypes.CDLL(None)
# While C counts the letters the interpreter's lock is free: the threads really run side by side.
text = b"x" * 4_000_000
def burn():
    while True: libc.strlen(text)
for _ in range(int(sys.argv[1]) - 1): threading.Thread(target=burn, daemon=True).start()
burn()
"""


def toml(command):
    return "[" + ", ".join(f'"{word}"' for word in command) + "]"


def settings(text):
    whole_process.WORKER = text.replace("{", "{{").replace("}", "}}")


class Peer:
    """A process with all its children, watched from outside."""

    def __init__(self, name, command, **how):
        self.name = name
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, **how)
        self.pid = self.process.pid

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def used(pid):
    """Seconds of CPU, of children that were waited for too."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return cpu_seconds(pid) + (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def monit_file(folder, pids, action):
    lines = [f'set daemon 1\nset pidfile {folder}/monit.pid\nset statefile {folder}/monit.state\nset idfile {folder}/monit.id\nset log {folder}/monit.log']
    for number, pid in enumerate(pids):
        (folder / f"{number}.pid").write_text(f"{pid}\n")
        lines.append(f"check process w{number} with pidfile {folder}/{number}.pid\n  {action.format(pid=pid)}")
    control = folder / "monitrc"
    control.write_text("\n".join(lines) + "\n")
    control.chmod(0o600)
    return ["monit", "-I", "-c", str(control)]


def has_psutil():
    return subprocess.run([sys.executable, "-c", "import psutil"], stderr=subprocess.DEVNULL).returncode == 0


def at_rest(args, replicas):
    settings(f'[workers.idle]\ncommand = ["sleep", "100000"]\nreplicas = {replicas}')
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="plimsoll-beside-")))
        daemon = Daemon(args.binary, replicas, "1s", True)
        stack.callback(daemon.stop)
        pids = [replica["pid"] for replica in stats(daemon.port)["workers"][0]["replicas"]]
        peers = [("Plimsoll", daemon.pid)]

        def add(peer):
            stack.callback(peer.stop)
            peers.append((peer.name, peer.pid))

        port = free_port()
        if shutil.which("prometheus-node-exporter"):
            add(Peer("node_exporter", ["prometheus-node-exporter", f"--web.listen-address=127.0.0.1:{port}"]))
        if shutil.which("earlyoom"):
            add(Peer("earlyoom", ["earlyoom", "--dryrun", "-m", "1", "-r", "0"]))
        if shutil.which("monit"):
            add(Peer("monit", monit_file(folder, pids, "if totalmem > 4000 MB then exec \"/bin/true\"")))
        if has_psutil():
            add(Peer("psutil loop", [sys.executable, "-c", PSUTIL_LOOP, "4e9", *map(str, pids)]))
        time.sleep(8)
        shares, wakes, page = {}, {}, []
        for _ in range(args.windows):
            before = {name: (used(pid), wakeups(pid)) for name, pid in peers}
            begun = time.monotonic()
            while (left := begun + args.window - time.monotonic()) > 0:
                if "node_exporter" in before:
                    page.append(len(urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read()))
                time.sleep(min(1, left))
            took = time.monotonic() - begun
            for name, pid in peers:
                shares.setdefault(name, []).append(100 * (used(pid) - before[name][0]) / took)
                wakes.setdefault(name, []).append((wakeups(pid) - before[name][1]) / took)
        for name, pid in peers:
            rss, pss, _ = memory_kib(pid)
            row = [str(replicas), name, spread(shares[name], "{:.3f}"), spread(wakes[name], "{:.1f}"), f"{rss / 1024:.1f}", f"{pss / 1024:.1f}"]
            print("| " + " | ".join(row) + " |", flush=True)


def own_memory(pid):
    _, resident, shared, *_ = map(int, pathlib.Path(f"/proc/{pid}/statm").read_text().split())
    return resident * os.sysconf("SC_PAGESIZE")


def available():
    for line in open("/proc/meminfo"):
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024
    raise SystemExit("no MemAvailable")


def wait_until(condition, seconds, pause=0.001):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return None
        time.sleep(pause)
    return time.monotonic()


def latency(crossed, heard):
    """From the crossing until the handler ran, in milliseconds; `None` when either never came."""
    at = wait_until(crossed, 60)
    if at is None or wait_until(heard.exists, 20) is None:
        return None
    return 1e3 * (float(heard.read_text()) - at)


def filler(folder, most, wait_for="-"):
    script = folder / "filler.py"
    script.write_text(FILLER)
    return [sys.executable, str(script), str(folder / "heard"), str(RATE), str(most), str(wait_for)]


def own_line(name, args):
    """A worker's own line: one run."""
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="plimsoll-beside-")))
        go, heard = folder / "go", folder / "heard"
        command = filler(folder, 2e9, go)
        line = LIMIT
        if name == "Plimsoll":
            # The line of a worker is 92 % of its limit.
            settings(f'[workers.filler]\ncommand = {toml(command)}\n[workers.filler.limits]\nmemory = {int(LIMIT / 0.92)}\n'
                     '[policy.memory]\non_high = ["notify"]\non_critical = ["recycle"]')
            daemon = Daemon(args.binary, 1, "1s", True)
            stack.callback(daemon.stop)
            pid = stats(daemon.port)["workers"][0]["replicas"][0]["pid"]
        else:
            worker = Peer("filler", command)
            stack.callback(worker.stop)
            pid = worker.pid
            if name == "monit":
                stack.callback(Peer(name, monit_file(folder, [pid], f'if totalmem > {LIMIT / 2**20:.0f} MB then exec "/bin/kill -TERM {{pid}}"')).stop)
            else:
                stack.callback(Peer(name, [sys.executable, "-c", PSUTIL_LOOP, str(LIMIT), str(pid)]).stop)
        time.sleep(3 + (os.getpid() + time.monotonic_ns()) % 1000 / 1000)
        go.touch()
        return latency(lambda: own_memory(pid) >= line, heard)


def machine_line(name, args):
    """The machine's line, a little under what is available now: one run."""
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="plimsoll-beside-")))
        go, heard = folder / "go", folder / "heard"
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE")
        percent = int(100 * (available() - 600e6) / total)
        command = filler(folder, 3e9, go)
        if name == "Plimsoll":
            settings(f'[workers.filler]\ncommand = {toml(command)}\n[policy.memory]\nhigh = "{100 - percent - 1}%"\nlow = "1%"\ncritical = "{100 - percent}%"\n'
                     'on_high = ["notify"]\non_critical = ["recycle"]')
            daemon = Daemon(args.binary, 1, "1s", True)
            stack.callback(daemon.stop)
        else:
            # In a PID namespace of their own there is nobody else to be found. The shell stays: earlyoom spares process 1.
            inner = f"earlyoom -m {percent} -r 0 >/dev/null 2>&1 & " + " ".join(f"'{word}'" for word in command) + "; exit"
            inside = Peer(name, ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", inner])
            stack.callback(inside.stop)
        time.sleep(3 + time.monotonic_ns() % 1000 / 1000)
        go.touch()
        return latency(lambda: available() <= percent / 100 * total, heard)


def crossings(args):
    runs = {}
    for _ in range(args.runs):
        # In turn, so that a busy minute of the machine is everybody's.
        for name, run in (("Plimsoll", own_line), ("monit", own_line), ("psutil loop", own_line), ("Plimsoll ", machine_line), ("earlyoom", machine_line)):
            missing = (name == "monit" and not shutil.which("monit")) or (name == "psutil loop" and not has_psutil())
            missing = missing or (name == "earlyoom" and not shutil.which("earlyoom"))
            if not missing:
                runs.setdefault((name.strip(), run.__name__), []).append(run(name.strip(), args))
    print("\n| whose line | | runs | min ms | median | max | past the line at the median, MB |\n" + "|---" * 7 + "|")
    for (name, line), all_times in runs.items():
        times = [took for took in all_times if took is not None]
        whose = "the worker's" if line == "own_line" else "the machine's"
        if times:
            middle = statistics.median(times)
            print(f"| {whose} | {name} | {len(times)} of {len(all_times)} | {min(times):.1f} | {middle:.1f} | {max(times):.1f} | {middle / 1e3 * RATE / 1e6:.1f} |")
        else:
            print(f"| {whose} | {name} | 0 of {len(all_times)} | – | – | – | – |")


def throttles(args):
    print("\n| threads | held by | mean % of a core | off by | deviation of seconds |\n" + "|---" * 5 + "|")
    for threads in (1, 4):
        with contextlib.ExitStack() as stack:
            busy = ["sh", "-c", "while :; do :; done"] if threads == 1 else [sys.executable, "-c", POOL, str(threads)]
            twins = []
            for method in ("cgroup", "duty"):
                escaped = [word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for word in busy]
                settings(f'[workers.busy]\ncommand = {toml(escaped)}\nthrottle = "{method}"\n[workers.busy.limits]\ncpu = 0.25')
                daemon = Daemon(args.binary, 1, "1s", True)
                stack.callback(daemon.stop)
                twins.append((f"Plimsoll, {method}", stats(daemon.port)["workers"][0]["replicas"][0]["pid"]))
            if shutil.which("cpulimit"):
                worker = Peer("busy", busy)
                stack.callback(worker.stop)
                stack.callback(Peer("cpulimit", ["cpulimit", "-l", "25", "-p", str(worker.pid)]).stop)
                twins.append(("cpulimit -l 25", worker.pid))
            time.sleep(5)
            begun = time.monotonic()
            looks = [{pid: cpu_seconds(pid) for _, pid in twins}]
            for second in range(1, 11):
                time.sleep(max(0, begun + second - time.monotonic()))
                looks.append({pid: cpu_seconds(pid) for _, pid in twins})
            took = time.monotonic() - begun
            for name, pid in twins:
                mean = 100 * (looks[-1][pid] - looks[0][pid]) / took
                seconds = [100 * (now[pid] - then[pid]) for then, now in zip(looks, looks[1:])]
                print(f"| {threads} | {name} | {mean:.2f} | {mean - 25:+.2f} | {statistics.pstdev(seconds):.2f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/plimsoll")
    parser.add_argument("--replicas", type=int, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--window", type=float, default=10, help="seconds")
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--runs", type=int, default=9, help="of each crossing; 0 leaves them out")
    parser.add_argument("--no-throttle", action="store_true", help="leaves the comparison with cpulimit out")
    args = parser.parse_args()
    print(f"load of the machine: {os.getloadavg()[0]:.1f}\n")
    if args.replicas:
        print("| workers | | CPU % of a core | wake-ups/s | RSS MiB | PSS MiB |\n" + "|---" * 6 + "|")
    for replicas in args.replicas:
        at_rest(args, replicas)
    if args.runs:
        crossings(args)
    if not args.no_throttle:
        throttles(args)
    print(f"\nload of the machine: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main()

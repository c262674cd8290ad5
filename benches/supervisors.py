#!/usr/bin/env python3
"""Plimsoll beside other supervisors, on the same workers in the same minutes: footprint, wake-ups, time to replace, who is left behind.

    cargo build --release
    benches/supervisors.py --binary target/release/plimsoll

Supervisor, circus and gunicorn come from PyPI and pm2 from npm, of fixed versions, into `target/system-cache`; runit and s6 are the
Debian packages. Who cannot be had is shown as absent, with the reason. Needs `cc`.

- Rest: everybody at once, four idle Python workers each. Memory is the sum over all processes of the manager (helpers included, the
  workers not) of RSS and PSS, wake-ups are voluntary context switches of all their threads, CPU their CPU clocks.
- Replacement: everybody at once, four workers each. The worker is a static C program whose first act is to read
  CLOCK_MONOTONIC and write it into a FIFO; the time runs from just before the SIGKILL until then, so it holds the kernel's share (the death, a
  fork, an exec) as well as the manager's. gunicorn forks its workers and executes nothing: there the first act is that of
  its `post_fork` hook. Contestants take turns, round by round; those that are quick have three kills in a turn, each
  of another worker. No worker is killed before it has lived for three seconds, longer than anybody's idea of a crash loop
  (runit and s6: 1 s; Plimsoll's `backoff.healthy_after` is set to 100ms). Otherwise each has the settings that
  make it quickest (Supervisor startsecs=0) or its defaults (circus looks every 5 s).
- Survivors: each of four workers has an ordinary child, one in a session of its own and one forked twice into another. Counted
  are those alive one second after the polite end of the manager, after the death of one worker (of its own three), and after
  SIGKILL of the manager. Settings that help are on (Supervisor stopasgroup and killasgroup, circus stop_children).
"""

import argparse
import contextlib
import hashlib
import os
import pathlib
import random
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

WORKERS = 4
PYPI = ["supervisor==4.3.0", "circus==0.19.0", "gunicorn==27.0.1", "setuptools==65.5.0"]
NPM = ["pm2@7.0.4"]
# No worker is killed sooner after its start.
SETTLED = 3.0
MARK = "SUPERVISED"

PROGRAM = r"""
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static void say(const char *kind)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    char line[96];
    int length = snprintf(line, sizeof line, "%s %d %lld\n", kind, (int)getpid(), now.tv_sec * 1000000000LL + now.tv_nsec);
    int fifo = open(FIFO, O_WRONLY);
    if (fifo < 0 || write(fifo, line, (size_t)length) != length)
        _exit(1);
    close(fifo);
}

int main(int words, char **word)
{
    const char *kind = words > 1 && strchr("cso", word[1][0]) ? word[1] : "worker";
    if (!strcmp(kind, "session"))
        setsid();
    if (!strcmp(kind, "orphan")) {
        setsid();
        if (fork())
            _exit(0);
    }
    say(kind);
    if (BROOD && !strcmp(kind, "worker")) {
        static char *const kinds[] = {"child", "session", "orphan"};
        for (int i = 0; i < 3; i++)
            if (fork() == 0)
                execl(SELF, SELF, kinds[i], (char *)0);
    }
    for (;;)
        pause();
}
"""

GUNICORN = """
import os, subprocess, time
workers = 4
bind = "127.0.0.1:{port}"
control_socket_disable = True
loglevel = "warning"
def post_fork(server, worker):
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    if {fifo!r}:
        with open({fifo!r}, "wb", buffering=0) as fifo: fifo.write(b"worker %d %d\\n" % (os.getpid(), now))
    if {brood}:
        for kind in ("child", "session", "orphan"): subprocess.Popen([{program!r}, kind])
"""
WSGI = 'def app(environ, start):\n    start("200 OK", [])\n    return [b""]\n'


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def installed(folder, commands):
    """The folder, made by these commands if it is not there; raises OSError with the reason."""
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise OSError(((done.stderr or done.stdout).strip().splitlines() or ["no reason given"])[-1])
        (folder / "complete").touch()
    return folder


def key(words):
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:12]


def python_peers(cache):
    folder = cache / f"peers-{key([sys.version, *PYPI])}"
    pip = [folder / "bin/pip", "install", "--quiet", "--disable-pip-version-check", *PYPI]
    return installed(folder, [[sys.executable, "-m", "venv", folder], pip]) / "bin"


def node_peers(cache):
    if not shutil.which("npm"):
        raise OSError("npm is not installed")
    folder = cache / f"peers-npm-{key(NPM)}"
    return installed(folder, [["npm", "install", "--no-audit", "--no-fund", "--silent", "--prefix", folder, *NPM]]) / "node_modules/.bin"


def debian(program):
    found = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/bin:/usr/sbin:/bin")
    if not found:
        raise OSError(f"{program} is not installed")
    return found


def version(command):
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run(command, capture_output=True, text=True, timeout=30, env={**os.environ, "PM2_HOME": "/nonexistent"})
        return ((said.stdout or said.stderr).strip().splitlines() or ["?"])[-1]
    return "?"


def package_version(name):
    return version(["dpkg-query", "--show", "--showformat=${Version}", name])


# How each is told to run four of `command`: gives the command line that starts it.


def plimsoll(args, folder, command, _, death="resume"):
    words = ", ".join(f'"{word}"' for word in command)
    cores = max(0.1, (os.cpu_count() or 1) - 0.1)
    (folder / "state").mkdir()
    (folder / "run").mkdir()
    (folder / "plimsoll.toml").write_text(f"""
[daemon]
state_dir = "{folder}/state"
runtime_dir = "{folder}/run"
[http]
listen = ["127.0.0.1:{free_port()}"]
[policy.cpu]
limit = {cores}
[workers.idle]
command = [{words}]
replicas = {WORKERS}
on_daemon_death = "{death}"
backoff = {{ healthy_after = "100ms", give_up = 100000 }}
""")
    return [args.binary, "run", "-c", f"{folder}/plimsoll.toml"]


def supervisor(args, folder, command, _):
    (folder / "supervisord.conf").write_text(f"""
[supervisord]
nodaemon = true
logfile = {folder}/supervisord.log
pidfile = {folder}/supervisord.pid
[program:idle]
command = {" ".join(command)}
numprocs = {WORKERS}
process_name = idle%(process_num)s
startsecs = 0
stopasgroup = true
killasgroup = true
""")
    return [str(python_peers(args.cache) / "supervisord"), "-n", "-c", f"{folder}/supervisord.conf"]


def circus(args, folder, command, _):
    ports = [free_port() for _ in range(2)]
    (folder / "circus.ini").write_text(f"""
[circus]
endpoint = tcp://127.0.0.1:{ports[0]}
pubsub_endpoint = tcp://127.0.0.1:{ports[1]}
[watcher:idle]
cmd = {" ".join(command)}
numprocesses = {WORKERS}
copy_env = True
stop_children = True
""")
    return [str(python_peers(args.cache) / "circusd"), f"{folder}/circus.ini"]


def gunicorn(args, folder, _, how):
    (folder / "wsgi.py").write_text(WSGI)
    (folder / "gunicorn.conf.py").write_text(GUNICORN.format(port=free_port(), **how))
    return [str(python_peers(args.cache) / "gunicorn"), "-c", f"{folder}/gunicorn.conf.py", "--chdir", str(folder), "wsgi:app"]


def pm2(args, folder, command, _):
    (folder / "pm2.json").write_text(
        '{"apps": [{"name": "idle", "script": "%s", "args": "%s", "interpreter": "none", "exec_mode": "fork", "instances": %d, '
        '"max_restarts": 100000}]}' % (command[0], " ".join(command[1:]), WORKERS)
    )
    return [str(node_peers(args.cache) / "pm2-runtime"), "start", f"{folder}/pm2.json"]


def services(folder, command):
    """A folder for each worker, as runit and s6 want it. Without arguments the program itself is the service: no shell between."""
    for number in range(WORKERS):
        service = folder / "services" / str(number)
        service.mkdir(parents=True)
        if len(command) == 1:
            (service / "run").symlink_to(command[0])
        else:
            (service / "run").write_text(f"#!/bin/sh\nexec {' '.join(command)}\n")
            (service / "run").chmod(0o755)
    return str(folder / "services")


def runit(args, folder, command, _):
    debian("runsv")
    return [debian("runsvdir"), services(folder, command)]


def s6(args, folder, command, _):
    return [debian("s6-svscan"), services(folder, command)]


CONTESTANTS = {
    "Plimsoll": (plimsoll, lambda args: version([args.binary, "--version"]).split()[-1]),
    "Supervisor": (supervisor, lambda args: version([python_peers(args.cache) / "supervisord", "--version"])),
    "circus": (circus, lambda args: version([python_peers(args.cache) / "circusd", "--version"])),
    "gunicorn": (gunicorn, lambda args: version([python_peers(args.cache) / "gunicorn", "--version"]).split()[-1].strip("()")),
    "pm2-runtime": (pm2, lambda args: NPM[0].split("@")[1]),
    "runit": (runit, lambda args: package_version("runit")),
    "s6": (s6, lambda args: package_version("s6")),
}

# At SIGTERM runsvdir goes alone.
POLITE = {"runit": signal.SIGHUP}


def marked(value):
    wanted = f"{MARK}={value}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if wanted in pathlib.Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                    found.append(int(entry))
    return found


def lives(pid, mark):
    """It is there, and still the one that was meant."""
    try:
        return f"{MARK}={mark}".encode() in pathlib.Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


class Manager:
    """One manager with four workers that say when they begin, in a folder of its own."""

    def __init__(self, args, name, kind, **more):
        self.name, self.kind, self.mark = name, kind, f"{name}-{kind}-{os.getpid()}-{random.getrandbits(32):x}"
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="plimsoll-peers-"))
        self.fifo_path = self.folder / "fifo"
        os.mkfifo(self.fifo_path)
        # For reading and writing: it never ends, and nobody who opens it waits.
        self.fifo = os.open(self.fifo_path, os.O_RDWR | os.O_NONBLOCK)
        self.heard = b""
        self.alive = {}
        self.program = self.folder / "worker"
        if kind == "rest":
            script = self.folder / "idle.py"
            script.write_text("import signal\nsignal.pause()\n")
            command = [sys.executable, "-S", str(script)]
        else:
            source = self.folder / "worker.c"
            source.write_text(PROGRAM)
            defines = [f'-DFIFO="{self.fifo_path}"', f'-DSELF="{self.program}"', f"-DBROOD={int(kind == 'brood')}"]
            subprocess.run(["cc", "-O2", "-static", *defines, "-o", self.program, source], check=True)
            command = [str(self.program)]
        how = {"fifo": "" if kind == "rest" else str(self.fifo_path), "brood": kind == "brood", "program": str(self.program)}
        self.command = command
        line = CONTESTANTS[name][0](args, self.folder, command, how, **more)
        log = (self.folder / "log").open("wb")
        environment = {**os.environ, MARK: self.mark, "PM2_HOME": f"{self.folder}/pm2", "HOME": str(self.folder)}
        self.process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=self.folder, start_new_session=True)

    def hear(self, seconds):
        """What workers and theirs have said meanwhile: (kind, pid, nanoseconds)."""
        if select.select([self.fifo], [], [], max(0, seconds))[0]:
            with contextlib.suppress(BlockingIOError):
                self.heard += os.read(self.fifo, 65536)
        *lines, self.heard = self.heard.split(b"\n")
        return [(kind.decode(), int(pid), int(at)) for kind, pid, at in (line.split() for line in lines)]

    def gather(self, count, seconds):
        """Takes in what is said until so many are known to live."""
        end = time.monotonic() + seconds
        while len(self.alive) < count:
            if time.monotonic() > end:
                raise OSError(f"only {len(self.alive)} of {count} came up: {(self.folder / 'log').read_text(errors='replace')[-400:]}")
            for kind, pid, at in self.hear(0.1):
                self.alive[pid] = (kind, at)

    def own(self):
        """The processes of the manager itself."""
        if self.name == "gunicorn":
            return [self.process.pid]
        # What it has started itself, mark or not, but for the workers and what they have started.
        word, found, left = self.command[-1].encode(), [], [self.process.pid]
        while left:
            pid = left.pop()
            with contextlib.suppress(OSError):
                if word not in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                    found.append(pid)
                    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
                        left += map(int, (task / "children").read_text().split())
        return found

    def wait_for_workers(self, seconds=30):
        """Where the workers do not say that they have begun."""
        end = time.monotonic() + seconds
        while len(set(marked(self.mark)) - set(self.own())) < WORKERS:
            if time.monotonic() > end:
                raise OSError(f"its workers did not come up: {(self.folder / 'log').read_text(errors='replace')[-400:]}")
            time.sleep(0.05)

    def kill_one(self):
        """Kills the worker that has lived longest. Milliseconds until its replacement has begun; None when it did not within 15 s."""
        pid, (_, began) = min(self.alive.items(), key=lambda item: item[1][1])
        time.sleep(max(0, SETTLED - (time.monotonic_ns() - began) / 1e9))
        del self.alive[pid]
        killed = time.monotonic_ns()
        os.kill(pid, signal.SIGKILL)
        end = time.monotonic() + 15
        while time.monotonic() < end:
            for _, new, at in self.hear(end - time.monotonic()):
                self.alive[new] = ("worker", at)
                return (at - killed) / 1e6
        return None

    def still(self, pids):
        counts = {"worker": 0, "child": 0, "session": 0, "orphan": 0}
        for pid in pids:
            counts[self.alive[pid][0]] += lives(pid, self.mark)
        return counts

    def close(self):
        if self.process.poll() is None:
            self.process.send_signal(POLITE.get(self.name, signal.SIGTERM))
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=15)
        end = time.monotonic() + 10
        while (left := marked(self.mark)) and time.monotonic() < end:
            for pid in left:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.fifo)
        shutil.rmtree(self.folder, ignore_errors=True)
        # What a killed Plimsoll leaves to the next one, which does not come.
        for top in pathlib.Path("/sys/fs/cgroup").glob(f"**/plimsoll-{self.process.pid}"):
            for group in [*top.glob("*/"), top]:
                with contextlib.suppress(OSError):
                    group.rmdir()


def memory(pid):
    found = {}
    for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value, *_ = line.split()
        found[name.rstrip(":")] = int(value)
    return found["Rss"], found["Pss"]


def wakeups(pid):
    count = 0
    for thread in pathlib.Path(f"/proc/{pid}/task").iterdir():
        for line in (thread / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                count += int(line.split()[1])
    return count


def cpu(pid):
    return time.clock_gettime_ns((~pid << 3) | 2) / 1e9


def field(args, names, kind, stack, absent):
    """All who can be had, running."""
    managers = []
    for name in names:
        try:
            manager = Manager(args, name, kind)
            stack.callback(manager.close)
            if kind == "rest":
                manager.wait_for_workers()
            else:
                manager.gather(WORKERS, 30)
            managers.append(manager)
        except OSError as error:
            absent[name] = " ".join(str(error).split())
    return managers


def row(*cells):
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def head(*cells):
    row(*cells)
    print("|---" * len(cells) + "|", flush=True)


def rest(args, names, absent):
    with contextlib.ExitStack() as stack:
        managers = field(args, names, "rest", stack, absent)
        time.sleep(args.settle)
        own = {manager.name: manager.own() for manager in managers}
        before = {name: (sum(map(wakeups, pids)), sum(map(cpu, pids))) for name, pids in own.items()}
        time.sleep(args.window)
        print()
        head("at rest", "processes", "RSS, MiB", "PSS, MiB", "wake-ups a second", f"CPU in {args.window:.0f} s, ms")
        for name, pids in own.items():
            woken, used = (sum(map(wakeups, pids)) - before[name][0]) / args.window, 1e3 * (sum(map(cpu, pids)) - before[name][1])
            sizes = [memory(pid) for pid in pids]
            row(name, len(pids), f"{sum(rss for rss, _ in sizes) / 1024:.1f}", f"{sum(pss for _, pss in sizes) / 1024:.1f}", f"{woken:.1f}", f"{used:.1f}")


def quantile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def replacement(args, names, absent):
    with contextlib.ExitStack() as stack:
        managers = field(args, names, "beacon", stack, absent)
        took = {manager.name: [] for manager in managers}
        time.sleep(SETTLED)
        for number in range(args.rounds):
            # In another order each time, so that a busy moment of the machine is nobody's own.
            for manager in random.sample(managers, len(managers)):
                known = [one for one in took[manager.name] if one is not None]
                is_quick = len(known) >= 3 and statistics.median(known) < 100
                for _ in range(3 if is_quick else 1):
                    took[manager.name].append(manager.kill_one())
            print(f"round {number + 1}: " + ", ".join(f"{name} {times[-1]}" for name, times in took.items()), file=sys.stderr)
        print()
        head("SIGKILL of a worker to its replacement's first act, ms", "kills", "least", "p50", "p90", "p99", "most")
        for name, times in took.items():
            known = [one for one in times if one is not None]
            lost = f" ({len(times) - len(known)} never)" if len(known) < len(times) else ""
            if known:
                figures = [min(known), *(quantile(known, share) for share in (0.5, 0.9, 0.99)), max(known)]
                row(name, f"{len(times)}{lost}", *(f"{figure:.1f}" for figure in figures))


def survivors(args, names, absent):
    print()
    head("alive one second after", "the manager's polite end (of 4 workers, 4 children, 4 sessions, 4 forked twice)", "a worker's death (of its child, session, forked twice)", "SIGKILL of the manager (of 4, 4, 4, 4)")
    shown = [(name, name, {}) for name in names] + [("Plimsoll, on_daemon_death = \"stop\"", "Plimsoll", {"death": "stop"})] * ("Plimsoll" in names)
    for title, name, more in shown:
        cells = []
        for what in ("polite", "crash", "kill"):
            try:
                manager = Manager(args, name, "brood", **more)
            except OSError as error:
                absent[name] = " ".join(str(error).split())
                break
            try:
                manager.gather(4 * WORKERS, 30)
                time.sleep(2)
                everybody = list(manager.alive)
                workers = [pid for pid in everybody if manager.alive[pid][0] == "worker"]
                if what == "crash":
                    victim = workers[0]
                    # Whose they are only the order of their numbers tells, where nobody is its parent: so all are counted.
                    before = manager.still(everybody)
                    os.kill(victim, signal.SIGKILL)
                    time.sleep(1)
                    after = manager.still(everybody)
                    cells.append(", ".join(str(1 - (before[kind] - after[kind])) for kind in ("child", "session", "orphan")))
                    continue
                if what == "polite":
                    manager.process.send_signal(POLITE.get(name, signal.SIGTERM))
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        manager.process.wait(timeout=30)
                else:
                    manager.process.kill()
                    manager.process.wait()
                time.sleep(1)
                cells.append(", ".join(map(str, manager.still(everybody).values())))
            except OSError as error:
                cells.append(f"? ({error})")
            finally:
                manager.close()
        if len(cells) == 3:
            row(title, *cells)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/plimsoll", type=lambda path: str(pathlib.Path(path).absolute()))
    parser.add_argument("--cache", default=pathlib.Path(__file__).resolve().parents[1] / "target/system-cache", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=50, help="of kills; the quick ones have three in each")
    parser.add_argument("--window", type=float, default=30, help="seconds of rest that are watched")
    parser.add_argument("--settle", type=float, default=10, help="seconds before them")
    parser.add_argument("--only", nargs="*", default=list(CONTESTANTS), choices=CONTESTANTS)
    parser.add_argument("--skip", nargs="*", default=[], choices=["rest", "replacement", "survivors"])
    args = parser.parse_args()
    absent = {}
    names = []
    print(f"load of the machine: {os.getloadavg()[0]:.1f}; Linux {os.uname().release}, {os.cpu_count()} processors, Python {sys.version.split()[0]}")
    for name in args.only:
        try:
            print(f"- {name} {CONTESTANTS[name][1](args)}", flush=True)
            names.append(name)
        except OSError as error:
            absent[name] = " ".join(str(error).split())
    for part in (rest, replacement, survivors):
        if part.__name__ not in args.skip:
            part(args, [name for name in names if name not in absent], absent)
    for name, why in absent.items():
        print(f"\n{name} is absent: {why}")
    print(f"\nload of the machine: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main()

"""The suite that runs in a real machine: systemd, cgroup v2 with every controller, PSI, a serial port for the results.

The root disk is made once per package list and kept; what is under test goes onto a second disk made for each run. The
machine is emulated, so work in it is several times slower than outside: cases compare shares and wait for conditions,
and the time limits here are generous.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from debian import RELEASE, mirror, proxy
from outcome import FAIL, Outcome, Unavailable, limit_of

HERE = Path(__file__).resolve().parent
PACKAGES = ["systemd", "systemd-sysv", "dbus", "libpam-systemd", "udev", "procps", "python3", "linux-image-cloud-amd64"]
# Part of the cached disk's key: raise it when the recipe below changes in a way the package list does not show.
RECIPE = 1
ROOT_SIZE = "1500M"
CASE_LIMIT_SECONDS = 180
BOOT_LIMIT_SECONDS = 300
# Once in some dozens of boots the emulator stands still before the kernel's first message (QEMU 7.2, two processors, a busy machine).
# Nothing under test has been started by then, so the machine is started once more; it is up after some 15 s. On a machine that is busy
# with something else a boot takes minutes, and the kernel's messages come all the same.
FIRST_WORD_SECONDS = 120

# What `inside.py` says last when a case has the machine rebooted.
REBOOTS = "the machine reboots"

# The machine dies with the harness, even when that is killed.
BOUND = ("setpriv", "--pdeathsig=KILL", "--")

# Runs the cases once the machine is up and switches it off, whatever comes of them.
UNIT = """\
[Unit]
Description=System tests
After=multi-user.target
SuccessAction=poweroff-force
FailureAction=poweroff-force

[Service]
Type=oneshot
ExecStartPre=/usr/bin/mount -o ro /dev/vdb /opt/test
ExecStart=/opt/test/inside.py
StandardOutput=file:/dev/ttyS1
StandardError=file:/dev/ttyS1
# The tests are not to be the kernel's first choice when a case fills the memory.
OOMScoreAdjust=-900

[Install]
WantedBy=multi-user.target
"""


def run(binary: Path, programs: Path, cases: list[Path], cache: Path, artefacts: Path) -> Iterator[Outcome]:
    for tool in ("qemu-system-x86_64", "mmdebstrap", "mke2fs", "setpriv"):
        if shutil.which(tool) is None:
            raise Unavailable(f"{tool} is not installed")
    if os.geteuid() != 0:
        raise Unavailable("making the machine's root disk needs root")
    root = root_disk(cache, artefacts)
    packages = {"plimsoll.deb": build_package(binary, artefacts)}
    if any(case.stem == "package_lifecycle" for case in cases):
        program = binary.read_bytes()
        for name, version, other in (("newer", "99.1-1", program + bytes(10)), ("broken", "99.2-1", program[: len(program) // 2])):
            packages[f"plimsoll-{name}.deb"] = other_version(packages["plimsoll.deb"], name, version, other)
    payload = payload_disk(packages, programs, cases, artefacts)
    yield from boot(root, payload, cases, artefacts)


def build_package(binary: Path, artefacts: Path) -> Path:
    """The package that is tested, around the program that is tested everywhere else."""
    build = HERE.parents[2] / "packaging/build"
    subprocess.run([build, "--binary", binary, "--out", artefacts, "deb"], check=True, stdout=subprocess.DEVNULL)
    return next(artefacts.glob("plimsoll_*.deb"))


def other_version(package: Path, name: str, version: str, program: bytes) -> Path:
    """The package under test with another version and another program, for the case that upgrades it."""
    tree, made = package.with_name(f"{name}-tree"), package.with_name(f"{name}.deb")
    shutil.rmtree(tree, ignore_errors=True)
    subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True)
    control = tree / "DEBIAN/control"
    lines = control.read_text().splitlines(keepends=True)
    control.write_text("".join(f"Version: {version}\n" if line.startswith("Version:") else line for line in lines))
    (tree / "usr/bin/plimsoll").write_bytes(program)
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", tree, made], check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(tree)
    return made


def root_disk(cache: Path, artefacts: Path) -> Path:
    """A folder with `root.img`, `vmlinuz` and `initrd.img`: made now, or earlier from the same recipe."""
    recipe = "\n".join([RELEASE, *PACKAGES, UNIT, str(RECIPE)])
    disk = cache / f"vm-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    if disk.exists():
        return disk
    print(f"making the machine's root disk from {len(PACKAGES)} packages", flush=True)
    # Finished under another name first: a folder of the final name is always whole.
    making = cache / f"vm-making-{os.getpid()}"
    making.mkdir(parents=True)
    tree = making / "root"
    log = artefacts / "mmdebstrap.log"
    try:
        with log.open("w") as out:
            subprocess.run(
                ["mmdebstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", *proxy(), RELEASE, tree, *mirror()],
                stdout=out,
                stderr=subprocess.STDOUT,
                check=True,
            )
        (tree / "opt/test").mkdir(parents=True)
        (tree / "etc/hostname").write_text("plimsoll-test\n")
        (tree / "etc/systemd/system/system-test.service").write_text(UNIT)
        wants = tree / "etc/systemd/system/multi-user.target.wants"
        wants.mkdir(exist_ok=True)
        (wants / "system-test.service").symlink_to("/etc/systemd/system/system-test.service")
        # Nobody logs in, and nothing else is to use the processor while shares of it are measured.
        for unneeded in ("getty.target", "timers.target", "serial-getty@ttyS0.service"):
            (tree / "etc/systemd/system" / unneeded).symlink_to("/dev/null")
        for name in ("vmlinuz", "initrd.img"):
            shutil.copy(next((tree / "boot").glob(f"{name}-*")), making / name)
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", tree, making / "root.img", ROOT_SIZE], check=True, stdout=subprocess.DEVNULL)
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"the root disk could not be made: {error}; see {log}") from error
    finally:
        shutil.rmtree(tree, ignore_errors=True)
        if not (making / "root.img").exists():
            shutil.rmtree(making, ignore_errors=True)
    making.rename(disk)
    return disk


def payload_disk(packages: dict[str, Path], programs: Path, cases: list[Path], artefacts: Path) -> Path:
    """What is under test and what tests it, as a disk mounted at /opt/test."""
    tree = artefacts / "payload"
    shutil.rmtree(tree, ignore_errors=True)
    (tree / "cases").mkdir(parents=True)
    for name, package in packages.items():
        shutil.copy(package, tree / name)
    shutil.copytree(programs, tree / "programs")
    shutil.copytree(HERE.parents[2] / "systemd", tree / "systemd")
    for file in (HERE / "inside.py", HERE / "unit.py", HERE.parent / "outcome.py", HERE.parent / "scenario.py"):
        shutil.copy(file, tree)
    for case in cases:
        shutil.copy(case, tree / "cases")
    image = artefacts / "payload.img"
    image.unlink(missing_ok=True)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", tree, image, "200M"], check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(tree)
    return image


def boot(root: Path, payload: Path, cases: list[Path], artefacts: Path) -> Iterator[Outcome]:
    console, results = artefacts / "console.log", artefacts / "results.log"
    results.unlink(missing_ok=True)
    # The kept disk is never written to. A copy outlives the emulator, which ends when the machine reboots.
    disk = artefacts / "root.img"
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", root / "root.img", disk], check=True)
    command = [
        # Always emulated: many build machines have a /dev/kvm that opens and then does not work.
        *BOUND, "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2G",
        "-kernel", root / "vmlinuz", "-initrd", root / "initrd.img",
        "-append", "console=ttyS0 root=/dev/vda rw psi=1 systemd.show_status=0",
        # What the machine forces to its disk need not reach ours: after a crash of the host nobody wants it.
        "-drive", f"file={disk},format=raw,if=virtio,cache=unsafe",
        "-drive", f"file={payload},format=raw,if=virtio,readonly=on",
        "-chardev", f"file,id=console,path={console},append=on", "-serial", "chardev:console",
        "-chardev", f"file,id=results,path={results},append=on", "-serial", "chardev:results",
        "-display", "none", "-monitor", "none", "-no-reboot", "-net", "none",
    ]  # fmt: skip

    def start() -> subprocess.Popen[bytes]:
        # Its own group: an interrupt at the terminal ends the harness first, which then ends the machine.
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    limit = BOOT_LIMIT_SECONDS + sum(limit_of(case, CASE_LIMIT_SECONDS) for case in cases)
    first = BOOT_LIMIT_SECONDS + max(limit_of(case, CASE_LIMIT_SECONDS) for case in cases)
    begun = started = time.monotonic()
    machine = start()
    # What was said before this start, by the cases and by the kernel, and whether it is the second try of it.
    said_before, kernel_before, is_second_try, restarts = 0, 0, False, 0
    try:
        shown = 0
        while True:
            ended = machine.poll() is not None
            outcomes = read_results(results)
            yield from outcomes[shown:]
            shown = len(outcomes)
            if ended and machine.returncode == 0 and wants_restart(results) and said_before < size(results):
                said_before, kernel_before, is_second_try, restarts = size(results), size(console), False, restarts + 1
                machine, started = start(), time.monotonic()
                continue
            if ended:
                why = f"the machine ended with code {machine.returncode} before this case was over"
                break
            seconds = time.monotonic() - started
            if not is_second_try and seconds > FIRST_WORD_SECONDS and size(results) == said_before and size(console) == kernel_before:
                print(f"the machine said nothing for {seconds:.0f} s and is started again", flush=True)
                machine.kill()
                machine.wait()
                console.rename(artefacts / "console-of-the-first.log")
                kernel_before, is_second_try = 0, True
                machine, started = start(), time.monotonic()
                continue
            if time.monotonic() - begun > limit:
                why = f"the machine was not done after {limit} s"
                break
            if size(results) == said_before and seconds > BOOT_LIMIT_SECONDS:
                why = f"the machine said nothing for {seconds:.0f} s after its start"
                break
            if not outcomes and seconds > first:
                why = f"no case was over {seconds:.0f} s after the start of the machine"
                break
            time.sleep(0.5)
    finally:
        if machine.poll() is None:
            machine.kill()
            machine.wait()
        payload.unlink(missing_ok=True)
        disk.unlink(missing_ok=True)
    print(f"machine up for {time.monotonic() - begun:.0f} s, rebooted {restarts} times; its console: {console}", flush=True)
    known = {outcome.name for outcome in outcomes}
    yield from (Outcome(case.stem, FAIL, 0, why) for case in cases if case.stem not in known)


def size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def wants_restart(results: Path) -> bool:
    """Whether the last the machine said is that it reboots for a case (`inside.py`)."""
    lines = results.read_text(errors="replace").splitlines() if results.exists() else []
    return bool(lines) and lines[-1].strip() == REBOOTS


def read_results(results: Path) -> list[Outcome]:
    """The outcomes so far, each with the output its case printed before it."""
    if not results.exists():
        return []
    outcomes, output = [], []
    text = results.read_text(errors="replace")
    # The last line may be half written.
    for line in text[: text.rfind("\n") + 1].splitlines():
        if outcome := Outcome.parse(line):
            outcomes.append(Outcome(outcome.name, outcome.status, outcome.seconds, outcome.detail, "\n".join(output)))
            output = []
        else:
            output.append(line.rstrip("\r"))
    return outcomes

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

from outcome import FAIL, Outcome, Unavailable

HERE = Path(__file__).resolve().parent
PACKAGES = ["systemd", "systemd-sysv", "dbus", "libpam-systemd", "udev", "procps", "python3", "linux-image-cloud-amd64"]
RELEASE = "bookworm"
# Part of the cached disk's key: raise it when the recipe below changes in a way the package list does not show.
RECIPE = 1
ROOT_SIZE = "1500M"
CASE_LIMIT_SECONDS = 180
BOOT_LIMIT_SECONDS = 300
# Once in some dozens of boots the emulator stands still before the kernel's first message (QEMU 7.2, two processors, a busy machine).
# Nothing under test has been started by then, so the machine is started once more; it is up after some 15 s.
FIRST_WORD_SECONDS = 120

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
    payload = payload_disk(binary, programs, cases, artefacts)
    yield from boot(root, payload, cases, artefacts)


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


def mirror() -> list[str]:
    """Where this machine itself gets that Debian release from; nothing (mmdebstrap's default) where it gets it from nowhere."""
    if shutil.which("apt-get") is None:
        return []
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages", "Origin: Debian"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    for line in listed.splitlines():
        uri, release, component = line.split()
        if (release, component) == (RELEASE, "main"):
            return [uri]
    return []


def proxy() -> list[str]:
    """This machine's apt proxy, which mmdebstrap's own apt does not inherit."""
    options = []
    for key in ("Acquire::http::Proxy", "Acquire::https::Proxy"):
        address = subprocess.run(["apt-config", "dump", "--format=%v", key], capture_output=True, text=True, check=False).stdout
        if address:
            options.append(f'--aptopt={key} "{address}"')
    return options


def payload_disk(binary: Path, programs: Path, cases: list[Path], artefacts: Path) -> Path:
    """What is under test and what tests it, as a disk mounted at /opt/test."""
    tree = artefacts / "payload"
    shutil.rmtree(tree, ignore_errors=True)
    (tree / "cases").mkdir(parents=True)
    shutil.copy(binary, tree / "plimsoll")
    shutil.copytree(programs, tree / "programs")
    shutil.copy(HERE.parents[2] / "systemd/plimsoll.service", tree)
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
    command = [
        # Always emulated: many build machines have a /dev/kvm that opens and then does not work.
        *BOUND, "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2G",
        "-kernel", root / "vmlinuz", "-initrd", root / "initrd.img",
        "-append", "console=ttyS0 root=/dev/vda rw psi=1 systemd.show_status=0",
        # The kept disk is never written to: what the machine writes goes to a temporary file.
        "-drive", f"file={root}/root.img,format=raw,if=virtio,snapshot=on",
        "-drive", f"file={payload},format=raw,if=virtio,readonly=on",
        "-serial", f"file:{console}", "-serial", f"file:{results}",
        "-display", "none", "-monitor", "none", "-no-reboot", "-net", "none",
    ]  # fmt: skip
    limit = BOOT_LIMIT_SECONDS + CASE_LIMIT_SECONDS * len(cases)
    started = time.monotonic()
    # Its own group: an interrupt at the terminal ends the harness first, which then ends the machine.
    machine = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    was_started_again = False
    try:
        shown = 0
        while True:
            ended = machine.poll() is not None
            outcomes = read_results(results)
            yield from outcomes[shown:]
            shown = len(outcomes)
            if ended:
                why = f"the machine ended with code {machine.returncode} before this case was over"
                break
            seconds = time.monotonic() - started
            if not was_started_again and seconds > FIRST_WORD_SECONDS and not has_spoken(results):
                print(f"the machine said nothing for {seconds:.0f} s and is started again", flush=True)
                machine.kill()
                machine.wait()
                console.rename(artefacts / "console-of-the-first.log")
                machine = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
                started, was_started_again = time.monotonic(), True
                continue
            if seconds > limit:
                why = f"the machine was not done after {limit} s"
                break
            if not outcomes and seconds > BOOT_LIMIT_SECONDS + CASE_LIMIT_SECONDS:
                why = f"no case was over {seconds:.0f} s after the start of the machine"
                break
            time.sleep(0.5)
    finally:
        if machine.poll() is None:
            machine.kill()
            machine.wait()
        payload.unlink(missing_ok=True)
    print(f"machine up for {time.monotonic() - started:.0f} s; its console: {console}", flush=True)
    known = {outcome.name for outcome in outcomes}
    yield from (Outcome(case.stem, FAIL, 0, why) for case in cases if case.stem not in known)


def has_spoken(results: Path) -> bool:
    return results.exists() and results.stat().st_size > 0


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

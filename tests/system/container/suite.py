"""The suite that runs in real containers, under an engine of its own that touches nothing else on the machine.

The engine keeps everything below `target/system-cache/docker`, has no network and no firewall rules, and is ended by its
pid whatever happens. Containers run in images built from nothing: the shipped one, one with the test workers added, and one of Debian's
Python with an application.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from debian import RELEASE, mirror, proxy
from outcome import Outcome, Unavailable, run_case
from packages import installed

HERE = Path(__file__).resolve().parent
CASE_LIMIT_SECONDS = 120
VERSIONS = ["uvicorn==0.54.0", "h11==0.16.0", "click==8.5.1"]
CGROUP_PARENT = "plimsoll-system-test"


def run(binary: Path, programs: Path, cases: list[Path], cache: Path, artefacts: Path) -> Iterator[Outcome]:
    for tool in ("dockerd", "docker", "nsenter", "setpriv"):
        if shutil.which(tool) is None:
            raise Unavailable(f"{tool} is not installed")
    if os.geteuid() != 0:
        raise Unavailable("a container engine of our own needs root")
    with engine(cache / "docker", artefacts) as socket:
        environment = {
            "DOCKER_HOST": socket,
            "PLIMSOLL": str(binary),
            "PYTHONPATH": f"{HERE.parent}:{HERE}",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        make_images(binary, programs, environment)
        # Only where it is used: for the first time it takes half a minute.
        if any("APPLICATION" in case.read_text() for case in cases):
            make_application(cache, artefacts, environment)
        for case in cases:
            scratch = artefacts / case.stem
            scratch.mkdir()
            yield run_case(case.stem, case, {**environment, "SCRATCH": str(scratch)}, CASE_LIMIT_SECONDS)


@contextlib.contextmanager
def engine(folder: Path, artefacts: Path) -> Iterator[str]:
    """The address of a container engine that lives as long as the block."""
    # A fresh one each time: images are small and made in seconds, a broken store of an earlier run would stay broken.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # Socket paths may have 107 bytes, fewer than a checkout's path may have.
    run_folder = Path(tempfile.mkdtemp(prefix="plimsoll-docker-"))
    socket = f"unix://{run_folder}/docker.sock"
    log = artefacts / "dockerd.log"
    command = [
        # It is told to end when the harness dies, even when that is killed.
        "setpriv", "--pdeathsig=TERM", "--",
        "dockerd", f"--data-root={folder}", f"--exec-root={run_folder}/exec", f"--pidfile={run_folder}/docker.pid",
        f"--host={socket}", f"--cgroup-parent={CGROUP_PARENT}",
        "--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false",
    ]  # fmt: skip
    make_group()
    with log.open("w") as out:
        daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    try:
        wait_until_up(daemon, socket, log)
        yield socket
    finally:
        docker = ["docker", "--host", socket]
        left = subprocess.run([*docker, "ps", "--all", "--quiet"], capture_output=True, text=True, check=False).stdout.split()
        if left:
            subprocess.run([*docker, "rm", "--force", *left], check=False, capture_output=True)
        daemon.terminate()
        try:
            daemon.wait(timeout=30)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
        end_containerd(run_folder)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(run_folder, ignore_errors=True)
        remove_groups()


def wait_until_up(daemon: subprocess.Popen[bytes], socket: str, log: Path) -> None:
    deadline = time.monotonic() + 60
    while subprocess.run(["docker", "--host", socket, "info"], capture_output=True, check=False).returncode != 0:
        if daemon.poll() is not None or time.monotonic() > deadline:
            last = log.read_text(errors="replace").strip().splitlines()[-1:]
            raise Unavailable(f"the container engine did not start: {''.join(last)}")
        time.sleep(0.2)


def end_containerd(run_folder: Path) -> None:
    """A killed dockerd leaves its containerd behind."""
    with contextlib.suppress(OSError, ValueError):
        pid = int((run_folder / "exec/containerd/containerd.pid").read_text())
        if "containerd" in Path(f"/proc/{pid}/comm").read_text():
            os.kill(pid, 9)


def make_group() -> None:
    """The group all containers are in, preferred to everybody else: on a busy machine a container would not get what it is limited to.

    Without that the whole group counts as much as one process outside of it, and a hog never comes near its line.
    """
    for weight, highest in (("cpu/{}/cpu.shares", 262144), ("{}/cpu.weight", 10000)):
        file = Path("/sys/fs/cgroup", weight.format(CGROUP_PARENT))
        # The one way or the other, as this machine has it.
        with contextlib.suppress(OSError):
            if (file.parent.parent / "cgroup.procs").exists():
                file.parent.mkdir(exist_ok=True)
                file.write_text(str(highest))


def remove_groups() -> None:
    for hierarchy in Path("/sys/fs/cgroup").glob(f"**/{CGROUP_PARENT}"):
        with contextlib.suppress(OSError):
            hierarchy.rmdir()


def make_images(binary: Path, programs: Path, environment: dict[str, str]) -> None:
    """`plimsoll:test` is what ships; `workers:test` adds the programs of the cases."""
    everything = {**os.environ, **environment, "DOCKER_BUILDKIT": "0"}
    build([HERE.parents[2] / "packaging/container/build", binary, "plimsoll:test"], everything)
    with tempfile.TemporaryDirectory() as context:
        shutil.copytree(programs, context, dirs_exist_ok=True)
        (Path(context) / "Dockerfile").write_text("FROM plimsoll:test\nCOPY . /\n")
        (Path(context) / ".dockerignore").write_text("Dockerfile\n.dockerignore\n")
        build(["docker", "build", "--tag", "workers:test", context], everything)


def make_application(cache: Path, artefacts: Path, environment: dict[str, str]) -> None:
    """`application:test`: Debian's Python, uvicorn and `apps/service.py`, with the daemon copied in as the documentation says."""
    everything = {**os.environ, **environment, "DOCKER_BUILDKIT": "0"}
    packages = installed(cache, "container", VERSIONS)
    build(["docker", "import", python_root(cache, artefacts), "python:test"], everything)
    with tempfile.TemporaryDirectory() as context:
        shutil.copytree(next(packages.glob("lib/python3*/site-packages")), Path(context) / "packages")
        shutil.copytree(HERE / "apps", Path(context) / "srv")
        shutil.copy(HERE / "application.Dockerfile", Path(context) / "Dockerfile")
        build(["docker", "build", "--tag", "application:test", context], everything)


def python_root(cache: Path, artefacts: Path) -> Path:
    """An archive of a folder with Python and what that needs: unpacked, not installed, so there is no shell in it. Made once."""
    recipe = "\n".join([RELEASE, "python3", "extract"])
    archive = cache / f"python-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.tar"
    if archive.exists():
        return archive
    if shutil.which("mmdebstrap") is None:
        raise Unavailable("mmdebstrap is not installed")
    print("making the image with Python", flush=True)
    # Finished under another name first: an archive of the final name is always whole.
    making = cache / f"python-making-{os.getpid()}.tar"
    log = artefacts / "mmdebstrap.log"
    try:
        with log.open("w") as out:
            subprocess.run(
                ["mmdebstrap", "--variant=extract", "--include=python3", *proxy(), RELEASE, making, *mirror()],
                stdout=out,
                stderr=subprocess.STDOUT,
                check=True,
            )
    except subprocess.CalledProcessError as error:
        making.unlink(missing_ok=True)
        raise Unavailable(f"the image with Python could not be made: {error}; see {log}") from error
    making.rename(archive)
    return archive


def build(command: list[str | Path], environment: dict[str, str]) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        # Not `Unavailable`: the image is part of what is under test.
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}{done.stderr}")

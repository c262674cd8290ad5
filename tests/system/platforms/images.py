"""Images under the names that examples use, made of this machine's own programs: nothing is pulled from a registry here."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path


def inside(root: Path, path: Path | str) -> Path:
    """The same path below `root`, with the folder for it."""
    target = root / str(path).lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def copied(path: Path, root: Path, place: str = "") -> None:
    """The file at the same place below `root`, or at another, with the libraries it needs."""
    needed = subprocess.run(["ldd", path], capture_output=True, text=True, check=False)
    libraries = re.findall(r"(/\S+)", needed.stdout) if needed.returncode == 0 else []
    for file, target in ((path, place or path), *((library, library) for library in libraries)):
        if not inside(root, target).exists():
            shutil.copy(file, inside(root, target))


def imported(root: Path, tag: str, changes: list[str], environment: dict[str, str]) -> None:
    # A temporary folder is its owner's alone, and this one becomes the image's root.
    root.chmod(0o755)
    flags = [word for change in changes for word in ("--change", change)]
    with subprocess.Popen(["tar", "--directory", root, "--create", "."], stdout=subprocess.PIPE) as packed:
        subprocess.run(["docker", "import", *flags, "-", tag], stdin=packed.stdout, env=environment, check=True, stdout=subprocess.DEVNULL)
    if packed.returncode != 0:
        raise RuntimeError(f"tar ended with {packed.returncode}")


def python(tag: str, installed: Path, environment: dict[str, str]) -> None:
    """This machine's Python laid out as in the official image, with the packages of a virtual environment: what an application requires, and pip."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for program in ("/bin/sh", "/bin/mkdir", "/bin/chown"):
            copied(Path(program), root)
        interpreter, library = Path(sys.executable).resolve(), Path(sysconfig.get_paths()["stdlib"])
        copied(interpreter, root)
        # Not what tells pip to keep its hands off: the official image has no such file.
        unneeded = ("__pycache__", "test", "idlelib", "ensurepip", "lib2to3", "tkinter", "config-*", "site-packages", "dist-packages")
        ignored = shutil.ignore_patterns(*unneeded, "EXTERNALLY-MANAGED")
        shutil.copytree(library, inside(root, library), symlinks=True, ignore=ignored)
        for extension in (library / "lib-dynload").glob("*.so"):
            copied(extension, root)
        packages = f"/usr/local/lib/{library.name}/site-packages"
        (wanted,) = installed.glob("lib/python3*/site-packages")
        shutil.copytree(wanted, inside(root, packages), ignore=shutil.ignore_patterns("__pycache__"))
        programs = inside(root, "/usr/local/bin")
        programs.mkdir(parents=True)
        for name in ("python3", library.name):
            (programs / name).symlink_to(interpreter)
        for script in ("pip", "uvicorn"):
            # Its first line names the interpreter, which is another here.
            _, _, body = (installed / "bin" / script).read_text().partition("\n")
            (programs / script).write_text(f"#!/usr/local/bin/{library.name}\n{body}")
            (programs / script).chmod(0o755)
        (root / "tmp").mkdir(mode=0o1777, exist_ok=True)
        imported(root, tag, ["ENV PATH=/usr/local/bin:/usr/bin:/bin", f"ENV PYTHONPATH={packages}"], environment)


def prometheus(tag: str, environment: dict[str, str]) -> None:
    """Debian's Prometheus, with the entry point, the command and the folders of the official image."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        program = shutil.which("prometheus")
        assert program is not None, "the suite looks for it"
        copied(Path(program), root)
        (root / "bin").mkdir(exist_ok=True)
        shutil.move(inside(root, program), root / "bin/prometheus")
        for name in ("prometheus", "etc/prometheus", "tmp"):
            (root / name).mkdir(parents=True, exist_ok=True)
        command = '["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]'
        imported(root, tag, ['ENTRYPOINT ["/bin/prometheus"]', f"CMD {command}", "WORKDIR /prometheus"], environment)

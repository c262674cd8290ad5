"""Two containers in one pid namespace, as in a Kubernetes pod with `shareProcessNamespace`: process 1 is neither's."""

from __future__ import annotations

import os
from pathlib import Path

from container import SMALL, Container

POD_USER = "10001:10001"


class Pod(Container):
    """What holds the namespace and does nothing, as the pause container does."""

    def __init__(self) -> None:
        super().__init__(options=("--user=65535:65535", "--entrypoint=/pause"))

    @property
    def shared(self) -> str:
        return f"--pid=container:{self.id}"

    def app(self, *command: str, user: str) -> Container:
        program, *arguments = command
        return Container(*arguments, options=(*SMALL, self.shared, f"--user={user}", f"--entrypoint={program}"))


def sidecar(pod: Pod, user: str, volume: Path | None = None) -> Container:
    """A daemon without limits of its own and without capabilities, that looks after whatever is called /hog."""
    flags = ["sampling.scope.worker=app", "workers.app.adopt.match=^/hog ", "policy.cpu.sustain=1s", "log.format=json"]
    options = [pod.shared, f"--user={user}", "--cap-drop=ALL", "--read-only", "--tmpfs=/run/plimsoll:mode=1777"]
    if volume is not None:
        options.append(f"--volume={volume}:/etc/podlimits:ro")
        flags += ["policy.cpu.limit.file=/etc/podlimits/cpu", "policy.cpu.limit.divisor=1m", "policy.memory.limit.file=/etc/podlimits/memory"]
    return Container(*(word for flag in flags for word in ("--set", flag)), options=tuple(options))


def write_limits(volume: Path, memory: int, cpu: int) -> None:
    """A downward API's volume, written as the kubelet does: a new folder beside the old one, and one link that is moved over."""
    volume.mkdir(exist_ok=True)
    fresh = volume / f"..{len(list(volume.iterdir()))}"
    fresh.mkdir()
    (fresh / "memory").write_text(str(memory))
    (fresh / "cpu").write_text(str(cpu))
    (volume / "..data_tmp").symlink_to(fresh.name)
    os.rename(volume / "..data_tmp", volume / "..data")
    for file in ("memory", "cpu"):
        if not (volume / file).is_symlink():
            (volume / file).symlink_to(f"..data/{file}")

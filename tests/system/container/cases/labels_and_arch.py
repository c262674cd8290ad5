#!/usr/bin/env python3
"""The image has its labels, user and health check; built twice it is the same byte for byte; two architectures become one list of images."""

import hashlib
import json
import os
import struct
import subprocess
import tarfile
from pathlib import Path
from typing import Any

from container import SHIPPED, docker
from scenario import PLIMSOLL, SCRATCH, expect, run

BUILD = Path(__file__).resolve().parents[4] / "packaging/container/build"
LABEL = "org.opencontainers.image."
# 2001-09-09, so that nothing in the archive can have this time by chance.
TIME = 1_000_000_000
SOURCE = "https://example.org/plimsoll"


def build(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BUILD, *arguments], env={**os.environ, "SOURCE_DATE_EPOCH": str(TIME), **environment}, capture_output=True, text=True, check=False
    )


def arm_program() -> bytes:
    """A static program for 64-bit ARM that ends with 42: the header, one segment, `exit(42)`."""
    code = struct.pack("<III", 0xD2800540, 0xD2800BA8, 0xD4000001)
    base, start = 0x400000, 120
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 183, 1, base + start, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    size = start + len(code)
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000) + code


def shipped_config() -> None:
    (image,) = json.loads(docker("image", "inspect", SHIPPED))
    config, labels = image["Config"], image["Config"]["Labels"]
    version = subprocess.run([PLIMSOLL, "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    expect(labels[LABEL + "version"] == version, f"labelled {labels[LABEL + 'version']}, the binary says {version}")
    for name in ("title", "description", "licenses", "created"):
        expect(labels.get(LABEL + name), f"there is no label {LABEL}{name}")
    expect(config["User"] == "65532:65532", f"the user is {config['User']}")
    expect(config["Healthcheck"]["Test"] == ["CMD", "/usr/bin/plimsoll", "health"], f"the health check is {config['Healthcheck']}")
    expect(config["Entrypoint"] == ["/usr/bin/plimsoll", "run"], f"the entry point is {config['Entrypoint']}")
    expect(image["Architecture"] == "amd64" and image["Os"] == "linux", f"it is for {image['Os']}/{image['Architecture']}")


class Archive:
    def __init__(self, path: Path) -> None:
        with tarfile.open(path) as archive:
            self.files = {m.name: f.read() for m in archive if (f := archive.extractfile(m))}
            self.times = {m.mtime for m in archive.getmembers()}

    def blob(self, descriptor: dict[str, Any]) -> bytes:
        content = self.files["blobs/sha256/" + descriptor["digest"].removeprefix("sha256:")]
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        expect(descriptor["digest"] == digest and descriptor["size"] == len(content), f"{descriptor} is not what {digest} holds")
        return content

    def images(self) -> dict[str, dict[str, Any]]:
        """The config of each image in the list, by platform, with all its layers looked at."""
        (entry,) = json.loads(self.files["index.json"])["manifests"]
        found = {}
        for descriptor in json.loads(self.blob(entry))["manifests"]:
            manifest = json.loads(self.blob(descriptor))
            config = json.loads(self.blob(manifest["config"]))
            layers = [f"sha256:{hashlib.sha256(self.blob(layer)).hexdigest()}" for layer in manifest["layers"]]
            expect(config["rootfs"]["diff_ids"] == layers, "the config names other layers than the manifest")
            platform = f"{descriptor['platform']['os']}/{descriptor['platform']['architecture']}"
            expect(platform == f"{config['os']}/{config['architecture']}", f"{platform} is listed for {config['architecture']}")
            found[platform] = config
        return found


def case() -> str:
    shipped_config()
    arm = SCRATCH / "arm64"
    arm.write_bytes(arm_program())
    archives = [made_elsewhere("first", 0o755, arm, last=True), made_elsewhere("second", 0o700, arm, last=False)]
    digests = [hashlib.sha256(archive.read_bytes()).hexdigest() for archive in archives]
    expect(digests[0] == digests[1], f"two builds of the same binaries differ: {digests}")

    archive = Archive(archives[0])
    images = archive.images()
    expect(set(images) == {"linux/amd64", "linux/arm64"}, f"the list is of {set(images)}")
    expect(archive.times == {TIME}, f"times in the archive: {archive.times}")
    for platform, config in images.items():
        labels = config["config"]["Labels"]
        expect(labels[LABEL + "created"] == config["created"] == "2001-09-09T01:46:40Z", f"{platform}: created {config['created']}")
        expect(labels[LABEL + "source"] == SOURCE, f"{platform}: {labels}")
        expect(config["config"]["User"] == "65532:65532", f"{platform}: {config['config']}")
    loaded = {name: docker("image", "inspect", "--format={{.Os}}/{{.Architecture}}", f"several:test-{name}") for name in ("amd64", "arm64")}
    expect(loaded == {"amd64": "linux/amd64", "arm64": "linux/arm64"}, f"loaded: {loaded}")
    said = docker("run", "--rm", "--network=none", "--entrypoint=/usr/bin/plimsoll", "several:test-amd64", "--version")
    expect(said.startswith("plimsoll "), f"the loaded image says {said!r}")
    size = Path(PLIMSOLL).stat().st_size
    refused_what_cannot_run()
    return f"{len(images)} architectures, {size >> 20} MiB, sha256 {digests[0][:12]} twice"


def made_elsewhere(name: str, mode: int, other: Path, last: bool) -> Path:
    """The archive of both binaries, made in a folder, with a mode and in an order of its own: none of that is to be seen in it."""
    folder = SCRATCH / name
    folder.mkdir()
    copy, archive = folder / f"plimsoll-{name}", folder / "image.tar"
    copy.write_bytes(PLIMSOLL.read_bytes())
    copy.chmod(mode)
    done = build("--archive", archive, *((copy, other) if last else (other, copy)), "several:test", SOURCE=SOURCE)
    expect(done.returncode == 0, f"the build ended with {done.returncode}: {done.stderr}")
    copy.unlink()
    return archive


def refused_what_cannot_run() -> None:
    text = SCRATCH / "text"
    text.write_text("#!/bin/sh\n")
    done = build(text, "refused:test")
    expect(done.returncode == 1 and "no such ELF header" in done.stderr, f"a script was taken: {done.stderr}")
    done = build("/bin/true", "refused:test")
    expect(done.returncode == 1 and "dynamically linked" in done.stderr, f"a dynamic binary was taken: {done.stderr}")


run(case)

"""Where a Debian for a machine or an image comes from."""

from __future__ import annotations

import shutil
import subprocess

RELEASE = "bookworm"


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

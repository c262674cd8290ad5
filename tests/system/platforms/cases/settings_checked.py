#!/usr/bin/env python3
"""Every plimsoll.toml of packaging/, of the examples and of the pages on platforms passes `plimsoll check`, in a root with their folders."""

import os
import re
import subprocess
from pathlib import Path

from images import copied
from scenario import PLIMSOLL, SCRATCH, expect, run
from shipped import PACKAGING, REPOSITORY

ROOT = SCRATCH / "root"
# What the examples' platforms mount, and what a downward API's volume holds.
FOLDERS = ["data", "etc/plimsoll", "etc/podlimits", "run/plimsoll", "var/lib/plimsoll", "bin", "proc", "sys", "tmp", "var", "app"]
PODLIMITS = {"memory": "536870912", "cpu": "1000"}


def checked(name: str, text: str) -> str | None:
    """What `plimsoll check` has to say about it, or None."""
    (ROOT / "etc/plimsoll/plimsoll.toml").write_text(text)
    environment = {"PATH": "/bin", "PLIMSOLL_HTTP__API_KEY": "a-secret-of-the-platform", "PORT": "8000"}
    mounts = f'mount --bind /proc "{ROOT}/proc" && mount --rbind /sys "{ROOT}/sys"'
    mounted = f'{mounts} && exec chroot "{ROOT}" /plimsoll check -c /etc/plimsoll/plimsoll.toml'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mounted],
        capture_output=True,
        text=True,
        check=False,
        env={**environment, "PATH": f"/usr/sbin:/usr/bin:/sbin:{os.environ['PATH']}:/bin"},
    )
    return None if done.returncode == 0 else f"{name}: ended with {done.returncode}: {done.stdout}{done.stderr}"


def in_pages() -> dict[str, str]:
    """Blocks that a page calls plimsoll.toml by their first line."""
    found = {}
    for page in sorted((REPOSITORY / "docs/platforms").glob("*.md")):
        for number, block in enumerate(re.findall(r"^```toml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)):
            if block.startswith("# plimsoll.toml"):
                found[f"docs/platforms/{page.name}, block {number + 1}"] = block
    return found


def case() -> str:
    for folder in FOLDERS:
        (ROOT / folder).mkdir(parents=True, exist_ok=True)
    for name, value in PODLIMITS.items():
        (ROOT / "etc/podlimits" / name).write_text(value)
    copied(PLIMSOLL, ROOT, "plimsoll")
    copied(Path("/bin/sh"), ROOT)
    copied(Path("/bin/sleep"), ROOT)
    files = [*sorted(PACKAGING.glob("**/plimsoll.toml")), *sorted((REPOSITORY / "config/examples").glob("*.toml"))]
    texts = {str(path.relative_to(REPOSITORY)): path.read_text() for path in files} | in_pages()
    expect(len(texts) >= 9, f"only {len(texts)} files: {list(texts)}")
    problems = [problem for name, text in texts.items() if (problem := checked(name, text))]
    wrong = checked("a wrong one", "[policy.memory]\nhihg = 1\n")
    expect(wrong is not None and "hihg" in wrong, f"a wrong file passes, or nothing was run: {wrong}")
    print("\n".join(problems))
    expect(not problems, f"{len(problems)} of {len(texts)} do not pass: {', '.join(problem.split(':')[0] for problem in problems)}")
    return f"{len(texts)} files"


run(case)

#!/usr/bin/python3
"""The package is installed, reloaded with a bad file, upgraded under running workers, upgraded to a broken program, removed, installed again and purged."""

import gzip
import os
import subprocess
import time
from pathlib import Path

from scenario import PLIMSOLL, expect, run, wait_for
from unit import UNIT, Unit, expect_no_process, systemctl

# A dozen runs of dpkg in a machine that is emulated.
LIMIT_SECONDS = 420
BEGUN = time.monotonic()

PACKAGE = Path("/opt/test/plimsoll.deb")
# The same as versions 99.1 and 99.2: with another program that starts as the same, and with half of one (`vm/suite.py`).
NEWER, BROKEN = Path("/opt/test/plimsoll-newer.deb"), Path("/opt/test/plimsoll-broken.deb")
SETTINGS_FILE = Path("/etc/plimsoll/plimsoll.toml")
STATE = Path("/var/lib/plimsoll")
SETTINGS = """
[workers.sleeper]
command = ["/bin/sleep", "infinity"]
replicas = 2
stop = { within = "1s" }
"""


def call(*command: str | Path, fails: bool = False) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    said = done.stdout + done.stderr
    expect((done.returncode != 0) == fails, f"{' '.join(map(str, command))} ended with {done.returncode}: {said}")
    return said


def step(what: str) -> None:
    """Where a case that is not over in time was, and what took so long."""
    print(f"{time.monotonic() - BEGUN:6.1f} s: {what}", flush=True)


def version() -> str:
    return call("dpkg-query", "--show", "--showformat=${Version} ${db:Status-Status}", "plimsoll")


def remains() -> list[str]:
    """Every file that has our name, but for those of the tests and the kernel's."""
    found = call("find", "/", "-xdev", "-path", "/opt/test", "-prune", "-o", "-path", "/var/tmp", "-prune", "-o", "-name", "*plimsoll*", "-print")
    found += call("find", "/run", "-name", "*plimsoll*", "-not", "-path", "/run/systemd/*", "-print")
    # The machine is named for what it tests; its journal and dpkg's log are records of what has happened.
    return [line for line in found.splitlines() if not line.startswith("/var/log/")]


def accounts() -> list[str]:
    return [line for file in ("/etc/passwd", "/etc/group") for line in Path(file).read_text().splitlines() if line.startswith("plimsoll")]


def installed(unit: Unit) -> None:
    expect(systemctl("is-enabled", UNIT) == "enabled", "the unit is not enabled")
    wait_for("the unit is up", 30, lambda: unit.show("ActiveState") == "active")
    expect(call("dpkg", "--verify", "plimsoll") == "", "dpkg finds files that are not as they were packed")
    # The package brings no sums; dpkg makes them as it unpacks, so that it knows its files all the same.
    sums = Path("/var/lib/dpkg/info/plimsoll.md5sums").read_text()
    expect("  usr/bin/plimsoll\n" in sums and "  usr/lib/systemd/system/plimsoll.service\n" in sums, f"dpkg knows the sums of {sums}")
    answer = wait_for("the daemon answers", 30, lambda: unit.status())
    expect(answer["workers"] == [], f"the settings that come with it start workers: {answer['workers']}")
    # The first thing a new user looks at says what to do next.
    wait_for("the status line says where workers go", 30, lambda: f"no workers are set; they go into {SETTINGS_FILE}" in unit.show("StatusText"))


def files_are_there() -> int:
    pages = sorted(Path("/usr/share/man").glob("man[58]/plimsoll*"))
    helped = [line.split()[0] for line in call("plimsoll", "--help").split("Commands:")[1].splitlines() if line.startswith("  ") and line[2] != " "]
    commands = [name for name in helped[: helped.index("help")]]
    lacking = [name for name in commands if not Path(f"/usr/share/man/man8/plimsoll-{name}.8.gz").exists()]
    expect(not lacking and len(pages) == len(commands) + 2, f"without a manual page: {lacking}; pages: {pages}")
    expect(gzip.decompress(pages[0].read_bytes()).startswith(b".TH "), f"{pages[0]} is no manual page")
    for script, word in (
        ("/usr/share/bash-completion/completions/plimsoll", "complete -F _plimsoll"),
        ("/usr/share/zsh/vendor-completions/_plimsoll", "#compdef plimsoll"),
        ("/usr/share/fish/vendor_completions.d/plimsoll.fish", "complete -c plimsoll"),
    ):
        expect(word in Path(script).read_text(), f"{script} is no completion script")
    # Bash takes it, and offers what there is.
    offered = call("bash", "-c", "source /usr/share/bash-completion/completions/plimsoll; COMP_WORDS=(plimsoll rel); COMP_CWORD=1; _plimsoll plimsoll rel plimsoll; echo ${COMPREPLY[@]}")
    expect(offered.split() == ["reload", "release"], f"bash offers {offered}")
    return len(pages)


def case() -> str:
    original = PLIMSOLL.read_bytes()
    try:
        return lifecycle(original)
    finally:
        # The cases after this one want it as it was.
        subprocess.run(["dpkg", "--purge", "plimsoll"], check=False, stdin=subprocess.DEVNULL)
        subprocess.run(["dpkg", "--install", PACKAGE], check=False, stdin=subprocess.DEVNULL)


def lifecycle(original: bytes) -> str:
    # What a purge leaves is looked at when there is more to leave.
    call("dpkg", "--purge", "plimsoll")
    unit = Unit.as_it_is()

    step("installed")
    call("dpkg", "--install", PACKAGE)
    installed(unit)
    pages = files_are_there()
    # Kept by a purge, as Debian does: what this user owns elsewhere must not come to be another's.
    people = accounts()
    expect(len(people) == 2 and all("nologin" in line for line in people if line.count(":") == 6), f"the user of the drop-ins is not there: {people}")
    as_packed = SETTINGS_FILE.read_text()

    step("a reload with a mistake")
    # A file with a mistake: the reload fails and says why, and what ran goes on.
    SETTINGS_FILE.write_text(SETTINGS)
    systemctl("reload", UNIT)
    wait_for("every worker runs", 60, unit.workers_run)
    main, workers = unit.show("MainPID"), sorted(unit.pids())
    SETTINGS_FILE.write_text(SETTINGS + "\n[policy.memory]\nhihg = '80%'\n")
    call("systemctl", "reload", UNIT, fails=True)
    journal = call("journalctl", "--unit", UNIT, "--lines=40", "--output=cat")
    expect("hihg" in journal, f"the journal does not say what is wrong: {journal}")

    def goes_on() -> None:
        expect(unit.show("ActiveState") == "active" and unit.show("MainPID") == main, "the daemon is another one, or none")
        running = {pid for pid in workers if os.path.exists(f"/proc/{pid}")}
        expect(running == set(workers), f"of the workers {workers} only {running} are left")

    goes_on()
    expect(sorted(unit.pids()) == workers, f"workers were {workers} and are {unit.pids()}")
    SETTINGS_FILE.write_text(SETTINGS)

    step("an upgrade")
    # An upgrade asks nothing, keeps the settings, and the daemon becomes the new program under the same workers.
    def runs_installed() -> bool:
        return os.stat(f"/proc/{main}/exe").st_ino == PLIMSOLL.stat().st_ino

    said = call("dpkg", "--install", NEWER)
    expect("onfiguration file" not in said, f"it asks about the settings: {said}")
    expect(version() == "99.1-1 installed", f"installed is {version()}")
    expect(SETTINGS_FILE.read_text() == SETTINGS, "the settings were replaced")
    expect(PLIMSOLL.stat().st_size == len(original) + 10, "the program was not replaced")
    wait_for("the daemon is the new program", 30, runs_installed)
    goes_on()
    expect(sorted(unit.pids()) == workers, f"workers were {workers} and are {unit.pids()}")

    step("an upgrade to a broken program")
    # An upgrade to a program that cannot run: dpkg does its work, the old daemon goes on.
    said = call("dpkg", "--install", BROKEN)
    expect("did not become the new program" in said, f"nobody was told: {said}")
    expect(version() == "99.2-1 installed" and not runs_installed(), "the broken program runs")
    goes_on()
    call("dpkg", "--install", NEWER)
    wait_for("the daemon is the program that is whole again", 30, runs_installed)
    goes_on()

    step("an upgrade while it is disabled")
    # Disabled, it stays so.
    systemctl("disable", UNIT)
    call("dpkg", "--install", NEWER)
    enabled = subprocess.run(["systemctl", "is-enabled", UNIT], capture_output=True, text=True, check=False).stdout.strip()
    expect(enabled == "disabled", f"an upgrade has made it {enabled}")
    systemctl("enable", UNIT)

    step("removed")
    call("dpkg", "--remove", "plimsoll")
    expect_no_process("plimsoll")
    expect_no_process("sleep")
    expect(not PLIMSOLL.exists() and SETTINGS_FILE.read_text() == SETTINGS and (STATE / "plimsoll.db").exists(), "settings or state are gone")
    call("dpkg", "--install", PACKAGE)
    wait_for("every worker runs", 60, unit.workers_run)
    expect(SETTINGS_FILE.read_text() == SETTINGS, "the settings were replaced")

    step("purged")
    call("dpkg", "--purge", "plimsoll")
    expect_no_process("plimsoll")
    expect(not remains(), f"a purge has left {remains()}")
    expect(accounts() == people, f"accounts were {people} and are {accounts()}")
    call("dpkg", "--install", PACKAGE)
    installed(unit)
    expect(accounts() == people, f"accounts were {people} and are {accounts()}")
    expect(SETTINGS_FILE.read_text() == as_packed, "the settings are not those of the package")
    return f"{pages} manual pages; {len(workers)} workers lived through two upgrades, one of them refused; nothing left by the purge"


run(case)

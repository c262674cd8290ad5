#!/usr/bin/python3
"""The attach-only unit holds another user's service to its line with three capabilities, and never writes to its groups."""

import subprocess
from pathlib import Path

from scenario import PROGRAMS, expect, run, wait_for
from unit import SHIPPED, Unit, group_of, systemctl

SETTINGS = """
[workers.legacy]
adopt = { unit = "legacy.service" }
limits.cpu = "30%"
"""
NAME = "plimsoll-attach.service"
LEGACY = Path("/run/systemd/system/legacy.service")
# As systemd-analyze security says of the shipped unit; lower is safer.
EXPOSURE = 2.4


def case() -> str:
    subprocess.run(["systemd-sysusers", SHIPPED / "sysusers.conf"], check=True)
    attach = Path("/run/systemd/system") / NAME
    attach.write_text((SHIPPED / NAME).read_text())
    LEGACY.write_text(f"[Service]\nUser=nobody\nExecStart={PROGRAMS}/hog 100\n")
    systemctl("daemon-reload")
    systemctl("start", "legacy.service")
    try:
        unit = Unit(SETTINGS, name=NAME)
        with unit.started():
            pid = int(systemctl("show", "--value", "--property=MainPID", "legacy.service"))
            wait_for("it is held", 60, lambda: unit.status()["workers"][0]["replicas"][0].get("throttle_method") == "duty")
            group = group_of(pid)
            expect(group.name == "legacy.service", f"it was moved to {group}")
            expect((group / "cpu.max").read_text().startswith("max"), "its group was written to")
            uid = Path(f"/proc/{unit.show('MainPID')}/status").read_text().split("Uid:")[1].split()[0]
            expect(uid != "0", "the daemon runs as root")
            failures = sum(unit.metrics().values("plimsoll_action_failures_total"))
            expect(failures == 0, f"{failures:.0f} actions failed")
            report = subprocess.run(["systemd-analyze", "security", "--no-pager", NAME], capture_output=True, text=True, check=False)
            exposure = float(report.stdout.split("Overall exposure level")[1].split(":")[1].split()[0])
            expect(exposure <= EXPOSURE, f"the exposure is {exposure}, documented is {EXPOSURE}")
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        expect(state in "RS", f"once nobody guards it, it is {state}")
    finally:
        subprocess.run(["systemctl", "stop", "legacy.service"], check=False)
        LEGACY.unlink()
        attach.unlink()
        systemctl("daemon-reload")
    return f"held as user {uid}, exposure {exposure}"


run(case)

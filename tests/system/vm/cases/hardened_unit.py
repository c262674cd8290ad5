#!/usr/bin/python3
"""Without root, with everything forbidden that hardened.conf forbids, workers are held to the line by cpu.max all the same; exposures as documented."""

import re
import subprocess
from pathlib import Path

from scenario import PROGRAMS, expect, expect_near, run, wait_for
from unit import SHIPPED, UNIT, Unit, limited_groups, wait_until_throttled

SETTINGS = f"""
[policy.cpu]
sustain = "1s"

[workers.hog]
command = ["{PROGRAMS}/hog", "100"]
replicas = 2
"""
# As systemd-analyze security --offline says of the shipped files; lower is safer.
EXPOSURES = {(): 9.6, ("non-root.conf",): 6.5, ("hardened.conf",): 2.1}


def exposure(name: str) -> float:
    done = subprocess.run(["systemd-analyze", "security", "--no-pager", name], capture_output=True, text=True, check=False)
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    expect(found is not None, f"systemd-analyze said nothing: {done.stdout[-200:]}{done.stderr}")
    assert found is not None
    return float(found[1])


def case() -> str:
    subprocess.run(["systemd-sysusers", SHIPPED / "sysusers.conf"], check=True)
    said = []
    for drop_ins, documented in EXPOSURES.items():
        with Unit(SETTINGS, drop_ins=drop_ins, CPUQuota="100%") as unit:
            found = exposure(UNIT)
            expect(found <= documented, f"with {drop_ins} the exposure is {found}, documented is {documented}")
            said.append(f"{', '.join(drop_ins) or 'as shipped'} {found}")
            wait_until_throttled(unit, "cpu")
            wait_for("usage has come down to the line", 60, lambda unit=unit: unit.cores_used(2) < 0.85)
            expect_near("cores used over 5 s", unit.cores_used(5), 0.80, 0.02)
            expect(limited_groups(unit.group), "held without any cpu.max")
            uid = Path(f"/proc/{unit.pids()[0]}/status").read_text().split("Uid:")[1].split()[0]
            expect((uid == "0") == (not drop_ins), f"with {drop_ins} workers run as user {uid}")
            failures = sum(unit.metrics().values("plimsoll_action_failures_total"))
            expect(failures == 0, f"{failures:.0f} actions failed")
            degraded = [event["detail"] for event in unit.events("degraded")]
            expect(not degraded, f"it does without: {degraded}")
    return "exposure: " + "; ".join(said)


run(case)

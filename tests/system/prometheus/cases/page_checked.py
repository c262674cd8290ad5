#!/usr/bin/env python3
"""Both formats of the metrics page are served with their content types, and promtool finds nothing to complain about."""

import subprocess

from scenario import SCRATCH, expect, run
from server import daemon, fetch

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def case() -> str:
    with daemon("sleep", "600") as address:
        kind, text = fetch(f"http://{address}/metrics")
        expect(kind.replace(" ", "").startswith("text/plain;version=0.0.4"), f"content type of the text format: {kind}")
        (SCRATCH / "metrics.txt").write_text(text)
        done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
        # promtool's remarks (code 3) count too: a name that breaks the conventions cannot be changed later.
        expect(done.returncode == 0, f"promtool check metrics ended with {done.returncode}: {done.stdout}{done.stderr}")

        kind, open_text = fetch(f"http://{address}/metrics", Accept=OPENMETRICS)
        (SCRATCH / "metrics.openmetrics").write_text(open_text)
        expect(kind.replace(" ", "").startswith(OPENMETRICS.replace(" ", "")), f"content type of OpenMetrics: {kind}")
        expect(open_text.endswith("# EOF\n"), f"OpenMetrics does not end with # EOF but {open_text[-40:]!r}")
    families = sum(line.startswith("# TYPE ") for line in text.splitlines())
    return f"{families} metrics, {len(text)} bytes"


run(case)

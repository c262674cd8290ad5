#!/usr/bin/env python3
"""promtool accepts the shipped alerting rules, and their unit tests pass."""

import subprocess
from pathlib import Path

from scenario import expect, run

# Set by where this file is: the cases run from the checkout.
RULES = Path(__file__).resolve().parents[4] / "packaging/prometheus"


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False, cwd=RULES)
    expect(done.returncode == 0, f"promtool {' '.join(map(str, arguments))} ended with {done.returncode}: {done.stdout}{done.stderr}")


def case() -> str:
    tests = sorted(RULES.glob("*test*.yml"))
    rules = sorted(set(RULES.glob("*.yml")) - set(tests))
    expect(rules, f"no rules in {RULES}")
    expect(tests, f"no tests of the rules in {RULES}")
    promtool("check", "rules", *rules)
    promtool("test", "rules", *tests)
    return f"{len(rules)} files of rules, {len(tests)} of tests"


run(case)

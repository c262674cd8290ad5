#!/usr/bin/env python3
"""A real Prometheus scrapes the daemon (by OpenMetrics, which it asks for first) and gets its series, right to the worker's."""

from scenario import PROGRAMS, expect, run, wait_for
from server import daemon, fetch, prometheus, query, value

# One of each group of design.md §5 that is there from the first tick on any machine.
SERIES = [
    "plimsoll_build_info",
    "plimsoll_environment_info",
    "plimsoll_cpu_limit_cores",
    "plimsoll_cpu_usage_seconds_total",
    "plimsoll_memory_limit_bytes",
    "plimsoll_memory_working_set_bytes",
    'plimsoll_policy_utilization_ratio{resource="cpu"}',
    'plimsoll_policy_threshold_ratio{resource="memory",level="high"}',
    'plimsoll_policy_state{resource="memory",state="normal"}',
    "plimsoll_policy_throttled",
    "plimsoll_reaction_seconds_count",
    "plimsoll_tick_duration_seconds_bucket",
    'plimsoll_worker_replicas{worker="main",state="running"}',
    'plimsoll_worker_cpu_seconds_total{worker="main"}',
    'plimsoll_worker_memory_bytes{worker="main"}',
    'plimsoll_worker_starts_total{worker="main"}',
    "process_resident_memory_bytes",
    "process_cpu_seconds_total",
]


def case() -> str:
    with daemon(str(PROGRAMS / "hog"), "10") as address, prometheus(address) as server:
        wait_for("the daemon is up for Prometheus", 20, lambda: value(server, "up") == 1)
        wait_for("every series is there", 20, lambda: not [name for name in SERIES if not query(server, name)])
        missing = [name for name in SERIES if not query(server, name)]
        expect(not missing, f"missing: {missing}")
        expect(value(server, "plimsoll_up") == 1, "plimsoll_up is not 1")
        # A counter that grows at the pace of what it counts: a hog that asks for a tenth of a core, and gets less on a busy machine.
        rate = 'rate(plimsoll_worker_cpu_seconds_total{worker="main"}[10s])'
        used = wait_for("the worker's CPU is counted", 40, lambda: 0.02 < value(server, rate) < 0.14 and value(server, rate))
        samples = value(server, "scrape_samples_scraped")
        # Prometheus keeps a scrape's failure here; a page it cannot read in full counts as down.
        _, targets = fetch(f"http://{server}/api/v1/targets")
        expect('"lastError":""' in targets, f"Prometheus complains: {targets}")
    return f"{samples:.0f} samples, the worker's {used:.3f} cores seen"


run(case)

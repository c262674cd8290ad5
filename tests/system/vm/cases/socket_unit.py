#!/usr/bin/python3
"""With plimsoll.socket no scrape is refused while the daemon is restarted: systemd keeps the address."""

import subprocess
import threading
import time
import urllib.request
from pathlib import Path

from scenario import PROGRAMS, expect, run, wait_for
from unit import PAGE, SHIPPED, UNIT, Unit, systemctl

SETTINGS = f"""
[http]
# What is passed takes its place.
listen = ["127.0.0.1:18761"]

[workers.idle]
command = ["{PROGRAMS}/hog", "1"]
"""


def case() -> str:
    socket = Path("/run/systemd/system/plimsoll.socket")
    socket.write_text((SHIPPED / "plimsoll.socket").read_text())
    systemctl("daemon-reload")
    answered, refused, done = [0], [], threading.Event()

    def scrape() -> None:
        while not done.is_set():
            try:
                with urllib.request.urlopen(PAGE, timeout=30) as answer:
                    answered[0] += answer.status == 200
            except OSError as error:
                refused.append(repr(error))
            time.sleep(0.02)

    try:
        systemctl("start", "plimsoll.socket")
        with Unit(SETTINGS) as unit:
            expect(unit.status()["daemon"]["listening"] == ["127.0.0.1:18760"], f"it listens on {unit.status()['daemon']['listening']}")
            scraper = threading.Thread(target=scrape)
            scraper.start()
            for _ in range(3):
                before = answered[0]
                systemctl("restart", UNIT)
                wait_for("it is scraped again", 30, lambda before=before: answered[0] > before + 2)
            done.set()
            scraper.join()
            # A connection that the old daemon had accepted may be cut; none is refused.
            cut = [error for error in refused if "Connection refused" in error]
            expect(not cut, f"{len(cut)} scrapes were refused: {cut[:2]}")
            systemctl("stop", "plimsoll.socket")
    finally:
        done.set()
        subprocess.run(["systemctl", "stop", "plimsoll.socket"], check=False)
        socket.unlink()
        systemctl("daemon-reload")
    return f"{answered[0]} scrapes answered over 3 restarts, {len(refused)} cut, 0 refused"


run(case)

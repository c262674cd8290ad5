"""Asks a server from within its container's network, which has no other way in.

usage: ask.py once URL              prints what it answered
       ask.py often THREADS URL     asks again and again until it is ended; a refusal is no reason to stop
"""

from __future__ import annotations

import sys
import threading
import time
import urllib.request


def once(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return answer.read().decode()


def often(url: str) -> None:
    while True:
        try:
            once(url)
        except OSError:
            time.sleep(0.1)


if sys.argv[1] == "once":
    print(once(sys.argv[2]))
else:
    threads = [threading.Thread(target=often, args=(sys.argv[3],)) for _ in range(int(sys.argv[2]))]
    for thread in threads:
        thread.start()

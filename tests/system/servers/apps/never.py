"""A worker that is polite and never ready: it listens nowhere. Its child, in a session of its own, is not polite."""

import os
import signal
import sys
import time

alive = os.open(sys.argv[1], os.O_WRONLY)
if os.fork() == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1000)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
while True:
    time.sleep(1000)

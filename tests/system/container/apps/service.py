"""An application as many are: quick answers, one that is all computation, one that never lets go of what it took."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

Message = dict[str, Any]
kept: list[bytearray] = []


def say(what: str) -> None:
    """On a line of the container's log, which the daemon's own lines are in as well."""
    print(f"service {os.getpid()}: {what}", flush=True)


def burn(seconds: float) -> str:
    """Uses a processor for that long, by the thread's own clock: held back it takes longer."""
    end = time.thread_time() + seconds
    rounds = 0
    while time.thread_time() < end:
        rounds += 1
    return f"{rounds} rounds"


def leak(mebibytes: int) -> str:
    # Written to, page by page: what is only reserved is not memory yet.
    kept.append(bytearray(b"x") * (mebibytes << 20))
    return f"{sum(map(len, kept)) >> 20} MiB kept"


async def app(scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    query = {name: values[0] for name, values in parse_qs(scope["query_string"].decode()).items()}
    status, text = 200, "ok"
    match scope["path"]:
        case "/health":
            pass
        case "/burn":
            text = await asyncio.to_thread(burn, float(query["seconds"]))
        case "/leak":
            text = leak(int(query["mebibytes"]))
        case _:
            status, text = 404, "no such path"
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": text.encode()})


async def lifespan(receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGWINCH"):
                asyncio.get_running_loop().add_signal_handler(getattr(signal, name), say, f"got {name}")
            say("begun")
            await send({"type": "lifespan.startup.complete"})
        else:
            say("shut down in order")
            await send({"type": "lifespan.shutdown.complete"})
            return

"""The least application the example needs, without a framework; yours goes here.

/health answers at once. /burn?seconds=5 keeps a processor busy, /hold?mb=50 takes memory and keeps it: to see Plimsoll act.
"""

import asyncio
import time
from urllib.parse import parse_qs

held: list[bytearray] = []


def burn(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


async def answer(path: str, query: dict[str, list[str]]) -> tuple[int, str]:
    if path == "/health":
        return 200, "ok"
    if path == "/burn":
        await asyncio.to_thread(burn, float(query.get("seconds", ["5"])[0]))
        return 200, "done"
    if path == "/hold":
        held.append(bytearray(b"x") * (int(query.get("mb", ["50"])[0]) << 20))
        return 200, f"{sum(map(len, held)) >> 20} MB held"
    return 404, "not found"


async def app(scope, receive, send) -> None:
    if scope["type"] != "http":
        return
    status, body = await answer(scope["path"], parse_qs(scope["query_string"].decode()))
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": f"{body}\n".encode()})

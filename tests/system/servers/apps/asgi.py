"""An ASGI application of one page: which process answered. Each request is written down, so that none can be done twice unseen."""

import asyncio
import os

SEEN = os.open(os.environ["SEEN"], os.O_WRONLY | os.O_APPEND | os.O_CREAT) if "SEEN" in os.environ else None


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    if SEEN is not None and scope["query_string"]:
        os.write(SEEN, scope["query_string"] + b"\n")
    await asyncio.sleep(0.005)
    body = str(os.getpid()).encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})

"""The same application on a uvicorn that does not close what it has accepted and not read.

Told to end, uvicorn 0.54 closes every connection that has no request in hand. One whose request has arrived and was not read yet is
among them: its client sees a reset, whoever started uvicorn and however carefully it is replaced. No supervisor can help that: it
is the server that has the connection. Here such a connection is given half a second for its first request.
"""

import asyncio

from asgi import app  # noqa: F401
from uvicorn.protocols.http.h11_impl import H11Protocol

close_idle, receive = H11Protocol.shutdown, H11Protocol.data_received


def shutdown(self):
    if self.cycle is not None:
        close_idle(self)
    elif not getattr(self, "is_last", False):
        self.is_last = True
        asyncio.get_running_loop().call_later(0.5, lambda: self.cycle is None and close_idle(self))


def data_received(self, data):
    receive(self, data)
    if getattr(self, "is_last", False) and self.cycle is not None:
        self.cycle.keep_alive = False


H11Protocol.shutdown, H11Protocol.data_received = shutdown, data_received

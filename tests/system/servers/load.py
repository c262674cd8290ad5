"""Clients that ask without a pause, and know exactly what became of each request.

A request is **answered**, **refused** (there was nobody to connect to) or **lost** (connected, and no whole answer with status 200
came). With keep-alive a client may send a request once more on a new connection in one case only, the one HTTP allows (RFC 9112,
9.3.1): the connection has served a request before, and it was closed before the first byte of an answer came. Such a
request is counted as **crossed**: it met the server's close on the way. That the application never saw it the first
time is for the case to check, by the numbers the requests carry. One that finds its idle connection closed before it
is sent is not even that: counted as **reopened**.
"""

from __future__ import annotations

import dataclasses
import random
import select
import socket
import threading
import time

PATIENCE_SECONDS = 30


@dataclasses.dataclass(frozen=True)
class Fault:
    begun: float
    ended: float
    number: str
    why: str

    def met(self, instants: list[float], slack: float = 0.05) -> bool:
        """It was under way at one of these instants."""
        return any(self.begun - slack <= instant <= self.ended + slack for instant in instants)


class Closed(Exception):
    """The connection was closed before the first byte of an answer."""


class Load:
    def __init__(self, port: int, clients: int, keep_alive: bool, pause_seconds: float = 0.004) -> None:
        self.port, self.keep_alive, self.pause_seconds = port, keep_alive, pause_seconds
        self.answered = self.reopened = 0
        self.refused: list[Fault] = []
        self.lost: list[Fault] = []
        # By the number of the first try; the second has another.
        self.crossed: list[str] = []
        self.slowest = 0.0
        self.by: dict[str, int] = {}
        self.lock = threading.Lock()
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self.client, args=(number,), daemon=True) for number in range(clients)]

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join(timeout=PATIENCE_SECONDS + 5)

    def client(self, who: int) -> None:
        stream: socket.socket | None = None
        count = 0
        while not self.over.is_set():
            count += 1
            number = f"n={who}-{count}"
            begun = time.monotonic()
            if stream is not None and select.select([stream], [], [], 0)[0]:
                # Nothing is owed on it: whatever there is to be read is its end.
                stream.close()
                stream = None
                with self.lock:
                    self.reopened += 1
            reused = stream is not None
            try:
                if stream is None:
                    stream = self.connect()
                try:
                    stream, body = self.ask(stream, number)
                except Closed:
                    if not reused:
                        raise
                    with self.lock:
                        self.crossed.append(number)
                    stream.close()
                    stream = self.connect()
                    stream, body = self.ask(stream, number + "-again")
            except ConnectionRefusedError as error:
                self.fail(self.refused, begun, number, f"refused: {error}")
                stream = None
            except Closed as error:
                self.fail(self.lost, begun, number, str(error))
                stream = None
            except (OSError, ValueError) as error:
                self.fail(self.lost, begun, number, f"{type(error).__name__}: {error}")
                stream = None
            else:
                took = time.monotonic() - begun
                with self.lock:
                    self.answered += 1
                    self.slowest = max(self.slowest, took)
                    self.by[body] = self.by.get(body, 0) + 1
            time.sleep(random.uniform(0, 2 * self.pause_seconds))
        if stream is not None:
            stream.close()

    def fail(self, where: list[Fault], begun: float, number: str, why: str) -> None:
        with self.lock:
            where.append(Fault(begun, time.monotonic(), number, why))

    def connect(self) -> socket.socket:
        stream = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_SECONDS)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return stream

    def ask(self, stream: socket.socket, number: str) -> tuple[socket.socket | None, str]:
        """The connection, if it can be used again, and the body. Closes it otherwise."""
        wish = "keep-alive" if self.keep_alive else "close"
        answer = b""
        try:
            stream.sendall(f"GET /?{number} HTTP/1.1\r\nHost: localhost\r\nConnection: {wish}\r\n\r\n".encode())
            while b"\r\n\r\n" not in answer:
                if not (block := stream.recv(65536)):
                    break
                answer += block
        except (ConnectionResetError, BrokenPipeError) as error:
            if not answer:
                raise Closed(f"{type(error).__name__} before the first byte") from None
            raise
        if not answer:
            raise Closed("end of the stream before the first byte")
        head, end, body = answer.partition(b"\r\n\r\n")
        if not end or not head.startswith(b"HTTP/1.1 200 "):
            raise ValueError(f"answered {answer[:200]!r}")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        length = int(fields[b"content-length"])
        while len(body) < length:
            if not (block := stream.recv(65536)):
                raise ValueError(f"the answer ends after {len(body)} of {length} bytes")
            body += block
        if not self.keep_alive or fields.get(b"connection") == b"close":
            stream.close()
            return None, body.decode()
        return stream, body.decode()

    def summary(self) -> str:
        extra = f", {self.reopened} idle connections found closed, {len(self.crossed)} asked again" if self.keep_alive else ""
        return f"{self.answered} answered, {len(self.refused)} refused, {len(self.lost)} lost{extra}, slowest {self.slowest:.2f} s"


def first_of(faults: list[Fault], most: int = 5) -> str:
    return "; ".join(f"{fault.number} after {fault.ended - fault.begun:.3f} s: {fault.why}" for fault in faults[:most])

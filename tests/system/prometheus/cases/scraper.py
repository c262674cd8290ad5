#!/usr/bin/env python3
"""Prometheus does what the other cases assume: it scrapes a page that never changes and shows its value, and says when a page is gone."""

import http.server
import threading

from scenario import run, wait_for
from server import free_port, prometheus, value

PAGE = b"# HELP answer The answer.\n# TYPE answer gauge\nanswer 42\n"


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, *_: object) -> None:
        pass


def case() -> str:
    port = free_port()
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Page) as page:
        threading.Thread(target=page.serve_forever, daemon=True).start()
        with prometheus(f"127.0.0.1:{port}") as server:
            wait_for("the page is scraped", 20, lambda: value(server, "answer") == 42 and value(server, "up") == 1)
            page.shutdown()
            page.server_close()
            wait_for("its end is noticed", 20, lambda: value(server, "up") == 0)
    return "up while there is a page, down when there is none"


run(case)

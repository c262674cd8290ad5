"""A WSGI application of one page: which process answered."""

import os
import time


def app(environ, start_response):
    time.sleep(0.005)
    body = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]

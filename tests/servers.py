"""A real HTTP server on this machine that answers as a test says; shared by tests."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """Serves `content` at /file, and first, to each request in turn, what `script` says.

    Attributes:
        script: functions that take the request's handler and answer it; when it is empty, the file
            is served well.
        requests: the headers of all requests so far, with "path".
        version: of the content, sent as ETag; None: not sent.
    """

    def __init__(self, content: bytes):
        self.content, self.script, self.requests = content, [], []
        self.version, self.url = '"1"', ""

    def serve(self, handler, break_after=None):
        """The file, or what a range asks of it; the connection closes after `break_after` bytes."""
        asked = handler.headers.get("Range")
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if handler.headers.get("If-Range") != self.version:
            start = 0
        body = self.content[start:]
        headers = {
            "ETag": self.version,
            "Content-Length": len(body),
            "Content-Type": "application/octet-stream",
        }
        if start:
            size = len(self.content)
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        answer(206 if start else 200, body[:break_after], **headers)(handler)
        if break_after is not None:
            handler.close_connection = True


def answer(status=200, body=b"", **headers):
    """An answer for the script; in headers _ stands for -, and None leaves one out."""

    def give(handler):
        handler.send_response(status)
        for name, value in headers.items():
            if value is not None:
                handler.send_header(name.replace("_", "-"), str(value))
        handler.end_headers()
        handler.wfile.write(body)
        handler.close_connection = True

    return give


def hang_up(handler):
    """No answer at all."""
    handler.close_connection = True


@contextmanager
def running(handler):
    """Yields the address of a server whose requests go to a class of handlers."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}"
        finally:
            http.shutdown()
            thread.join()


@contextmanager
def serving(content):
    """Yields a running Server; `url` is its address of the file."""
    server = Server(content)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            server.requests.append({"path": self.path, **self.headers})
            (server.script.pop(0) if server.script else server.serve)(self)

        def log_message(self, *_):
            pass

    with running(Handler) as address:
        server.url = f"{address}/file"
        yield server

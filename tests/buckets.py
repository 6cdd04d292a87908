"""An S3 server on this machine (moto's), and a proxy before it that misbehaves; shared by tests."""

import http.client
import os
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import pytest
from servers import running

SECRET = "a-secret-that-nobody-may-see"


class Proxy:
    """Passes requests on to the S3 server, unless `script` says otherwise.

    Attributes:
        script: functions that take the handler and the body of a request; the first that is not
            None and returns true has answered it.
        requests: method and path of all requests so far.
    """

    def __init__(self, port):
        self.port, self.script, self.requests = port, [], []

    def pass_on(self, handler, body):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(handler.command, handler.path, body, dict(handler.headers))
        response = connection.getresponse()
        content = response.read()
        handler.send_response(response.status)
        for name, value in response.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                handler.send_header(name, value)
        length = response.getheader("Content-Length") if handler.command == "HEAD" else len(content)
        handler.send_header("Content-Length", length or "0")
        handler.end_headers()
        handler.wfile.write(content)
        connection.close()


def busy(handler, body):
    """503, as S3 says that it has too much to do."""
    text = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate</Message></Error>"
    handler.send_response(503)
    handler.send_header("Content-Length", str(len(text)))
    handler.end_headers()
    handler.wfile.write(b"" if handler.command == "HEAD" else text)


def broken(handler, body):
    """The connection ends without an answer."""
    handler.close_connection = True


def slow(seconds):
    """The answer comes so late."""

    def act(handler, body):
        time.sleep(seconds)
        busy(handler, body)

    return act


@contextmanager
def proxy_before(port):
    """Yields a running Proxy; `url` is its address."""
    proxy = Proxy(port)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            proxy.requests.append((self.command, self.path))
            for i, (matches, act) in enumerate(proxy.script):
                if matches(self.command, self.path):
                    del proxy.script[i]
                    act(self, body)
                    return
            proxy.pass_on(self, body)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer

        def log_message(self, *_):
            pass

    with running(Handler) as proxy.url:
        yield proxy


VARIABLES = {
    "AWS_ACCESS_KEY_ID": "somebody",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_DEFAULT_REGION": "us-east-1",
}


@pytest.fixture(scope="session")
def s3_proxy():
    """A proxy before an S3 server; clients and connections cost seconds, so there is one of each."""
    server = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    import boto3

    from mambair_cli.system import urls

    moto = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in VARIABLES.items():
            patch.setenv(name, value)
        host, port = moto.get_host_and_port()
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
    client.create_bucket(Bucket="photos")
    urls._files.cache_clear()
    try:
        with proxy_before(port) as proxy:
            proxy.client = client
            yield proxy
    finally:
        urls._files.cache_clear()
        moto.stop()


@pytest.fixture
def bucket(s3_proxy, monkeypatch):
    """The proxy; the bucket `photos` is empty, and the environment holds what one needs for it."""
    from mambair_cli.system import urls

    proxy, client = s3_proxy, s3_proxy.client
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    for name, value in {**VARIABLES, "AWS_ENDPOINT_URL": proxy.url}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(urls, "PAUSE", 0.01)

    def names():
        return sorted(
            entry["Key"] for entry in client.list_objects_v2(Bucket="photos").get("Contents", [])
        )

    proxy.script, proxy.requests[:] = [], []
    for name in names():
        client.delete_object(Bucket="photos", Key=name)
    proxy.names = names
    proxy.get = lambda name: client.get_object(Bucket="photos", Key=name)["Body"].read()
    proxy.put = lambda name, body: client.put_object(Bucket="photos", Key=name, Body=body)
    return proxy


@pytest.fixture
def new_connections(bucket):
    """Settings that the test makes count, and no others after it."""
    from mambair_cli.system import urls

    urls._files.cache_clear()
    yield
    urls._files.cache_clear()

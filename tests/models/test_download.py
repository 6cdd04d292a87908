import contextlib
import email.utils
import io
import os
import random
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request

import pytest
from failing import fails
from servers import answer, hang_up, serving

from mambair_cli.errors import DownloadError
from mambair_cli.models import download as module
from mambair_cli.models.download import FAILURES, LONGEST_WAIT, download

CONTENT = random.Random(0).randbytes(700_000)
LIMIT = 1_000_000


@pytest.fixture
def server():
    with serving(CONTENT) as running:
        yield running


@pytest.fixture
def waits(monkeypatch):
    """The pauses that were made, without making them."""
    seconds = []
    monkeypatch.setattr(module.time, "sleep", seconds.append)
    return seconds


@pytest.fixture
def fetch(server, tmp_path, waits):
    def fetch_file(**options):
        download(server.url, tmp_path / "file.pth", **{"limit": LIMIT} | options)
        assert (tmp_path / "file.pth").read_bytes() == CONTENT
        assert [path.name for path in tmp_path.iterdir()] == ["file.pth"]

    return fetch_file


def broken(server, after):
    return lambda handler: server.serve(handler, break_after=after)


def test_a_file(fetch, server, waits):
    seen = []
    fetch(progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert len(seen) > 1
    assert seen == sorted(seen)
    assert len(server.requests) == 1
    assert server.requests[0]["User-Agent"].startswith("mambair")
    assert not waits


def test_an_older_file_is_replaced(fetch, tmp_path):
    (tmp_path / "file.pth").write_bytes(b"old")
    fetch()


def test_a_length_that_is_not_told(fetch, server):
    server.script = [answer(200, CONTENT)]
    seen = []
    fetch(progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(CONTENT), None)


def test_chunks(fetch, server):
    pieces = (CONTENT[i : i + 100_000] for i in range(0, len(CONTENT), 100_000))
    body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    server.script = [answer(200, body[:-2000], Transfer_Encoding="chunked")]  # ends within a chunk
    server.script += [answer(200, body + b"0\r\n\r\n", Transfer_Encoding="chunked")]
    fetch()
    assert len(server.requests) == 2


# Broken connections


def test_a_broken_connection_is_resumed(fetch, server, waits):
    server.script = [broken(server, 300_000), broken(server, 100_000), hang_up]
    seen = []
    fetch(progress=lambda done, total: seen.append((done, total)))
    assert [request.get("Range") for request in server.requests] == [
        None,
        "bytes=300000-",
        "bytes=400000-",
        "bytes=400000-",
    ]
    assert [request.get("If-Range") for request in server.requests] == [None, '"1"', '"1"', '"1"']
    assert seen == sorted(seen)  # nothing is fetched twice
    assert {total for _, total in seen} == {len(CONTENT)}
    assert waits == [1, 1, 2]


def test_a_later_call_goes_on(fetch, server, tmp_path):
    server.script = [broken(server, 300_000), answer(404)]
    with pytest.raises(DownloadError, match="404"):
        fetch()
    assert not (tmp_path / "file.pth").exists()
    fetch()
    assert server.requests[-1]["Range"] == "bytes=300000-"


def test_a_file_that_changed_meanwhile_is_fetched_anew(fetch, server):
    old = answer(200, b"old" * 1000, Content_Length=len(CONTENT), ETag='"0"')
    server.script = [old]
    fetch()
    assert server.requests[1]["If-Range"] == '"0"'
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("headers", "version"),
    [
        ({"ETag": '"x"', "Last_Modified": "Tue, 20 Feb 2024 08:00:00 GMT"}, '"x"'),
        ({"Last_Modified": "Tue, 20 Feb 2024 08:00:00 GMT"}, "Tue, 20 Feb 2024 08:00:00 GMT"),
        (
            {"ETag": 'W/"x"', "Last_Modified": "Tue, 20 Feb 2024 08:00:00 GMT"},
            "Tue, 20 Feb 2024 08:00:00 GMT",
        ),
        ({"ETag": 'W/"x"'}, None),
        ({}, None),
    ],
    ids=["tag", "date", "weak tag and date", "weak tag", "nothing"],
)
def test_what_tells_whether_it_is_the_same_file(fetch, server, headers, version):
    """Without a word on the version, parts of two files could be mixed: it begins anew."""
    server.script = [answer(200, CONTENT[:1000], Content_Length=len(CONTENT), **headers)]
    fetch()
    assert server.requests[1].get("If-Range") == version
    assert server.requests[1].get("Range") == (version and "bytes=1000-")


def test_a_part_of_another_address_is_not_used(fetch, server, tmp_path, waits):
    server.script = [broken(server, 1000), answer(404)]
    fails(
        lambda: download(f"{server.url}2", tmp_path / "file.pth", limit=LIMIT), DownloadError, "404"
    )
    fetch()
    assert "Range" not in server.requests[-1]


def test_a_part_of_unknown_origin_is_not_used(fetch, server, tmp_path):
    (tmp_path / "file.pth.part").write_bytes(b"something else")
    fetch()
    assert "Range" not in server.requests[0]


@pytest.mark.parametrize("given", ["bytes 200-699999/700000", "nonsense", None])
def test_other_bytes_than_asked_for(fetch, server, given):
    server.script = [broken(server, 1000), answer(206, CONTENT[200:], Content_Range=given)]
    fetch()
    assert "Range" not in server.requests[2]


def test_a_range_that_the_server_lacks(fetch, server):
    server.script = [broken(server, 1000), answer(416, Content_Range="bytes */10")]
    fetch()
    assert "Range" not in server.requests[2]


def test_connections_that_always_break(server, tmp_path, waits):
    server.script = [hang_up] * 100
    fails(
        lambda: download(server.url, tmp_path / "f", limit=LIMIT),
        DownloadError,
        server.url,
        "no answer",
        "later",
    )
    assert len(server.requests) == FAILURES
    assert waits == [2, 4, 8, 16]


def test_connections_that_break_at_the_same_place(server, tmp_path, waits):
    """A server that always begins at the start does not count as progress."""
    server.version = None
    server.script = [broken(server, 1000)] * 100
    fails(
        lambda: download(server.url, tmp_path / "f", limit=LIMIT),
        DownloadError,
        "1,000 of 700,000 bytes",
    )
    assert len(server.requests) == FAILURES


def test_a_server_that_falls_silent(server, tmp_path, waits, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", 0.1)

    def silent(handler):
        answer(200, CONTENT[:1000], Content_Length=len(CONTENT), ETag='"1"')(handler)
        time.sleep(0.5)

    server.script = [lambda handler: time.sleep(0.5), silent]
    download(server.url, tmp_path / "file", limit=LIMIT)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert [request.get("Range") for request in server.requests] == [None, None, "bytes=1000-"]


# Servers that refuse


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 501])
def test_a_refusal_is_final(server, tmp_path, waits, status):
    server.script = [answer(status)]
    fails(
        lambda: download(server.url, tmp_path / "f", limit=LIMIT),
        DownloadError,
        server.url,
        f"HTTP {status}",
    )
    assert len(server.requests) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_passing_trouble(fetch, server, waits, status):
    server.script = [answer(status), answer(status)]
    fetch()
    assert waits == [2, 4]


def test_500_for_ever(server, tmp_path, waits):
    server.script = [answer(500)] * 100
    fails(
        lambda: download(server.url, tmp_path / "f", limit=LIMIT),
        DownloadError,
        "HTTP 500",
        "later",
    )
    assert len(server.requests) == FAILURES


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("gmt", [True, False])
def test_retry_after(fetch, server, waits, status, gmt):
    in_a_minute = email.utils.formatdate(time.time() + 60, usegmt=gmt)  # ends in GMT or -0000
    long_ago = email.utils.formatdate(0, usegmt=gmt)
    server.script = [answer(status, Retry_After=text) for text in ("7", "0", long_ago, in_a_minute)]
    fetch()
    assert waits[:3] == [7, 0, 0]
    assert 50 < waits[3] <= 60


def test_a_retry_after_that_says_nothing(fetch, server, waits):
    server.script = [answer(429, Retry_After="soon")]
    fetch()
    assert waits == [2]


def test_a_retry_after_that_is_too_long(server, tmp_path, waits):
    server.script = [answer(429, Retry_After="3600")]
    fails(
        lambda: download(server.url, tmp_path / "f", limit=LIMIT),
        DownloadError,
        "HTTP 429",
        "60 minutes",
    )
    assert not waits
    assert LONGEST_WAIT < 3600


# Answers that are not the file


@pytest.mark.parametrize(
    "page",
    [
        answer(200, b"<p>sign in", Content_Type="text/html; charset=utf-8"),
        answer(200, b"\n <!DOCTYPE html>\n<html>Quota", Content_Type="application/octet-stream"),
        answer(200, b"<HTML><body>", Content_Type=None),
    ],
    ids=["by its type", "by its beginning", "without a type"],
)
def test_a_web_page(server, tmp_path, waits, page):
    server.script = [page]
    fails(
        lambda: download(server.url, tmp_path / "f", limit=LIMIT),
        DownloadError,
        server.url,
        "web page",
        "browser",
    )
    assert not (tmp_path / "f").exists()
    assert len(server.requests) == 1
    download(server.url, tmp_path / "f", limit=LIMIT)
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_length_over_the_limit_is_refused_before_a_byte(server, tmp_path, waits):
    fails(
        lambda: download(server.url, tmp_path / "f", limit=len(CONTENT) - 1),
        DownloadError,
        "700,000 bytes",
        "699,999",
    )
    assert not list(tmp_path.iterdir())
    download(server.url, tmp_path / "f", limit=len(CONTENT))


def test_a_body_without_end(server, tmp_path, waits):
    sent = []

    def endless(handler):
        answer(200)(handler)
        while True:
            handler.wfile.write(bytes(10_000))
            sent.append(10_000)

    def until_hung_up(handler):
        with contextlib.suppress(OSError):
            endless(handler)

    server.script = [until_hung_up]
    fails(
        lambda: download(server.url, tmp_path / "f", limit=LIMIT),
        DownloadError,
        "does not end",
        "1,000,000",
    )
    assert not list(tmp_path.iterdir())
    assert sum(sent) < 100 * LIMIT


def test_more_than_the_length_says_is_not_taken(fetch, server):
    server.script = [answer(200, CONTENT + b"more", Content_Length=len(CONTENT))]
    fetch()


# Nonsense


@pytest.mark.parametrize(
    "given",
    [
        f"bytes {'9' * 5000}-{'9' * 5000}/{'9' * 5000}",
        "bytes 1000-699999/800000",
        "bytes 1000-699998/699999",
        "bytes 1000-2000/700000",
        "bytes -1000",
        "",
    ],
    ids=["long", "another total", "another end", "a part", "no numbers", "nothing"],
)
def test_a_range_that_makes_no_sense(fetch, server, given):
    server.script = [broken(server, 1000), answer(206, CONTENT[1000:], Content_Range=given)]
    fetch()
    assert "Range" not in server.requests[2]


def test_another_version_in_the_middle(fetch, server):
    """A server that does not know If-Range."""
    headers = {"Content_Range": "bytes 1000-699999/700000", "ETag": '"2"'}
    server.script = [broken(server, 1000), answer(206, b"x" * 699_000, **headers)]
    fetch()
    assert "Range" not in server.requests[2]


@pytest.mark.parametrize(
    "answers",
    [
        answer(206, CONTENT[:1000], Content_Range="bytes 0-999/700000", Content_Length=1000),
        answer(206, CONTENT[1000:], Content_Range="bytes 1000-699999/700000"),
        answer(206, CONTENT[:1000]),
        answer(204),
        answer(201, b"created"),
    ],
    ids=["the beginning", "the end", "no range", "no content", "created"],
)
def test_an_answer_that_is_not_the_file(fetch, server, answers):
    server.script = [answers, answers]
    fetch()
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    "text",
    ["9" * 5000, "Tue, 20 Feb 2024 08:00:00 +9999999999999999", "Fri, 31 Dec 9999 23:59:59 -2359"],
    ids=["a long number", "a far zone", "the end of time"],
)
def test_a_retry_after_of_nonsense(server, tmp_path, waits, text):
    server.script = [answer(429, Retry_After=text)] * FAILURES
    fails(lambda: download(server.url, tmp_path / "f", limit=LIMIT), DownloadError, "HTTP 429")
    assert all(0 <= wait <= LONGEST_WAIT for wait in waits)


@pytest.mark.parametrize(
    "origin",
    [b"\xff\xfe\0", b"", b"x" * 100_000, b'URL\n"1"\r\nHost: evil', b"URL\n" + b"1" * 5000, None],
)
def test_an_origin_of_rubbish_is_cleared(fetch, server, tmp_path, origin):
    (tmp_path / "file.pth.part").write_bytes(CONTENT[:1000])
    place = tmp_path / "file.pth.part.origin"
    if origin is None:
        os.mkfifo(place)
    else:
        place.write_bytes(origin.replace(b"URL", server.url.encode()))
    fetch()
    assert "Range" not in server.requests[0]


@pytest.mark.parametrize("length", ["9" * 5000, "-5", "many"])
def test_a_length_of_nonsense(fetch, server, length):
    server.script = [answer(200, CONTENT, Content_Length=length)]
    fetch()


# Servers that dribble


def dribble(head=b"", tail=b"HTTP/1.1 200 OK\r\n"):
    def give(handler):
        with contextlib.suppress(OSError):
            handler.wfile.write(head)
            while True:
                for i in range(len(tail)):
                    handler.wfile.write(tail[i : i + 1])
                    # The tests take time.sleep away.
                    threading.Event().wait(0.02)

    return give


@pytest.mark.parametrize(
    "give",
    [
        dribble(b"HTTP/1.1 200 OK\r\nContent-Length: 700000\r\n\r\n", b"x"),
        dribble(b"HTTP/1.1 200 OK\r\n\r\n", b"x"),
        dribble(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"),
        dribble(b"HTTP/1.1 200 OK\r\nX: ", b"x"),
        dribble(b"", b"x"),
    ],
    ids=["body", "no length", "chunk", "headers", "status"],
)
def test_a_server_that_dribbles_is_given_up(server, tmp_path, waits, monkeypatch, give):
    monkeypatch.setattr(module, "WINDOW", 0.3)
    server.script = [give] * 20
    started = time.perf_counter()
    fails(
        lambda: download(server.url, tmp_path / "f", limit=LIMIT),
        DownloadError,
        "less than 1,024 bytes a second",
        "later",
    )
    assert time.perf_counter() - started < 20
    assert not (tmp_path / "f").exists()


def test_a_server_that_breaks_after_each_byte_is_given_up(server, tmp_path, waits):
    server.script = [broken(server, 1)] * 100
    fails(lambda: download(server.url, tmp_path / "f", limit=LIMIT), DownloadError, "broke")
    assert len(server.requests) == FAILURES


# Redirections


def test_redirections_are_followed(fetch, server):
    server.script = [
        answer(status, Location=f"/step{status}") for status in (301, 302, 303, 307, 308)
    ]
    server.script += [broken(server, 1000), answer(302, Location="/elsewhere")]
    fetch()
    assert [request["path"] for request in server.requests][-3:] == [
        "/step308",
        "/file",
        "/elsewhere",
    ]
    assert server.requests[-1]["Range"] == "bytes=1000-"


def test_a_circle_of_redirections(server, tmp_path, waits):
    server.script = [answer(302, Location=f"/{i % 2}") for i in range(100)]
    fails(
        lambda: download(server.url, tmp_path / "f", limit=LIMIT),
        DownloadError,
        server.url,
        "circle",
    )
    assert len(server.requests) <= 12


@pytest.mark.parametrize("place", ["ftp://127.0.0.1/file", "file:///etc/passwd", "data:,x"])
def test_redirections_to_something_else(server, tmp_path, waits, place):
    server.script = [answer(302, Location=place)]
    scheme = place.partition(":")[0]
    fails(
        lambda: download(server.url, tmp_path / "f", limit=LIMIT),
        DownloadError,
        f"{server.url}: leads to {scheme}:, which is no web address",
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "place", ["https://[bad/x", f"http://{'a' * 70}.org/x"], ids=["brackets", "long"]
)
def test_redirections_to_an_address_that_is_none(server, tmp_path, waits, place, status):
    server.script = [answer(status, Location=place)]
    fails(
        lambda: download(server.url, tmp_path / "f", limit=LIMIT),
        DownloadError,
        server.url,
        "address that is none",
    )
    assert len(server.requests) == 1
    assert not list(tmp_path.iterdir())


def test_encryption_is_not_given_up():
    request = urllib.request.Request("https://example.org/file")

    def turn(place):
        return module._Redirects().redirect_request(request, io.BytesIO(), 302, "", {}, place)

    fails(
        lambda: turn("http://example.org/file"),
        DownloadError,
        "without encryption",
        "http://example.org/file",
    )
    assert turn("https://example.com/file").full_url == "https://example.com/file"


# No server


def test_an_unknown_host(tmp_path, waits, monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    fails(
        lambda: download("http://no.such.host/f", tmp_path / "f", limit=1),
        DownloadError,
        "no.such.host",
        "connected?",
    )
    assert not waits


def test_a_closed_port(tmp_path, waits):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/f"
    fails(lambda: download(url, tmp_path / "f", limit=1), DownloadError, url, "refused", "later")
    assert len(waits) == FAILURES - 1


def test_a_wrong_certificate(tmp_path, waits, monkeypatch):
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = "self-signed certificate"

    def distrust(*_, **__):
        raise urllib.error.URLError(error)

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", distrust)
    fails(
        lambda: download("https://x/f", tmp_path / "f", limit=1),
        DownloadError,
        "https://x/f",
        "self-signed",
    )
    assert not waits


def test_no_http_at_all(tmp_path, waits):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/f"

        def talk():
            for _ in range(FAILURES):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(1000)
                    connection.sendall(b"SSH-2.0-nothing to see\r\n\r\n")

        thread = threading.Thread(target=talk)
        thread.start()
        fails(lambda: download(url, tmp_path / "f", limit=1), DownloadError, url, "no answer")
        thread.join()


def test_a_full_disk_is_no_matter_of_the_server(server, tmp_path, waits, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        download(server.url, tmp_path / "f", limit=LIMIT, progress=full)
    assert len(server.requests) == 1


def test_the_address_of_the_agent_is_the_papers():
    assert re.search(r"arxiv\.org/abs/2402\.15648", module.AGENT)

"""One file over HTTP: resumed where the connection broke, retried, bounded, and never a web page.

On urllib, as neither library that was looked at does all of this: pooch starts again from zero,
takes a web page for the file and reads a body without end; huggingface-hub speaks to one host only.
"""

import contextlib
import email.utils
import http.client
import logging
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..errors import DownloadError
from ..system.files import read_file

log = logging.getLogger(__name__)
Progress = Callable[[int, int | None], None]

# Seconds without an answer, or without a byte of it.
TIMEOUT = 30.0
# Bytes a second, over a time in seconds, below which a connection is cut.
SLOWEST, WINDOW = 1024, 60.0
# Attempts one after the other that each bring less than so many bytes.
FAILURES, PROGRESS = 5, 2**16
# Seconds that a server may ask for.
LONGEST_WAIT = 120.0
CHUNK = 2**18
# What may stand in a header, and bytes of an address and that.
VERSION = re.compile(r"[\x20-\x7e]{1,1000}")
LONGEST_ORIGIN = 2**16
AGENT = "mambair (+https://arxiv.org/abs/2402.15648)"
# Statuses of a server that may soon be better.
PASSING = {408, 425, 429, 500, 502, 503, 504}


class _Interrupted(Exception):
    """It may go better soon; wait is what the server asks for, in seconds."""

    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait


class _Floor:
    """Cuts a connection that brings less than SLOWEST bytes a second for WINDOW seconds.

    Also one that dribbles its headers, which no timeout of a socket notices.
    """

    def __init__(self) -> None:
        self.received = 0
        self.slow = False
        self._lines: list[socket.socket] = []
        self._done = threading.Event()

    def connect(self, *arguments: Any, **options: Any) -> socket.socket:
        """As `socket.create_connection`."""
        line = socket.create_connection(*arguments, **options)
        # TLS takes the first one away.
        self._lines.append(line.dup())
        return line

    def __enter__(self) -> "_Floor":
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()

    def _watch(self) -> None:
        before = 0
        while not (self.slow or self._done.wait(WINDOW)):
            self.slow = self.received - before < SLOWEST * WINDOW
            before = self.received
        for line in self._lines:
            with contextlib.suppress(OSError):
                if self.slow:
                    line.shutdown(socket.SHUT_RDWR)
                line.close()


class _Watched(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Opens connections that a floor may cut."""

    def __init__(self, floor: _Floor):
        super().__init__()
        self.floor = floor

    def _by(self, kind: Any) -> Any:
        def make(*arguments: Any, **options: Any) -> Any:
            connection = kind(*arguments, **options)
            connection._create_connection = self.floor.connect
            return connection

        return make

    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(self._by(http.client.HTTPConnection), req)

    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(self._by(http.client.HTTPSConnection), req)


class _Redirects(urllib.request.HTTPRedirectHandler):
    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        scheme = re.match(r"\s*([a-zA-Z][\w+.-]*):", headers.get("Location", ""))
        if scheme and scheme[1].lower() not in ("http", "https"):
            fp.close()
            raise DownloadError(f"{req.full_url}: leads to {scheme[1]}:, which is no web address")
        try:
            return super().http_error_302(req, fp, code, msg, headers)
        # such as "Invalid IPv6 URL"
        except ValueError as error:
            fp.close()
            raise DownloadError(
                f"{req.full_url}: leads to an address that is none ({_reason(error)})"
            ) from None

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        if not newurl.startswith(("https:", f"{req.type}:")):
            fp.close()
            raise DownloadError(
                f"{req.full_url}: leads to an address without encryption ({newurl}): refused"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(
    url: str, target: Path, *, limit: int, progress: Progress = lambda done, total: None
) -> None:
    """Fetch a file, whole or not at all.

    What has arrived lies in `target`.part; a later call goes on from there where the server still
    has the same file (by its ETag or date) and else starts again. Servers that are busy or broken
    are asked again, after the time that they name or after growing pauses.

    Args:
        url: of http or https; redirections are followed, but not from https to http.
        target: the file to write; its folder exists.
        limit: bytes; a longer answer is refused.
        progress: called with the bytes that are there and their total (None: not told).

    Raises:
        DownloadError: the server refuses, sends a web page or too much, or cannot be reached.
        OSError: the file cannot be written.
    """
    part = target.with_name(f"{target.name}.part")
    best, failures = 0, 0
    while True:
        try:
            _receive(url, part, limit, progress)
            break
        except _Interrupted as error:
            reached = part.stat().st_size if part.exists() else 0
            failures = 0 if reached >= best + PROGRESS else failures + 1
            best = max(best, reached)
            wait = min(2.0**failures, LONGEST_WAIT) if error.wait is None else error.wait
            if failures >= FAILURES:
                raise DownloadError(
                    f"{url}: {error}; try again later, it goes on from there"
                ) from None
            if wait > LONGEST_WAIT:
                raise DownloadError(
                    f"{url}: {error}; it asks to come back in {wait / 60:.0f} minutes"
                ) from None
            log.info("%s: %s: trying again in %.0f s", url, error, wait)
            time.sleep(wait)
    part.replace(target)
    _origin(part).unlink(missing_ok=True)


def _receive(url: str, part: Path, limit: int, progress: Progress) -> None:
    """Fetch what is missing of `part`. Raises _Interrupted where trying again makes sense."""
    headers = {"User-Agent": AGENT, "Accept-Encoding": "identity"}
    there, version = _resumable(url, part)
    if there:
        headers |= {"Range": f"bytes={there}-", "If-Range": version}
    with _Floor() as floor:
        try:
            _take(url, part, limit, progress, headers, floor)
        except _Interrupted:
            if floor.slow:
                raise DownloadError(
                    f"{url}: sends less than {SLOWEST:,} bytes a second: given up; try again later,"
                    " it goes on from there"
                ) from None
            raise


def _take(
    url: str, part: Path, limit: int, progress: Progress, headers: dict[str, str], floor: _Floor
) -> None:
    """As `_receive`, with the headers of the request."""
    opener = urllib.request.build_opener(_Redirects, _Watched(floor))
    try:
        response = opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            raise _refusal(url, part, error) from None
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(url, error) from None
    with response:
        if response.headers.get_content_type() == "text/html":
            raise _web_page(url)
        there = part.stat().st_size if "Range" in headers else 0
        # None where the server does not say
        there, total = _extent(response, part, there, headers.get("If-Range", ""))
        if total is not None and total > limit:
            raise DownloadError(
                f"{url}: is {total:,} bytes long, where at most {limit:,} are expected: refused"
            )
        chunk = _read(response)
        if there == 0:
            if re.match(rb"\s*<(!doctype html|html)", chunk, re.IGNORECASE):
                raise _web_page(url)
            # first, or it could be taken for a beginning of the new version
            _forget(part)
            _remember(url, part, response)
        with part.open("r+b" if there else "wb") as file:
            file.seek(there)
            while chunk and there + len(chunk) <= limit:
                file.write(chunk)
                there += len(chunk)
                floor.received += len(chunk)
                progress(there, total)
                chunk = _read(response)
    if chunk:
        _forget(part)
        raise DownloadError(
            f"{url}: does not end after the {limit:,} bytes that are expected: refused"
        )
    if floor.slow:
        # What has no length looks whole when it is cut.
        raise _Interrupted("it was cut")
    if total is not None and there > total:
        _forget(part)
        raise _Interrupted(f"it sent more than the {total:,} bytes that it told of")
    if total is not None and there < total:
        raise _Interrupted(f"the connection broke after {there:,} of {total:,} bytes")


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(f"the connection broke ({_reason(error)})") from None


def _refusal(url: str, part: Path, error: urllib.error.HTTPError) -> Exception:
    if error.code in PASSING:
        return _Interrupted(
            f"HTTP {error.code} {error.reason}", _seconds(error.headers.get("Retry-After"))
        )
    if error.code == 416:
        # what is here is no beginning of what is there
        _forget(part)
        return _Interrupted("it has no bytes from there on")
    if 300 <= error.code < 400:
        return DownloadError(f"{url}: redirects in a circle; the address may have moved")
    return DownloadError(f"{url}: HTTP {error.code} {error.reason}")


def _unreachable(url: str, error: Exception) -> Exception:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, socket.gaierror):
        return DownloadError(f"{url}: its host cannot be found; is this machine connected?")
    if isinstance(cause, ssl.SSLCertVerificationError):
        return DownloadError(f"{url}: its certificate cannot be checked ({cause.verify_message})")
    return _Interrupted(f"no answer ({_reason(cause)})")


def _reason(error: object) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _web_page(url: str) -> DownloadError:
    return DownloadError(
        f"{url}: answered with a web page instead of the file (a question, a quota or an error);"
        " see it in a browser"
    )


def _extent(
    response: http.client.HTTPResponse, part: Path, asked: int, version: str
) -> tuple[int, int | None]:
    """Which byte an answer begins with, where those from `asked` on of a version were wanted, and
    how many the whole file has.

    Raises _Interrupted, and forgets what is there, for an answer that does not go on from there.
    """
    if response.status == 200:
        return 0, response.length
    if response.status != 206:
        raise _Interrupted(f"HTTP {response.status} {response.reason} instead of the file")
    told = response.headers.get("Content-Range", "")
    found = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", told.strip())
    first, last, total = found.groups() if found else ("", "", "")
    now = _version(response)
    whole = total == "*" or (total and int(last) + 1 == int(total))
    fits = whole and response.length in (None, int(last) + 1 - int(first))
    if not (asked and fits and int(first) == asked and now in ("", version)):
        _forget(part)
        begin = (
            f"the bytes from {first[:18] or '?'} on" if asked else "a part that nobody asked for"
        )
        raise _Interrupted(f"it answered with {begin}, not with what was asked for")
    return asked, int(last) + 1


def _seconds(text: str | None) -> float | None:
    """What Retry-After says: seconds, or a date (RFC 9110, section 10.2.3)."""
    if text is None:
        return None
    if text.strip().isdecimal():
        return float(text)
    try:
        date = email.utils.parsedate_to_datetime(text)
        # "-0000" is UTC of an unknown place.
        date = date if date.tzinfo else date.replace(tzinfo=timezone.utc)
        return max(0.0, (date - datetime.now(timezone.utc)).total_seconds())
    except (ValueError, OverflowError, TypeError):
        return None


def _origin(part: Path) -> Path:
    """The file that tells of which version on which server `part` is the beginning."""
    return part.with_name(f"{part.name}.origin")


def _resumable(url: str, part: Path) -> tuple[int, str]:
    """How many bytes are there already, and of which version; 0 where that is not known."""
    try:
        told = read_file(_origin(part), LONGEST_ORIGIN).decode()
        size = part.stat().st_size if part.is_file() else 0
    except (OSError, ValueError):
        return 0, ""
    origin, _, version = told.partition("\n")
    return (size, version) if origin == url and VERSION.fullmatch(version) else (0, "")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _origin(part).unlink(missing_ok=True)


def _remember(url: str, part: Path, response: http.client.HTTPResponse) -> None:
    _origin(part).write_text(f"{url}\n{_version(response)}", "utf-8")


def _version(response: http.client.HTTPResponse) -> str:
    """What tells the versions of a file apart; empty where the server does not say, or nonsense."""
    tag = response.headers.get("ETag", "")
    version = response.headers.get("Last-Modified", "") if tag.startswith("W/") or not tag else tag
    return version if VERSION.fullmatch(version) else ""

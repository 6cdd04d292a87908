"""Objects in buckets, through fsspec: whole or not at all, asked again after passing troubles.

Credentials come by the means of each library (its variables, files and roles), never by this
package, and nothing that is printed holds one.
"""

import functools
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from ..errors import CallError, DownloadError, UploadError

SCHEMES = ("http", "https", "s3", "gs", "hf")
"""Kinds of URLs that are understood."""

ATTEMPTS = 5
"""How often something is asked for before it counts as failed."""

PAUSE = 0.5
"""Seconds before the second attempt; each further pause is twice as long."""

TIMEOUT = 60
"""Seconds without an answer, or without a byte of it."""

CHUNK = 2**20

# What another attempt would not change.
_CERTAIN = (FileNotFoundError, PermissionError, IsADirectoryError, NotImplementedError, ImportError)
_CERTAIN_TYPES = ("NoCredentialsError", "PartialCredentialsError", "ParamValidationError")
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID", "HF_TOKEN")

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Url:
    """An object, or a folder of objects, of a bucket or a web server.

    Attributes:
        address: the whole of it, with credentials if it came with some.
        is_folder: whether it stands for all objects below it.
        bytes: how large the object is; None if that is not known.
        version: tells this state of the object from others, such as its ETag.
    """

    address: str
    is_folder: bool = False
    bytes: int | None = None
    version: str = ""

    def __str__(self) -> str:
        return without_secrets(self.address)

    def __truediv__(self, below: str | PurePosixPath) -> "Url":
        return Url(f"{self.address.rstrip('/')}/{below}")

    @property
    def name(self) -> str:
        """The last part of the path, without what follows a question mark."""
        path = self.address.partition("://")[2]
        if self.address.startswith("http"):
            path = re.split(r"[?#]", path)[0]
        return path.rstrip("/").rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The suffix of the name, with its dot."""
        return PurePosixPath(self.name).suffix

    @property
    def is_web(self) -> bool:
        """Whether it is of a web server, which can be read but neither listed nor written."""
        return self.address.startswith("http")

    def below(self, folder: "Url") -> str:
        """Its path within a folder."""
        return self.address.removeprefix(f"{folder.address.rstrip('/')}/")


Place = Path | Url
"""Where something lies."""


def is_url(text: str) -> bool:
    """Whether a text is a URL. Raises CallError for one of an unknown kind."""
    scheme, colon, _ = text.partition("://")
    if not colon or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+", scheme):
        return False
    if scheme not in SCHEMES:
        kinds = ", ".join(SCHEMES)
        raise CallError(f"{without_secrets(text)}: {scheme} is not known; use one of {kinds}")
    return True


def without_secrets(text: str) -> str:
    """A text without the credentials that URLs may hold, and without those of the environment."""
    text = re.sub(r"://[^/@\s'\"]*@", "://", text)
    text = re.sub(r"(https?://[^\s?#'\"]*)[?#][^\s'\",;)]*", r"\1", text)
    for name in _SECRETS:
        secret = os.environ.get(name)
        if secret and len(secret) >= 4:
            text = text.replace(secret, f"<{name}>")
    return text


def locate(address: str) -> Url:
    """What there is at an address: its kind, size and version; of a web server, all is one file.

    Raises:
        CallError: nothing is there, or the package that speaks to it is not installed.
        DownloadError: it cannot be reached, or not with these rights.
    """
    url = Url(address)
    if url.is_web:
        if "@" in address.partition("://")[2].partition("/")[0]:
            raise CallError(f"{url}: names and passwords in addresses are not used; leave them out")
        # What is there shows when it is read: not every server tells before.
        return Url(address, version=str(url))
    try:
        found = _again(url, lambda files: files.info(address), DownloadError)
    except FileNotFoundError:
        raise CallError(f"{url}: nothing is there; check the address") from None
    if found["type"] == "directory":
        return Url(address, is_folder=True)
    return Url(address, False, found.get("size"), _version(found))


def objects_below(folder: Url) -> Iterator[Url]:
    """All objects below a folder, with their sizes and versions. Raises DownloadError."""
    scheme = folder.address.partition("://")[0]
    if scheme == "s3":
        yield from _s3_objects(folder)
        return
    pending = [folder.address]
    while pending:
        place = pending.pop()
        try:
            found = _again(folder, _lister(place), DownloadError)
        except FileNotFoundError:
            continue
        for entry in found:
            address = f"{scheme}://{entry['name']}"
            if entry["type"] == "directory":
                pending.append(address)
            elif address.rstrip("/") != place.rstrip("/"):
                yield Url(address, False, entry.get("size"), _version(entry))


def _s3_objects(folder: Url) -> Iterator[Url]:
    """As `objects_below`, a thousand at a time: the library's own listing keeps all in memory."""
    bucket, _, prefix = folder.address.partition("://")[2].partition("/")
    prefix = f"{prefix.rstrip('/')}/" if prefix else ""
    asked = {"Bucket": bucket, "Prefix": prefix}
    while True:
        page = _again(folder, _asker(asked), DownloadError)
        for entry in page.get("Contents", []):
            if not entry["Key"].endswith("/"):
                address = f"s3://{bucket}/{entry['Key']}"
                yield Url(address, False, entry["Size"], _version(entry))
        if not page.get("IsTruncated"):
            return
        asked = {**asked, "ContinuationToken": page["NextContinuationToken"]}


def _asker(asked: dict[str, str]) -> Callable[[Any], dict[str, Any]]:
    return lambda files: files.call_s3("list_objects_v2", **asked)


def _lister(place: str) -> Callable[[Any], list[dict[str, Any]]]:
    return lambda files: files.ls(place, detail=True, refresh=True)


def read_object(url: Url, limit: int) -> bytes:
    """The whole content of an object in a bucket.

    Raises:
        CallError: nothing is there.
        DownloadError: it is longer than `limit` bytes, cannot be reached, or breaks off again
            and again.
    """
    if url.bytes is not None and url.bytes > limit:
        raise DownloadError(_too_long(url, limit))

    def read(files: Any) -> bytes:
        content = bytearray()
        with files.open(url.address, "rb", cache_type="readahead") as file:
            while chunk := file.read(CHUNK):
                content += chunk
                if len(content) > limit:
                    raise DownloadError(_too_long(url, limit))
        if url.bytes is not None and len(content) != url.bytes:
            raise OSError(f"{len(content)} of {url.bytes} bytes came")
        return bytes(content)

    try:
        return _again(url, read, DownloadError)
    except FileNotFoundError:
        raise CallError(f"{url}: nothing is there; check the address") from None


def write_object(source: Path, url: Url) -> None:
    """Store a file as an object: whole, or not at all. Raises UploadError."""
    try:
        _again(url, lambda files: files.put_file(str(source), url.address), UploadError)
    except FileNotFoundError as error:
        raise UploadError(f"{url}: cannot be written: {_reason(error)}") from None


def check_installed(url: Url) -> None:
    """Raise CallError if what speaks to such a URL is not installed."""
    _files(url.address.partition("://")[0])


def _too_long(url: Url, limit: int) -> str:
    return f"{url}: is longer than {limit:,} bytes; allow more with `max_bytes`"


def _version(found: dict[str, Any]) -> str:
    """What tells a state of an object; the name differs from library to library."""
    for name in ("ETag", "etag", "LastModified", "updated", "mtime", "last_commit", "blob_id"):
        if found.get(name):
            return str(found[name]).strip('"')
    return ""


@functools.cache
def _files(scheme: str) -> Any:
    """The file system of a kind of URL."""
    options: dict[str, Any] = {"skip_instance_cache": True}
    if scheme == "s3":
        options["config_kwargs"] = {"read_timeout": TIMEOUT, "connect_timeout": 10}
    try:
        import fsspec

        return fsspec.filesystem(scheme, **options)
    except ImportError:
        raise CallError(
            f"{scheme}:// needs packages that are not here: pip install 'mambair[cloud]'"
        ) from None


def _again(url: Url, ask: Callable[[Any], T], kind: type[DownloadError] | type[UploadError]) -> T:
    """What `ask` returns, given the file system; asked again after passing troubles.

    Raises FileNotFoundError, and `kind` where it fails for good.
    """
    files = _files(url.address.partition("://")[0])
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return ask(files)
        except (FileNotFoundError, DownloadError, UploadError, KeyboardInterrupt):
            raise
        except Exception as error:
            if attempt == ATTEMPTS or not _may_pass(error):
                what = "written" if kind is UploadError else "read"
                raise kind(f"{url}: cannot be {what}: {_reason(error)}") from None
            pause = PAUSE * 2 ** (attempt - 1)
            log.info("%s: %s: trying again in %.1f s", url, _reason(error), pause)
            time.sleep(pause)
    raise AssertionError


def _may_pass(error: Exception) -> bool:
    """Whether another attempt may go better."""
    status = getattr(error, "status", None) or getattr(error, "code", None)
    if isinstance(status, int):
        return status in _PASSING
    return not isinstance(error, _CERTAIN) and type(error).__name__ not in _CERTAIN_TYPES


def _reason(error: Exception) -> str:
    """The words of a library on one line, without credentials."""
    if isinstance(error, PermissionError):
        return f"not allowed: {_words(error)}"
    if type(error).__name__ == "NoCredentialsError":
        return "there are no credentials; set them up as for the command line of that service"
    return _words(error)


def _words(error: Exception) -> str:
    text = " ".join(str(error).split())
    return without_secrets(text)[:200] or type(error).__name__

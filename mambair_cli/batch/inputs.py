"""The contents of inputs at URLs."""

import tempfile
from pathlib import Path

from ..errors import DownloadError
from ..models.download import download
from ..system import scratch
from ..system.urls import Url, read_object, without_secrets


def read_content(url: Url, limit: int) -> bytes:
    """The whole content of what is at a URL.

    Buckets are asked through fsspec, web servers by this package's own download, which needs
    nothing that is not installed, and refuses web pages and servers that turn encryption off.

    Raises:
        CallError: nothing is there.
        DownloadError: it is longer than `limit` bytes, or cannot be had.
    """
    if not url.is_web:
        return read_object(url, limit)
    with tempfile.TemporaryDirectory(prefix="mambair-", dir=scratch.folder()) as place:
        path = Path(place, "input")
        try:
            download(url.address, path, limit=limit)
        except DownloadError as error:
            raise DownloadError(without_secrets(str(error))) from None
        return path.read_bytes()

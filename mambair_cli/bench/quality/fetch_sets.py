"""Fetch a data set from the first address that works, unpack it safely, check its pixels."""

import hashlib
import re
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit

from filelock import FileLock

from ...errors import CallError, DownloadError, ImageError
from ...images.folders import list_images, read_rgb
from ...models.cache import is_offline
from ...models.download import download
from .sets import Archive, DataSet, Files, digest_of, fetched_folder, hash_of

Progress = Callable[[float, str], None]
Tell = Callable[[str], None]

LARGEST_ARCHIVE = 2**30
"""Bytes."""
LARGEST_IMAGE = 2**24
"""Bytes of the file of an image."""
IMAGES = (".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg")
LARGEST_CONTENT = 4 * 2**30
"""Bytes of all that an archive holds."""
CHUNK = 2**20
# An encrypted zip file is a RuntimeError.
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError)


def fetch_set(
    row: DataSet,
    tell: Tell = lambda line: None,
    progress: Progress = lambda share, label: None,
) -> Path:
    """Fetch a set into the cache and check its pixels; returns its folder.

    What has arrived when a run is cut off is not fetched again by the next. Addresses are tried in
    turn. A set that is there already is left as it is.

    Args:
        row: of the set.
        tell: called with lines for the user: where it comes from, how large it is, its licence.
        progress: called with the share done and what is at work.

    Raises:
        CallError: only a person can get the set; says how. DownloadError: the network must not be
        used, or no address gave the set; says why.
    """
    if not row.addresses:
        raise CallError(f"{row.name} cannot be fetched for you: {row.by_hand}")
    folder = fetched_folder() / row.name
    if folder.is_dir():
        return folder
    if is_offline():
        raise DownloadError(
            f"{row.name} is not here, and the network must not be used (HF_HUB_OFFLINE);"
            f" {row.by_hand}"
        )
    reasons = []
    with _one_at_a_time(row):
        for address in row.addresses:
            if folder.is_dir():
                break
            try:
                found = _fetched(row, address, tell, progress)
                _check_pixels(row, found, address.url)
            except (DownloadError, ImageError) as error:
                reasons.append(str(error))
                tell(f"{error}")
            else:
                found.replace(folder)
                shutil.rmtree(_partial(row))
    if not folder.is_dir():
        raise DownloadError(
            f"{row.name} could not be fetched: {'; '.join(reasons)}; or {row.by_hand}"
        )
    return folder


@contextmanager
def _one_at_a_time(row: DataSet) -> Iterator[None]:
    """Lets one process at a time fetch a set. Raises DownloadError where the cache is read-only."""
    folder = _partial(row)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{row.name}.lock")):
            folder.mkdir(exist_ok=True)
            yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise DownloadError(
            f"{folder} cannot be written ({reason}); make room, or name another folder in"
            " MAMBAIR_HOME"
        ) from error


def _partial(row: DataSet) -> Path:
    return fetched_folder() / "partial" / row.name


def _fetched(row: DataSet, address: Archive | Files, tell: Tell, progress: Progress) -> Path:
    """A folder of images from one address, which are still to be checked."""
    label = f"fetching {row.name}"
    if isinstance(address, Files):
        count = len(address.names)
        tell(f"{label} from {address.url} ({count} images; licence: {row.licence})")
        folder = _partial(row) / "images"
        folder.mkdir(exist_ok=True)
        for i, name in enumerate(address.names):
            progress(i / count, label)
            url = address.url.format(name)
            target = folder / f"{name}{PurePosixPath(urlsplit(url).path).suffix}"
            if not target.is_file():
                download(url, target, limit=LARGEST_IMAGE)
        return folder
    file = _partial(row) / PurePosixPath(urlsplit(address.url).path).name
    if not file.is_file():
        seen: list[int | None] = []

        def report(done: int, total: int | None) -> None:
            if not seen:
                size = "of unknown size" if total is None else f"{total / 1e6:.0f} MB"
                tell(f"{label} from {address.url} ({size}; licence: {row.licence})")
            seen.append(total)
            progress(done / total if total else 0.0, label)

        download(address.url, file, limit=LARGEST_ARCHIVE, progress=report)
    try:
        folder = _unpacked(row, file, address)
    except DownloadError:
        file.unlink()
        raise
    except DAMAGED as error:
        file.unlink()
        raise DownloadError(f"{address.url}: cannot be unpacked ({error})") from error
    file.unlink()
    return folder


def _unpacked(row: DataSet, file: Path, address: Archive) -> Path:
    """The images of an archive in a folder, each under the last part of its name alone.

    Raises DownloadError where the archive is not what is expected; others as `tarfile`, `zipfile`.
    """
    if address.md5 and _md5(file) != address.md5:
        raise DownloadError(f"{address.url}: the file has changed (other MD5)")
    folder = _partial(row) / "unpacked"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, stream in _members(file, address):
        path = PurePosixPath(name)
        # Such as img_001_SRF_4_HR.png, which would be taken for a truth of one scale alone.
        target = folder / (re.sub(r"(_SRF_\d)?(_HR)?$", "", path.stem) + path.suffix)
        count = len(list(folder.iterdir()))
        if target.exists() or count == row.images:
            raise DownloadError(f"{address.url}: holds more than {row.images} images")
        _copy(stream, target, address.url)
    return folder


def _members(file: Path, address: Archive) -> Iterator[tuple[str, IO[bytes]]]:
    """Names and contents of the images in an archive; neither links nor devices."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            _check_size(sum(info.file_size for info in archive.infolist()), address)
            for info in archive.infolist():
                if not info.is_dir() and _is_image(info.filename, address.inside):
                    with archive.open(info) as stream:
                        yield info.filename, stream
        return
    with tarfile.open(file) as tar:
        seen = 0
        for member in tar:
            seen += member.size
            _check_size(seen, address)
            content = tar.extractfile(member) if member.isfile() else None
            if content and _is_image(member.name, address.inside):
                with content:
                    yield member.name, content


def _check_size(size: int, address: Archive) -> None:
    if size > LARGEST_CONTENT:
        raise DownloadError(f"{address.url}: holds more than {LARGEST_CONTENT:,} bytes")


def _is_image(name: str, pattern: str) -> bool:
    path = PurePosixPath(name)
    # Such as ._baby.png, which macOS adds.
    hidden = path.name.startswith(".")
    return path.suffix.lower() in IMAGES and not hidden and fnmatch(name, pattern)


def _copy(stream: IO[bytes], target: Path, url: str) -> None:
    """Write what a stream holds, whatever its header says, up to LARGEST_IMAGE bytes."""
    written = 0
    with target.open("wb") as file:
        while chunk := stream.read(CHUNK):
            written += len(chunk)
            if written > LARGEST_IMAGE:
                raise DownloadError(f"{url}: holds an image of more than {LARGEST_IMAGE:,} bytes")
            file.write(chunk)


def _md5(file: Path) -> str:
    digest: Any = hashlib.md5(usedforsecurity=False)
    with file.open("rb") as content:
        while chunk := content.read(CHUNK):
            digest.update(chunk)
    return str(digest.hexdigest())


def _check_pixels(row: DataSet, folder: Path, url: str) -> None:
    """Delete a folder that does not hold the set that is known, and raise ImageError."""
    try:
        digest = digest_of(hash_of(read_rgb(path)) for path in list_images(folder))
    except (CallError, ImageError) as error:
        digest = str(error)
    if digest != row.digest:
        # Or it would be taken for fetched the next time.
        shutil.rmtree(folder)
        raise ImageError(
            f"{url}: holds not the {row.name} that is known ({digest}, not {row.digest}), so that"
            " nothing was kept"
        )

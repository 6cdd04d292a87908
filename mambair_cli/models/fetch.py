"""From the name of a model to its file: bundled, in the cache, fetched now; and what comes into the cache, and out."""

import difflib
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import CallError, CheckpointError, DownloadError
from ..system.files import sha256, write_atomically
from .cache import (
    NAME,
    Record,
    cached_file,
    find_in_hub,
    is_offline,
    list_records,
    models_folder,
    read_record,
    record_file,
)
from .catalog import MODELS, Model, model_named
from .download import Progress, download
from .weights import (
    bundled_folder,
    check_row,
    describe,
    load_network,
    task_of,
    why_missing,
)

log = logging.getLogger(__name__)
Tell = Callable[[str], None]

BYTES_PER_PARAMETER = 16  # two copies in float64: more than any published file has
OVERHEAD = 2**20  # bytes of a file for names and shapes


def find_checkpoint(
    name_or_file: str | Path,
    progress: Progress = lambda done, total: None,
    tell: Tell = log.warning,
) -> Path:
    """The file of a model, bundled, cached or fetched now; or the file that is named.

    Files of models are compared with their SHA-256. The arguments are those of `pull`.
    Raises CallError where there is no such model or file, CheckpointError where it is not what it was,
    DownloadError where it cannot be fetched.
    """
    name = str(name_or_file)
    row, record = model_named(name), read_record(name)
    if row and row.file:
        return _checked(bundled_folder() / row.file, str(row.sha256), "install mambair again")
    if record and record.path:
        return _checked(
            record.path,
            record.sha256,
            f"mambair models remove {name}, then fetch or import it again",
        )
    if row:
        return pull(row, progress, tell)
    return named_file(name)


def named_file(name: str) -> Path:
    """`name` as the path of a file; raises CallError where it looks like a model's name and there is no such file."""
    path = Path(name)
    if path.suffix or why_missing(path) != "is missing":
        return path
    raise CallError(no_model(name, "see mambair models list, or give a file"))


def no_model(name: str, otherwise: str = "see mambair models list") -> str:
    """That no model has this name, and what may have been meant."""
    known = [*(model.name for model in MODELS), *(record.name for record in list_records())]
    near = difflib.get_close_matches(name, known, 1)
    return f"no model is called {name!r}; {f'did you mean {near[0]}?' if near else otherwise}"


def _checked(path: Path, digest: str, advice: str) -> Path:
    if why := why_missing(path):
        raise CheckpointError(f"{path}: the file of the weights {why}; {advice}")
    if sha256(path) != digest:
        raise CheckpointError(f"{path}: the weights are damaged; {advice}")
    return path


def known_task(name_or_file: str) -> str | None:
    """What a model or file that is here is for; None where only its scale tells."""
    row, record = model_named(name_or_file), read_record(name_or_file)
    return row.task if row else record.task if record else task_of(Path(name_or_file))


def pull(
    row: Model, progress: Progress = lambda done, total: None, tell: Tell = log.warning
) -> Path:
    """The file of a model, which is fetched into the cache if it is not here; what arrives must be of its network.

    Its SHA-256 must be the row's, or where nobody knows that, the one that was recorded at the first download.

    Args:
        row: of MODELS.
        progress: called with the bytes that have arrived and their total (None: not told).
        tell: called with what the user should know.

    Raises:
        CheckpointError: what is here is damaged. DownloadError: it cannot be fetched from any of the row's
        addresses, or has none; or the cache cannot be written.
    """
    if row.file or cached_file(row.name):
        return find_checkpoint(row.name)
    by_hand = f"mambair models import FILE --name {row.name}"
    if not row.urls:
        raise DownloadError(
            f"{row.name}: no address of its file is known; where you have it: {by_hand}"
        )
    with _writing(row.name, tell):
        if cached_file(row.name):  # another process has fetched it
            return find_checkpoint(row.name)
        failures = []
        for url in row.urls:
            try:
                return _enter(row.name, row, _fetch(row, url, progress, tell), url, tell)
            except (CheckpointError, DownloadError) as error:
                failures.append(str(error))
    raise DownloadError(f"{row.name} cannot be fetched: {'; '.join(failures)}; by hand: {by_hand}")


def import_file(source: Path, name: str, tell: Tell = log.warning) -> Path:
    """Copy a checkpoint into the cache under a name that `-m` takes, and return the copy.

    The name is a new one, or that of a row of MODELS whose file this is.
    Raises CallError for a name that cannot be used, CheckpointError where the file is no network or not the row's,
    DownloadError where the cache cannot be written.
    """
    if not NAME.fullmatch(name):
        raise CallError(f"a model's name has small letters, digits and hyphens, not {name!r}")
    row = model_named(name)
    if row and row.file:
        raise CallError(f"{name} is bundled; choose another --name")
    if cached_file(name):
        raise CallError(f"there is a model {name} already; first: mambair models remove {name}")
    if why := why_missing(source):
        raise CallError(f"{source} {why}; give a checkpoint file")
    with _writing(name, tell):
        copy = _new_file(name, source.name)
        write_atomically(copy, source.read_bytes())
        return _enter(name, row, copy, str(source.resolve()), tell)


def remove(name: str) -> Path:
    """Take a model's file out of the cache and return where it was.

    The hash of a model of MODELS is kept, as a later download must match. What lies elsewhere stays there.
    Raises CallError where it is bundled or not in the cache.
    """
    row, record = model_named(name), read_record(name)
    if row and row.file:
        raise CallError(f"{name} is bundled with mambair and cannot be removed")
    if record is None or record.path is None:
        raise CallError(f"{name} is not in the cache; see mambair models list")
    if record.path.parent == models_folder():
        record.path.unlink(missing_ok=True)
    if row:
        _write_record(replace(record, file=None))
    else:
        record_file(name).unlink()
    return record.path


def verify() -> Iterator[tuple[str, Path, str | None]]:
    """For each bundled and cached model its name, its file, and what is wrong with it (None: nothing)."""
    files = {model.name: bundled_folder() / model.file for model in MODELS if model.file}
    files |= {record.name: record.path for record in list_records() if record.path}
    for name, path in files.items():
        try:
            load_network(find_checkpoint(name))
        except (CallError, CheckpointError) as error:
            yield name, path, str(error)
        else:
            yield name, path, None


def _write_record(record: Record) -> None:
    write_atomically(record_file(record.name), json.dumps(asdict(record), indent=1).encode())


def _new_file(name: str, like: str) -> Path:
    """Where a file lies until it has been looked at; the suffix tells how to read it."""
    suffix = ".safetensors" if like.lower().endswith(".safetensors") else ".pth"
    return models_folder() / f".{name}.new{suffix}"


@contextmanager
def _writing(name: str, tell: Tell) -> Iterator[None]:
    """Lets one process at a time bring a model into the cache. Raises DownloadError where it cannot be written."""
    folder = models_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f".{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            tell(f"{name}: another process fetches it; waiting")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()
    except OSError as error:
        reason = error.strerror or str(error)
        raise DownloadError(
            f"{folder}: cannot be written: {reason}; make room, or name another in MAMBAIR_HOME"
        ) from error


def _fetch(row: Model, url: str, progress: Progress, tell: Tell) -> Path:
    """A file that has yet to be looked at."""
    if found := find_in_hub(url):
        return found
    if is_offline():
        raise DownloadError(
            f"{url} is not here, and the network must not be used (--offline, HF_HUB_OFFLINE)"
        )
    tell(f"{row.name}: fetching {url} (licence: {row.licence})")
    path = _new_file(row.name, url)
    download(url, path, limit=OVERHEAD + BYTES_PER_PARAMETER * row.parameters, progress=progress)
    return path


def _enter(name: str, row: Model | None, path: Path, source: str, tell: Tell) -> Path:
    """Check a file and give it its place and record; one that came into the cache for this is moved or deleted.

    Raises CheckpointError where it is no network, or not the row's.
    """
    fresh = path.parent == models_folder()
    try:
        facts = describe(path)
        if row:
            check_row(row, facts, source)
            _check_hash(row, facts["sha256"], source, tell)
    except CheckpointError as error:
        if fresh:
            path.unlink()
        raise CheckpointError(
            str(error).replace(str(path), source)
        ) from None  # what the user knows is the source
    place = path
    if fresh:
        place = path.replace(models_folder() / f"{name}{path.suffix}")
    task = row.task if row else facts["task"]
    shape = facts["arch"], facts["scale"], facts["parameters"]
    _write_record(
        Record(name, place.name if fresh else str(place), facts["sha256"], source, task, *shape)
    )
    return place


def _check_hash(row: Model, digest: str, source: str, tell: Tell) -> None:
    record = read_record(row.name)
    known = row.sha256 or (record.sha256 if record else None)
    if known is None:
        tell(
            f"{row.name}: the hash of this file is not known, so it was only checked to be such a network;"
            f" SHA-256 {digest} is recorded, and later downloads must match it"
        )
    elif digest != known:
        first = (
            ""
            if row.sha256
            else f" of the first download; if you trust it, delete {record_file(row.name)}"
        )
        raise CheckpointError(f"{source} has the SHA-256 {digest}, not {known}{first}")

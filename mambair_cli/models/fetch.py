"""From the name of a model to its file; what enters the cache and what leaves it."""

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import CallError, CheckpointError, DownloadError, did_you_mean
from ..system.files import replacing, sha256, write_atomically
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
from .catalog import Model, list_models, model_named
from .download import Progress, download
from .hub import hub_file, is_on_hub
from .recognise import check_model, describe, load_network
from .weights import bundled_folder, in_run, task_of, why_missing

log = logging.getLogger(__name__)
Tell = Callable[[str], None]

# Two copies in float64: more than any published file has.
BYTES_PER_PARAMETER = 16
# Bytes of a file for names and shapes.
OVERHEAD = 2**20


def find_checkpoint(
    name_or_file: str | Path,
    progress: Progress = lambda done, total: None,
    tell: Tell = log.warning,
) -> Path:
    """The file of a model, bundled, cached or fetched now; or the file that is named.

    The file of a model must have the SHA-256 that is known of it.

    Args:
        name_or_file: of a model, or a path.
        progress: see `pull`.
        tell: see `pull`.

    Raises:
        CallError: there is no such model or file.
        CheckpointError: the file is damaged.
        DownloadError: it cannot be fetched.
    """
    name = str(name_or_file)
    model, record = model_named(name), read_record(name)
    if model and model.file:
        return _checked(bundled_folder() / model.file, str(model.sha256), "install mambair again")
    if record and record.path:
        again = f"mambair models remove {name}, then fetch or import it again"
        return _checked(record.path, record.sha256, again)
    if model:
        return pull(model, progress, tell)
    return named_file(name)


def named_file(name: str) -> Path:
    """`name` as the path of a file; the folder of a training run stands for its weights.

    hf:OWNER/REPO[/FILE] is fetched from Hugging Face, see `hub_file`.

    Raises CallError where there is no such file and it looks like the name of a model, or as
    `hub_file`.
    """
    if is_on_hub(name):
        return hub_file(name)
    path = in_run(Path(name))
    if path.suffix or why_missing(path) != "is missing":
        return path
    raise CallError(no_model(name, "see mambair models list, or give a file"))


def no_model(name: str, otherwise: str = "see mambair models list") -> str:
    """The message that no model has this name, with what may have been meant."""
    known = [*(model.name for model in list_models()), *(record.name for record in list_records())]
    return f"no model is called {name!r}; {did_you_mean(name, known, otherwise)}"


def _checked(path: Path, digest: str, advice: str) -> Path:
    if why := why_missing(path):
        raise CheckpointError(f"{path}: the file of the weights {why}; {advice}")
    if sha256(path) != digest:
        raise CheckpointError(f"{path}: the weights are damaged; {advice}")
    return path


def known_task(name_or_file: str) -> str | None:
    """The task of a model or file that is here; None where only its scale tells."""
    model, record = model_named(name_or_file), read_record(name_or_file)
    if model:
        return model.task
    return record.task if record else task_of(named_file(name_or_file))


def pull(
    model: Model, progress: Progress = lambda done, total: None, tell: Tell = log.warning
) -> Path:
    """The file of a model, fetched into the cache unless it is here.

    What arrives must be of the model's network. Its SHA-256 must be the one in the catalog or,
    where nobody knows that, the one of the first download.

    Args:
        model: the model.
        progress: called with the bytes that have arrived and their total (None: not told).
        tell: called with what the user should know.

    Raises:
        CheckpointError: the file that is here is damaged.
        DownloadError: no address is known or has the file, or the cache cannot be written.
    """
    if model.file or cached_file(model.name):
        return find_checkpoint(model.name)
    by_hand = f"by hand: import it as {model.name} (mambair models import)"
    if not model.urls:
        raise DownloadError(f"{model.name}: no address of its file is known; {by_hand}")
    with _writing(model.name, tell):
        # Another process may have fetched it meanwhile.
        if cached_file(model.name):
            return find_checkpoint(model.name)
        failures = []
        for url in model.urls:
            try:
                path = _enter(model.name, model, _fetch(model, url, progress, tell), url, tell)
            except (CheckpointError, DownloadError) as error:
                failures.append(str(error))
                if url != model.urls[-1]:
                    tell(f"{model.name}: {error}; trying the next address")
            else:
                if failures:
                    tell(f"{model.name}: came from {url}")
                return path
    raise DownloadError(f"{model.name} cannot be fetched: {'; '.join(failures)}; {by_hand}")


def import_file(source: Path, name: str, tell: Tell = log.warning) -> Path:
    """Copy a checkpoint into the cache under a name, and return the copy.

    The name is a new one, or that of a model whose file this is.

    Raises:
        CallError: the name cannot be used, or there is no such file.
        CheckpointError: the file is no network, or not the model's.
        DownloadError: the cache cannot be written.
    """
    if not NAME.fullmatch(name):
        raise CallError(f"a model's name has small letters, digits and hyphens, not {name!r}")
    model = model_named(name)
    if model and model.file:
        raise CallError(f"{name} is a bundled model; choose another name")
    if cached_file(name):
        raise CallError(f"there is a model {name} already; first: mambair models remove {name}")
    source = in_run(source)
    if why := why_missing(source):
        raise CallError(f"{source} {why}; give a checkpoint file")
    with _writing(name, tell):
        copy = _new_file(name, source.name)
        with source.open("rb") as original, replacing(copy) as file:
            shutil.copyfileobj(original, file)
        return _enter(name, model, copy, str(source.resolve()), tell)


def remove(name: str) -> Path:
    """Delete a model's file from the cache and return where it was.

    The hash of a model of the catalog is kept, as a later download must match it. A file outside
    the cache stays there.
    Raises CallError where the model is bundled or not in the cache.
    """
    model, record = model_named(name), read_record(name)
    if model and model.file:
        raise CallError(f"{name} is bundled with mambair and cannot be removed")
    if record is None or record.path is None:
        raise CallError(f"{name} is not in the cache; see mambair models list")
    if record.path.parent == models_folder():
        record.path.unlink(missing_ok=True)
    if model:
        _write_record(replace(record, file=None))
    else:
        record_file(name).unlink()
    return record.path


def verify() -> Iterator[tuple[str, Path, str | None]]:
    """The name, the file and the problem (None: it is sound) of each bundled and cached model."""
    files = {model.name: bundled_folder() / model.file for model in list_models() if model.file}
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
    """Where a file lies until it has been checked; the suffix tells how to read it."""
    suffix = ".safetensors" if like.lower().endswith(".safetensors") else ".pth"
    return models_folder() / f".{name}.new{suffix}"


@contextmanager
def _writing(name: str, tell: Tell) -> Iterator[None]:
    """Let one process at a time bring a model into the cache.

    Raises DownloadError where the cache cannot be written.
    """
    folder = models_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f".{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            tell(f"{name}: another process is fetching it; waiting")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()
    except OSError as error:
        reason = error.strerror or str(error)
        raise DownloadError(
            f"{folder}: cannot be written: {reason}; make room, or set MAMBAIR_HOME to another"
        ) from error


def _fetch(model: Model, url: str, progress: Progress, tell: Tell) -> Path:
    """A file that has yet to be checked."""
    if found := find_in_hub(url):
        return found
    if is_offline():
        raise DownloadError(f"{url} is not here, and the network is off (HF_HUB_OFFLINE)")
    tell(f"{model.name}: fetching {url} (licence: {model.licence})")
    path = _new_file(model.name, url)
    limit = OVERHEAD + BYTES_PER_PARAMETER * model.parameters
    download(url, path, limit=limit, progress=progress)
    return path


def _enter(name: str, model: Model | None, path: Path, source: str, tell: Tell) -> Path:
    """Check a file and give it its place and record.

    One that came into the cache for this is moved there, or deleted where it does not fit.
    Raises CheckpointError where it is no network, or not the model's.
    """
    fresh = path.parent == models_folder()
    try:
        facts = describe(path)
        if model:
            check_model(model, facts, source)
            _check_hash(model, facts["sha256"], source, tell)
    except CheckpointError as error:
        if fresh:
            path.unlink()
        # What the user knows is the source.
        raise CheckpointError(str(error).replace(str(path), source)) from None
    place = path.replace(models_folder() / f"{name}{path.suffix}") if fresh else path
    _write_record(
        Record(
            name=name,
            file=place.name if fresh else str(place),
            sha256=facts["sha256"],
            source=source,
            task=model.task if model else facts["task"],
            arch=facts["arch"],
            scale=facts["scale"],
            parameters=facts["parameters"],
        )
    )
    return place


def _check_hash(model: Model, digest: str, source: str, tell: Tell) -> None:
    record = read_record(model.name)
    known = model.sha256 or (record.sha256 if record else None)
    if known is None:
        tell(
            f"{model.name}: the hash of this file is not known, so only its network was checked;"
            f" its SHA-256 {digest} is recorded, and later downloads must match it"
        )
    elif digest != known:
        of_the_first = f"of the first download; if you trust it, delete {record_file(model.name)}"
        first = "" if model.sha256 else f" {of_the_first}"
        raise CheckpointError(f"{source} has the SHA-256 {digest}, not {known}{first}")

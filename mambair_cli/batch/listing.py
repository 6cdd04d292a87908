"""Which images folders hold, of files and of URLs."""

import fnmatch
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import CallError
from ..images.io import INPUT_SUFFIXES
from ..system.urls import Place, Url, is_url, objects_below

MANIFEST = ".mambair.jsonl"
"""In an output folder: what was done there (see `manifest`)."""

MANIFESTS = ".mambair*.jsonl"
"""All of them in an output folder: that of whole runs and those of shards."""


class Found(NamedTuple):
    """An image of the inputs.

    Attributes:
        source: its path, as given, or its URL.
        place: its path below the output folder, before it is renamed.
        matches: whether a glob matches it.
    """

    source: str | Url
    place: str
    matches: bool


def images_of(
    sources: Sequence[Place],
    output: Place,
    globs: Sequence[str],
    endings: str,
    note: Callable[[str], None],
) -> list[Found]:
    """All images of the inputs, each once, in natural order."""
    found: list[Found] = []
    # What tells that an image was named twice.
    known: set[str] = set()
    several = len(sources) > 1
    for source in sources:
        name = _absolute(source)
        if not is_folder(source):
            if name not in known:
                known.add(name)
                text = source if isinstance(source, Url) else str(source)
                found.append(Found(text, source.name, True))
            continue
        if name == _absolute(output):
            raise CallError(
                f"{output}: is the folder of the inputs as well; name another for the results"
            )
        top = f"{os.path.basename(name)}/" if several else ""
        for place, origin, matches in _without_results(
            list(_images_below(source, output, globs, note)), source, endings, note
        ):
            if several:
                absolute = f"{name}/{place}"
                if absolute in known:
                    continue
                known.add(absolute)
            found.append(Found(origin, f"{top}{place}", matches))
    found.sort(key=lambda file: (natural_key(file.place), str(file.source)))
    return found


def _absolute(place: Place) -> str:
    """What is the same for all names of a file; a link is a file of its own."""
    if isinstance(place, Url):
        return place.address.rstrip("/")
    if place.is_dir():
        return os.path.realpath(place)
    return os.path.join(os.path.realpath(place.parent), place.name)


def _without_results(
    images: Iterable[tuple[str, str | Url, bool]],
    folder: Place,
    endings: str,
    note: Callable[[str], None],
) -> Iterator[tuple[str, str | Url, bool]]:
    """Images but those that an earlier run put beside their inputs."""
    ending = re.compile(f"({endings})$") if endings else None
    maybe = {}
    for image in images:
        stem, _ = os.path.splitext(image[0])
        found = ending.search(stem) if ending else None
        # Only the last part of the path counts.
        if found and "/" not in found[0]:
            maybe[stem] = stem[: found.start()]
    originals = set(maybe.values())
    there = originals and {
        stem for stem in (os.path.splitext(image[0])[0] for image in images) if stem in originals
    }
    first, count = "", 0
    for image in images:
        if there and maybe.get(os.path.splitext(image[0])[0]) in there:
            first, count = first or image[0], count + 1
        else:
            yield image
    if count:
        many = f"{count} earlier results are" if count > 1 else "an earlier result is"
        note(f"{folder}: {many} left out, such as {first}; name files to take them")


def count_passed_over(inputs: Sequence[str], output: str | None) -> int:
    """How many files in the input folders are left alone, as they are not named like images.

    Objects at URLs do not count.
    """
    sources = [Path(name) for name in inputs if name != "-" and not is_url(name)]
    out = os.path.realpath(output) if output and not is_url(output) else ""
    folders = [str(source) for source in sources if source.is_dir()]
    files = itertools.chain.from_iterable(_visible_files(folder, out) for folder in folders)
    return sum(not _is_image(path) for path in files)


def is_folder(place: Place) -> bool:
    """Whether it holds files or objects."""
    return place.is_folder if isinstance(place, Url) else place.is_dir()


def natural_key(name: str) -> str:
    """A key that sorts photo2 before photo10, and ignores case."""

    def sortable(found: re.Match[str]) -> str:
        """A number, after its length; before all other signs."""
        digits = str(int(found[0]))
        return f"\0{len(digits):04}{digits}"

    return re.sub(r"\d{1,4000}", sortable, name.casefold())


def _images_below(
    folder: Place, output: Place, globs: Sequence[str], note: Callable[[str], None]
) -> Iterator[tuple[str, str | Url, bool]]:
    """The images below `folder`: paths relative to it, where they are, whether a glob matches.

    Subfolders with the results of earlier runs are left out. Those that cannot be listed count as
    images: trying to read them tells why.
    """

    def matches(path: str) -> bool:
        pairs = itertools.product((path.rpartition("/")[2], path), globs)
        return not globs or any(fnmatch.fnmatch(text, glob) for text, glob in pairs)

    if isinstance(folder, Url):
        for url in objects_below(folder):
            path = url.below(folder)
            if _is_image(path) and _is_plain(path):
                yield path, url, matches(path)
        return
    unreadable: list[str] = []
    top = str(folder)
    out = "" if isinstance(output, Url) else os.path.realpath(output)
    for file in _visible_files(top, out, unreadable, note):
        path = file if top == "." else file[len(top.rstrip(os.sep)) + 1 :]
        path = path.replace(os.sep, "/")
        if _is_image(path):
            yield path, file, matches(path)
    yield from ((os.path.relpath(path, top), path, True) for path in unreadable)


def _is_plain(path: str) -> bool:
    """Whether nothing in the path of an object is hidden, or would lead out of a folder here."""
    parts = path.split("/")
    return all(part and part[0] != "." and os.path.basename(part) == part for part in parts)


def _visible_files(
    folder: str,
    output: str,
    unreadable: list[str] | None = None,
    tell: Callable[[str], None] = lambda message: None,
) -> Iterator[str]:
    """The files below `folder`, but for those hidden, the output folder's and earlier results.

    Subfolders that cannot be listed are added to `unreadable`.
    """

    def keep(error: OSError) -> None:
        if unreadable is not None:
            unreadable.append(str(error.filename))

    for where, folders, files in os.walk(folder, onerror=keep):
        # As Path would write it.
        here = where.removeprefix(".").removeprefix(os.sep) if folder == "." else where
        if where != folder and fnmatch.filter(files, MANIFESTS):
            tell(f"{here}: holds the results of an earlier run and is left out")
            folders.clear()
            continue
        folders[:] = [
            name
            for name in folders
            if name[0] != "." and os.path.realpath(os.path.join(here, name)) != output
        ]
        paths = (os.path.join(here, name) for name in files if name[0] != ".")
        yield from (path for path in paths if os.path.isfile(path))


def _is_image(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in INPUT_SUFFIXES

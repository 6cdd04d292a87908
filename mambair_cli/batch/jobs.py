"""Which files a call means, and where the result of each goes."""

import contextlib
import fnmatch
import itertools
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import CallError, ImageError, NoImageError
from ..images.encode import check_side, format_of
from ..images.io import INPUT_SUFFIXES, OUTPUT_SUFFIXES, check_writable

MANIFEST = ".mambair.jsonl"
"""In an output folder: what was done there (see `manifest`)."""


@dataclass(frozen=True)
class Job:
    """An image and where its result goes.

    Attributes:
        source: its file; None for stdin.
        target: the file of the result; None for stdout.
        suffix: what gives stdout its format, such as ".png".
    """

    source: Path | None
    target: Path | None
    suffix: str = ""


def find_jobs(
    inputs: Sequence[str],
    output: str | None,
    *,
    suffix: str | None = None,
    default_suffix: str = "",
    format: str | None = None,
    globs: Sequence[str] = (),
    endings: str = "",
    note: Callable[[str], None] = lambda message: None,
) -> tuple[list[Job], Path | None]:
    """The jobs in natural order, and the output folder if they go into one.

    A folder is searched with all its subfolders for images, except what is hidden and the output
    folder. Its tree is mirrored: in the output folder itself if it is the only input, else in a
    subfolder of its name. If two results would get the same name, the image of that type keeps it,
    and the other one, a.jpg, becomes a.jpg.png.

    Args:
        inputs: one file, several, folders; or "-" for stdin.
        output: a file (or "-" for stdout) for one input file. A folder for several, or if it ends
            in a slash or exists as a folder. None: beside the only input file.
        suffix: appended to the stems of the results; None: `default_suffix` beside the input, and
            nothing elsewhere.
        default_suffix: what tells a result from the input beside it.
        format: of the results, one of OUTPUT_SUFFIXES without the dot; None: the input's, or png.
        globs: patterns of names, or of paths below a folder; its files must match one of them.
        endings: a regular expression for what a run like this one appends to the stems of results.
            In folders, earlier results beside their inputs are left out.
        note: called with what the user should know, such as which earlier results are left out.

    Raises:
        CallError: an input does not exist, a folder holds no image, a result would replace an
            input, or the arguments contradict each other.
        ImageError: the result of a single file could not be written, as `check_writable` says.
    """
    if "-" in inputs or output == "-":
        return [_piped_job(inputs, output, suffix, format)], None
    if suffix and Path(suffix).name != suffix:
        raise CallError(f"`suffix` is a part of a file name, which {suffix!r} cannot be")
    sources = [Path(name) for name in inputs]
    for source in sources:
        if not source.exists():
            raise CallError(f"{source}: no such file; check the path")
    folders = [source for source in sources if source.is_dir()]
    if output is None:
        if folders:
            raise CallError(
                f"{folders[0]}: is a folder; name a folder for the results with `output`"
            )
        if len(sources) > 1:
            raise CallError("several inputs need a folder for the results; name one with `output`")
        extension = output_suffix(sources[0], format)
        ending = default_suffix if suffix is None else suffix
        job = Job(sources[0], sources[0].with_name(f"{sources[0].stem}{ending}{extension}"))
    elif folders or len(sources) > 1 or output.endswith(("/", os.sep)) or Path(output).is_dir():
        _check_folder_name(output)
        found = _images_of(sources, Path(output), globs, endings, note)
        jobs = _folder_jobs(found, Path(output), suffix or "", format)
        if not jobs:
            what = " that matches `glob`" if globs else ""
            raise NoImageError(f"{', '.join(map(str, sources))}: no image found{what}")
        _keep_inputs(jobs)
        return jobs, Path(output)
    else:
        _whole_name(output, suffix, format)
        if not Path(output).suffix:
            raise CallError(
                f"{output}: unknown suffix ''; add one such as .png, or a slash if it is a folder"
            )
        job = Job(sources[0], Path(output))
    _keep_inputs([job])
    assert job.target
    check_target(job.target)
    return [job], None


def count_passed_over(inputs: Sequence[str], output: str | None) -> int:
    """How many files in the input folders are left alone, as they are not named like images."""
    sources = [Path(name) for name in inputs if name != "-"]
    out = Path(output).resolve() if output else None
    folders = [source for source in sources if source.is_dir()]
    files = itertools.chain.from_iterable(_visible_files(folder, out) for folder in folders)
    return sum(not _is_image(path) for path in files)


def output_suffix(source: Path, format: str | None) -> str:
    """The suffix of the result of `source`, with its dot.

    Raises CallError if the format cannot be written.
    """
    if format is None:
        return source.suffix if source.suffix.lower() in OUTPUT_SUFFIXES else ".png"
    suffix = f".{format.lower().removeprefix('.')}"
    if suffix not in OUTPUT_SUFFIXES:
        known = " ".join(OUTPUT_SUFFIXES).replace(".", "")
        raise CallError(f"`format` cannot be {format!r}; use one of {known}")
    return suffix


def natural_key(name: str) -> list[int | str]:
    """A key that sorts photo2 before photo10, and ignores case."""
    return [int(part) if part.isdecimal() else part.casefold() for part in re.split(r"(\d+)", name)]


def _piped_job(
    inputs: Sequence[str], output: str | None, suffix: str | None, format: str | None
) -> Job:
    if len(inputs) > 1:
        raise CallError("- (stdin or stdout) works with one input only")
    if output is None:
        raise CallError("the result of - needs a place: name a file with `output`, or - for stdout")
    source = None if inputs[0] == "-" else Path(inputs[0])
    if source and not source.exists():
        raise CallError(f"{source}: no such file; check the path")
    if source and source.is_dir():
        raise CallError(f"{source}: is a folder; name a folder for the results with `output`")
    if output != "-":
        _whole_name(output, suffix, format)
        check_target(Path(output))
        return Job(source, Path(output))
    if sys.stdout and sys.stdout.isatty():
        raise CallError(
            "an image cannot be shown in a terminal; redirect stdout or name a file with `output`"
        )
    return Job(source, None, output_suffix(source or Path(), format))


def _whole_name(output: str, suffix: str | None, format: str | None) -> None:
    if suffix is not None or format is not None:
        raise CallError(
            f"{output}: is the whole name of the result; leave out `suffix` and `format`"
        )


def _check_folder_name(output: str) -> None:
    """Raise CallError for what is a file, or looks like one."""
    path = Path(output)
    if path.exists() and not path.is_dir():
        raise CallError(f"{path}: is a file; name a folder for the results")
    looks_like_file = path.suffix.lower() in OUTPUT_SUFFIXES and not output.endswith(("/", os.sep))
    if looks_like_file and not path.exists():
        raise CallError(
            f"{output}: looks like a file, and the results need a folder; add a slash if it is one"
        )


def check_target(target: Path, size: tuple[int, int] | None = None) -> None:
    """As `check_writable`, but the folders of `target` may be missing."""
    if target.parent.is_dir():
        check_writable(target, size)
        return
    nearest = next(folder for folder in target.parents if folder.exists())
    if not nearest.is_dir():
        raise CallError(f"{target}: {nearest} is a file, not a folder")
    try:
        check_side(format_of(target.suffix), size)
    except CallError as error:
        raise CallError(f"{target}: {error}") from None
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ImageError(f"{target}: no permission to write into {nearest}; name another folder")


@dataclass(frozen=True)
class _Found:
    """An image of the inputs.

    Attributes:
        source: its path, as given.
        place: its path below the output folder, before it is renamed.
        matches: whether a glob matches it.
    """

    source: Path
    place: Path
    matches: bool


def _images_of(
    sources: Sequence[Path],
    output: Path,
    globs: Sequence[str],
    endings: str,
    note: Callable[[str], None],
) -> list[_Found]:
    """All images of the inputs, each once, in natural order."""
    found: dict[Path, _Found] = {}
    for source in sources:
        if not source.is_dir():
            absolute = source.parent.resolve() / source.name
            found.setdefault(absolute, _Found(source, Path(source.name), True))
            continue
        absolute = source.resolve()
        if absolute == output.resolve():
            raise CallError(
                f"{output}: is the folder of the inputs as well; name another for the results"
            )
        top = Path() if len(sources) == 1 else Path(absolute.name)
        images = dict(_images_below(source, output.resolve(), globs, note))
        for relative in _without_results(images, source, endings, note):
            image = _Found(source / relative, top / relative, images[relative])
            found.setdefault(absolute / relative, image)
    return sorted(found.values(), key=lambda file: (natural_key(str(file.place)), str(file.source)))


def _without_results(
    images: Iterable[Path], folder: Path, endings: str, note: Callable[[str], None]
) -> list[Path]:
    """Images but those that an earlier run put beside their inputs."""
    stems = {path.with_suffix("") for path in images}
    kept: list[Path] = []
    results: list[Path] = []
    for path in images:
        ending = re.search(f"({endings})$", path.stem) if endings else None
        original = path.with_name(path.stem[: ending.start()]) if ending else None
        (results if original in stems else kept).append(path)
    if results:
        count = (
            f"{len(results)} earlier results are" if len(results) > 1 else "an earlier result is"
        )
        note(f"{folder}: {count} left out, such as {results[0]}; name files to take them")
    return kept


def _folder_jobs(
    files: Sequence[_Found], output: Path, suffix: str, format: str | None
) -> list[Job]:
    # Names are given to all files, so that they are the same with any globs.
    names = _result_names([file.place for file in files], suffix, format)
    pairs = zip(files, names, strict=True)
    return [Job(file.source, output / name) for file, name in pairs if file.matches]


def _result_names(files: Sequence[Path], suffix: str, format: str | None) -> list[Path]:
    """A name for each result that no other has, also if the file system ignores case."""
    plain = [file.parent / f"{file.stem}{suffix}{output_suffix(file, format)}" for file in files]
    wanted = Counter(_folded(name) for name in plain)
    keeps_type = [
        _folded(file.suffix) == _folded(name.suffix)
        for file, name in zip(files, plain, strict=True)
    ]
    names, taken = list(plain), set[str]()
    for i in sorted(range(len(files)), key=lambda i: not keeps_type[i]):
        may_be_plain = keeps_type[i] or wanted[_folded(plain[i])] == 1
        candidates = _names_of_result(files[i], plain[i], suffix, may_be_plain)
        names[i] = next(name for name in candidates if _folded(name) not in taken)
        taken.add(_folded(names[i]))
    return names


def _names_of_result(file: Path, plain: Path, suffix: str, may_be_plain: bool) -> Iterator[Path]:
    """Names for the result of a file, best first: a.png, a.jpg.png, a.jpg-2.png, ..."""
    if may_be_plain:
        yield plain
    yield file.parent / f"{file.name}{suffix}{plain.suffix}"
    for number in itertools.count(2):
        yield file.parent / f"{file.name}-{number}{suffix}{plain.suffix}"


def _folded(name: Path | str) -> str:
    """A name as file systems compare it that ignore case."""
    return str(name).casefold()


def _images_below(
    folder: Path, output: Path, globs: Sequence[str], note: Callable[[str], None]
) -> Iterator[tuple[Path, bool]]:
    """The images below `folder`, as paths relative to it, and whether a glob matches each.

    Subfolders with the results of earlier runs are left out. Those that cannot be listed count as
    images: trying to read them tells why.
    """
    unreadable: list[Path] = []
    for file in _visible_files(folder, output, unreadable, note):
        path = file.relative_to(folder)
        if _is_image(path):
            pairs = itertools.product((path.name, path.as_posix()), globs)
            yield path, not globs or any(fnmatch.fnmatch(text, glob) for text, glob in pairs)
    yield from ((path.relative_to(folder), True) for path in unreadable)


def _visible_files(
    folder: Path,
    output: Path | None,
    unreadable: list[Path] | None = None,
    tell: Callable[[str], None] = lambda message: None,
) -> Iterator[Path]:
    """The files below `folder`, but for those hidden, the output folder's and earlier results.

    Subfolders that cannot be listed are added to `unreadable`.
    """

    def keep(error: OSError) -> None:
        if unreadable is not None:
            unreadable.append(Path(error.filename))

    for where, folders, files in os.walk(folder, onerror=keep):
        here = Path(where)
        visible = [name for name in folders if name[0] != "."]
        others = [name for name in visible if (here / name).resolve() != output]
        results = [name for name in others if (here / name / MANIFEST).exists()]
        for name in results:
            tell(f"{here / name}: holds the results of an earlier run and is left out")
        folders[:] = [name for name in others if name not in results]
        yield from (here / name for name in files if name[0] != "." and (here / name).is_file())


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in INPUT_SUFFIXES


def _keep_inputs(jobs: Sequence[Job]) -> None:
    """Raise CallError if a result would replace an input, also through a link."""

    def identity(path: Path | None) -> tuple[int, int] | None:
        with contextlib.suppress(OSError):
            if path:
                status = path.stat()
                return status.st_dev, status.st_ino
        return None

    inputs = {identity(job.source) for job in jobs} - {None}
    for job in jobs:
        if identity(job.target) in inputs:
            raise CallError(
                f"{job.target}: is the input itself; name another `output` or give a `suffix`"
            )

"""Which files a call means, and where the result of each goes."""

import contextlib
import itertools
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..errors import CallError, ImageError, NoImageError
from ..images.encode import check_side, format_of
from ..images.io import OUTPUT_SUFFIXES, check_writable
from ..system.urls import Place, Url, check_installed, is_url, locate
from .listing import Found, images_of, is_folder


class Job:
    """An image and where its result goes.

    Args:
        source: its file or URL; None for stdin.
        target: the file or URL of the result; None for stdout.
        suffix: what gives stdout its format, such as ".png".
    """

    # Paths are kept as text, which takes a quarter of the memory: there may be a million.
    __slots__ = ("_source", "_target", "suffix")

    def __init__(self, source: Place | str | None, target: Place | str | None, suffix: str = ""):
        self._source = str(source) if isinstance(source, Path) else source
        self._target = str(target) if isinstance(target, Path) else target
        self.suffix = suffix

    @property
    def source(self) -> Place | None:
        """The file or URL of the image; None for stdin."""
        return Path(self._source) if isinstance(self._source, str) else self._source

    @property
    def target(self) -> Place | None:
        """The file or URL of the result; None for stdout."""
        return Path(self._target) if isinstance(self._target, str) else self._target

    @property
    def names(self) -> tuple[str, str]:
        """Where the image comes from and goes to, for people; - for a pipe."""
        source, target = self._source, self._target
        return "-" if source is None else str(source), "-" if target is None else str(target)

    def name_in(self, folder: Place) -> str:
        """The path of the result within the output folder, with slashes."""
        target = self.target
        if isinstance(target, Url) and isinstance(folder, Url):
            return target.below(folder)
        assert isinstance(target, Path)
        assert isinstance(folder, Path)
        return target.relative_to(folder).as_posix()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and self._parts() == other._parts()

    def __hash__(self) -> int:
        return hash(self._parts())

    def __repr__(self) -> str:
        return "Job({!r}, {!r}, {!r})".format(*self._parts())

    def _parts(self) -> tuple[object, ...]:
        return self._source, self._target, self.suffix


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
) -> tuple[list[Job], Place | None]:
    """The jobs in natural order, and the output folder if they go into one.

    A folder is searched with all its subfolders for images, except what is hidden and the output
    folder. Its tree is mirrored: in the output folder itself if it is the only input, else in a
    subfolder of its name. If two results would get the same name, the image of that type keeps it,
    and the other one, a.jpg, becomes a.jpg.png.

    Args:
        inputs: one file, several, folders, URLs of these; or "-" for stdin.
        output: a file (or "-" for stdout) for one input file. A folder for several, or if it ends
            in a slash or exists as a folder. None: beside the only input file. Also a URL.
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
    sources = [_located(name) for name in inputs]
    folders = [source for source in sources if is_folder(source)]
    if output is None:
        job = _job_beside(sources, folders, default_suffix if suffix is None else suffix, format)
    elif folders or len(sources) > 1 or _means_folder(output):
        into = _output_folder(output)
        found = images_of(sources, into, globs, endings, note)
        jobs = _folder_jobs(found, into, suffix or "", format)
        if not jobs:
            what = " that matches `glob`" if globs else ""
            raise NoImageError(f"{', '.join(map(str, sources))}: no image found{what}")
        _keep_inputs(jobs)
        return jobs, into
    else:
        _whole_name(output, suffix, format)
        target = Url(output) if is_url(output) else Path(output)
        if not target.suffix:
            raise CallError(
                f"{target}: unknown suffix ''; add one such as .png, or a slash if it is a folder"
            )
        job = Job(sources[0], target)
    _keep_inputs([job])
    assert job.target
    check_target(job.target)
    return [job], None


def _located(name: str) -> Place:
    """What an input means. Raises CallError if there is no such thing."""
    if is_url(name):
        return locate(name)
    source = Path(name)
    if not source.exists():
        raise CallError(f"{source}: no such file; check the path")
    return source


def _means_folder(output: str) -> bool:
    if is_url(output):
        return output.endswith("/")
    return output.endswith(("/", os.sep)) or Path(output).is_dir()


def _job_beside(
    sources: Sequence[Place], folders: Sequence[Place], ending: str, format: str | None
) -> Job:
    """The job of a single file whose result lies beside it."""
    if folders:
        raise CallError(f"{folders[0]}: is a folder; name a folder for the results with `output`")
    if len(sources) > 1:
        raise CallError("several inputs need a folder for the results; name one with `output`")
    (source,) = sources
    if isinstance(source, Url):
        raise CallError(f"{source}: the result needs a place; name a file with `output`")
    extension = output_suffix(source.suffix, format)
    return Job(source, source.with_name(f"{source.stem}{ending}{extension}"))


def _output_folder(output: str) -> Place:
    """The folder for results. Raises CallError for what is a file, or looks like one."""
    if is_url(output):
        into = Url(output, is_folder=True)
        check_target(into)
        return into
    _check_folder_name(output)
    return Path(output)


def output_suffix(suffix: str, format: str | None) -> str:
    """The suffix of the result of an input with this suffix, both with their dots.

    Raises CallError if the format cannot be written.
    """
    if format is None:
        return suffix if suffix.lower() in OUTPUT_SUFFIXES else ".png"
    suffix = f".{format.lower().removeprefix('.')}"
    if suffix not in OUTPUT_SUFFIXES:
        known = " ".join(OUTPUT_SUFFIXES).replace(".", "")
        raise CallError(f"`format` cannot be {format!r}; use one of {known}")
    return suffix


def _piped_job(
    inputs: Sequence[str], output: str | None, suffix: str | None, format: str | None
) -> Job:
    if len(inputs) > 1:
        raise CallError("- (stdin or stdout) works with one input only")
    if output is None:
        raise CallError("the result of - needs a place: name a file with `output`, or - for stdout")
    source = None if inputs[0] == "-" else _located(inputs[0])
    if source and is_folder(source):
        raise CallError(f"{source}: is a folder; name a folder for the results with `output`")
    if output != "-":
        _whole_name(output, suffix, format)
        target = Url(output) if is_url(output) else Path(output)
        check_target(target)
        return Job(source, target)
    if sys.stdout and sys.stdout.isatty():
        raise CallError(
            "an image cannot be shown in a terminal; redirect stdout or name a file with `output`"
        )
    return Job(source, None, output_suffix(source.suffix if source else "", format))


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


def check_target(target: Place, size: tuple[int, int] | None = None) -> None:
    """As `check_writable`, but the folders of `target` may be missing. Of a URL, whether it can be
    written at all.
    """
    if isinstance(target, Url):
        if target.is_web:
            raise CallError(f"{target}: nothing can be written to a web server; name a bucket")
        check_installed(target)
        if not target.is_folder:
            check_side(format_of(target.suffix), size)
        return
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


def _folder_jobs(
    files: Sequence[Found], output: Place, suffix: str, format: str | None
) -> list[Job]:
    # Names are given to all files, so that they are the same with any globs.
    names = _result_names([file.place for file in files], suffix, format)
    pairs = zip(files, names, strict=True)
    if isinstance(output, Url):
        return [Job(file.source, output / name) for file, name in pairs if file.matches]
    top = str(output)
    return [
        Job(file.source, os.path.join(top, name) if top != "." else name)
        for file, name in pairs
        if file.matches
    ]


def _result_names(files: Sequence[str], suffix: str, format: str | None) -> list[str]:
    """A name for each result that no other has, also if the file system ignores case."""
    names = list(files)
    # Results meet only within a folder; so there is never much in memory.
    together: dict[str, list[int]] = {}
    for i, file in enumerate(files):
        together.setdefault(_folded(os.path.dirname(file)), []).append(i)
    for places in together.values():
        for i, name in zip(
            places, _names_in_folder([files[i] for i in places], suffix, format), strict=True
        ):
            names[i] = name
    return names


def _names_in_folder(files: Sequence[str], suffix: str, format: str | None) -> list[str]:
    """As `_result_names`, of the files of one folder."""
    parts = [os.path.splitext(file) for file in files]
    plain = [f"{stem}{suffix}{output_suffix(end, format)}" for stem, end in parts]
    wanted = Counter(_folded(name) for name in plain)
    keeps_type = [
        _folded(end) == _folded(os.path.splitext(name)[1])
        for (_, end), name in zip(parts, plain, strict=True)
    ]
    names, taken = list(plain), set[str]()
    for i in sorted(range(len(files)), key=lambda i: not keeps_type[i]):
        may_be_plain = keeps_type[i] or wanted[_folded(plain[i])] == 1
        candidates = _names_of_result(files[i], plain[i], suffix, may_be_plain)
        names[i] = next(name for name in candidates if _folded(name) not in taken)
        taken.add(_folded(names[i]))
    return names


def _names_of_result(file: str, plain: str, suffix: str, may_be_plain: bool) -> Iterator[str]:
    """Names for the result of a file, best first: a.png, a.jpg.png, a.jpg-2.png, ..."""
    if may_be_plain:
        yield plain
    extension = os.path.splitext(plain)[1]
    yield f"{file}{suffix}{extension}"
    for number in itertools.count(2):
        yield f"{file}-{number}{suffix}{extension}"


def _folded(name: str) -> str:
    """A name as file systems compare it that ignore case."""
    return name.casefold()


def _keep_inputs(jobs: Sequence[Job]) -> None:
    """Raise CallError if a result would replace an input, also through a link."""

    def identity(place: Place | None) -> object:
        if isinstance(place, Url):
            return place.address
        with contextlib.suppress(OSError):
            if place:
                status = place.stat()
                # One number takes less memory than two.
                return status.st_dev << 64 | status.st_ino
        return None

    inputs = {identity(job.source) for job in jobs} - {None}
    for job in jobs:
        if identity(job.target) in inputs:
            raise CallError(
                f"{job.target}: is the input itself; name another `output` or give a `suffix`"
            )

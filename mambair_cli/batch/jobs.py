"""Which files a call means, and where the result of each goes."""

import contextlib
import fnmatch
import itertools
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import CallError
from ..images.io import OUTPUT_SUFFIXES, check_writable

INPUT_SUFFIXES = {
    *OUTPUT_SUFFIXES,
    *(
        ".apng",
        ".avif",
        ".gif",
        ".heic",
        ".heif",
        ".j2k",
        ".jfif",
        ".jp2",
        ".jpe",
        ".pbm",
        ".pnm",
        ".psd",
        ".tga",
    ),
}
"""What counts as an image in a folder, in lower case; a file that is named itself may have any suffix."""


@dataclass(frozen=True)
class Job:
    """An image and where its result goes.

    source: None for stdin. target: None for stdout, which gets the format of `suffix` (such as ".png").
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
) -> tuple[list[Job], Path | None]:
    """The jobs in natural order, and the output folder, where they go into one.

    A folder is searched recursively for images, except what is hidden and the output folder, and its tree is
    mirrored: right in the output folder where it is the only input, else in a subfolder of its name.
    Of results that would get the same name, that of an image of this type gets it; a.jpg becomes a.jpg.png.

    Args:
        inputs: one file, several, folders; or "-" for stdin.
        output: a file (or "-" for stdout) where there is one file; else, or where it ends in a slash or exists
            as a folder, a folder. None is for one file: beside it.
        suffix: appended to the stems of the results; None is `default_suffix` beside the input, else nothing.
        default_suffix: what tells a result from the input beside it.
        format: of the results, one of OUTPUT_SUFFIXES without the dot; by default the input's, or png.
        globs: patterns of names, or of paths below the folder, one of which the files in folders must match.

    Raises CallError (no such input, no image, an output that is an input, what contradicts itself) and, for one
    file, what `check_writable` raises.
    """
    if "-" in inputs or output == "-":
        return [_piped_job(inputs, output, suffix, format)], None
    if suffix and Path(suffix).name != suffix:
        raise CallError(f"--suffix is a part of a name, which {suffix!r} cannot be")
    sources = [Path(name) for name in inputs]
    for source in sources:
        if not source.exists():
            raise CallError(f"{source}: no such file; check the path")
    folders = [source for source in sources if source.is_dir()]
    if output is None:
        if folders:
            raise CallError(f"{folders[0]}: is a folder; give -o FOLDER for the results")
        if len(sources) > 1:
            raise CallError("several inputs need -o FOLDER for the results")
        extension = output_suffix(sources[0], format)
        ending = default_suffix if suffix is None else suffix
        job = Job(sources[0], sources[0].with_name(f"{sources[0].stem}{ending}{extension}"))
    elif folders or len(sources) > 1 or output.endswith(("/", os.sep)) or Path(output).is_dir():
        jobs = _folder_jobs(sources, Path(output), suffix or "", format, globs)
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
    check_writable(job.target)
    return [job], None


def output_suffix(source: Path, format: str | None) -> str:
    """The suffix of the result of `source`, with its dot. Raises CallError for a format that cannot be written."""
    if format is None:
        return source.suffix if source.suffix.lower() in OUTPUT_SUFFIXES else ".png"
    suffix = f".{format.lower().removeprefix('.')}"
    if suffix not in OUTPUT_SUFFIXES:
        known = " ".join(OUTPUT_SUFFIXES).replace(".", "")
        raise CallError(f"--format cannot be {format!r}; use one of {known}")
    return suffix


def natural_key(name: str) -> list[int | str]:
    """Sorts photo2 before photo10, and capitals with small letters."""
    return [int(part) if part.isdecimal() else part.casefold() for part in re.split(r"(\d+)", name)]


def _piped_job(
    inputs: Sequence[str], output: str | None, suffix: str | None, format: str | None
) -> Job:
    if len(inputs) > 1:
        raise CallError("- (stdin or stdout) goes with one input only")
    if output is None:
        raise CallError("where does the result of - go? give -o FILE, or -o - for stdout")
    source = None if inputs[0] == "-" else Path(inputs[0])
    if source and not source.exists():
        raise CallError(f"{source}: no such file; check the path")
    if source and source.is_dir():
        raise CallError(f"{source}: is a folder; give -o FOLDER for the results")
    if output != "-":
        _whole_name(output, suffix, format)
        check_writable(Path(output))
        return Job(source, Path(output))
    if sys.stdout.isatty():
        raise CallError("an image does not go to a terminal; redirect stdout, or give -o FILE")
    return Job(source, None, output_suffix(source or Path(), format))


def _whole_name(output: str, suffix: str | None, format: str | None) -> None:
    if suffix is not None or format is not None:
        raise CallError(
            f"{output}: is the whole name of the result; leave out --suffix and --format"
        )


def _folder_jobs(
    sources: Sequence[Path], output: Path, suffix: str, format: str | None, globs: Sequence[str]
) -> list[Job]:
    if output.exists() and not output.is_dir():
        raise CallError(f"{output}: is a file; name a folder for the results")
    found: dict[
        Path, tuple[Path, Path, bool]
    ] = {}  # by the absolute path: as given, in the output folder, matches
    for source in sources:
        if not source.is_dir():
            found.setdefault(
                source.parent.resolve() / source.name, (source, Path(source.name), True)
            )
            continue
        absolute = source.resolve()
        if absolute == output.resolve():
            raise CallError(
                f"{output}: is the folder of the inputs as well; name another for the results"
            )
        top = Path() if len(sources) == 1 else Path(absolute.name)
        for relative, matches in _images_below(source, output.resolve(), globs):
            found.setdefault(absolute / relative, (source / relative, top / relative, matches))
    files = sorted(found.values(), key=lambda file: (natural_key(str(file[1])), str(file[0])))
    names = _result_names(
        [relative for _, relative, _ in files], suffix, format
    )  # the same with any globs
    jobs = [
        Job(source, output / name)
        for (source, _, matches), name in zip(files, names, strict=True)
        if matches
    ]
    if not jobs:
        what = " that matches --glob" if globs else ""
        raise CallError(f"{', '.join(map(str, sources))}: there is no image{what}")
    return jobs


def _result_names(files: Sequence[Path], suffix: str, format: str | None) -> list[Path]:
    """A name for each result that no other has, also where the file system ignores the case."""
    plain = [file.parent / f"{file.stem}{suffix}{output_suffix(file, format)}" for file in files]
    wanted = Counter(str(name).casefold() for name in plain)
    names, taken = list(plain), set[str]()
    keeps_type = [
        file.suffix.lower() == name.suffix.lower() for file, name in zip(files, plain, strict=True)
    ]
    for i in sorted(range(len(files)), key=lambda i: not keeps_type[i]):
        first = [plain[i]] if keeps_type[i] or wanted[str(plain[i]).casefold()] == 1 else []
        numbers = itertools.chain([""], (f"-{n}" for n in itertools.count(2)))
        others = (files[i].parent / f"{files[i].name}{n}{suffix}{plain[i].suffix}" for n in numbers)
        names[i] = next(
            name for name in itertools.chain(first, others) if str(name).casefold() not in taken
        )
        taken.add(str(names[i]).casefold())
    return names


def _images_below(folder: Path, output: Path, globs: Sequence[str]) -> Iterator[tuple[Path, bool]]:
    """Paths below `folder` of its images, and whether a glob matches them.

    Also paths of subfolders that cannot be listed: trying to read these as images tells why.
    """
    unreadable: list[Path] = []
    for where, folders, files in os.walk(
        folder, onerror=lambda error: unreadable.append(Path(error.filename))
    ):
        here = Path(where)
        folders[:] = [
            name for name in folders if name[0] != "." and (here / name).resolve() != output
        ]
        for name in files:
            path = (here / name).relative_to(folder)
            if name[0] != "." and path.suffix.lower() in INPUT_SUFFIXES and (here / name).is_file():
                texts = name, path.as_posix()
                yield (
                    path,
                    not globs
                    or any(fnmatch.fnmatch(text, glob) for text in texts for glob in globs),
                )
    yield from ((path.relative_to(folder), True) for path in unreadable)


def _keep_inputs(jobs: Sequence[Job]) -> None:
    """Raise CallError where a result would replace an input, also through a link."""

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
                f"{job.target}: is the input itself; name another output with -o, or give --suffix"
            )

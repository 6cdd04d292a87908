"""Which files of a folder are truths and which are their inputs, in the usual layouts."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import CallError
from ...images.folders import Pixels, list_images, read_rgb
from ...images.metrics import SSIM_WINDOW
from ...images.resize import modcrop
from .protocols import Protocol
from .sets import hash_of

Array = NDArray[Any]

TRUTH = {"hr", "hrbi", "gt", "target", "targets", "groundtruth", "clean", "norain", "mean"}
INPUT = {"lr", "lrbi", "lq", "input", "inputs", "noisy", "rain", "rainy"}
# Such as baby_HR_x2, babyx2, baby_LRBI_x2, img_001_SRF_2_LR, chair_11_mean, norain-001.
STEM = re.compile(
    r"(?:(?P<rain>rain|norain)[-_])?(?P<key>.+?)(?:_SRF_(?P<srf>\d))?"
    r"(?:_(?P<role>HR|HRBI|GT|mean|target|LR|LRBI|LQ|real|noisy|input))?(?:_?x(?P<scale>\d))?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Pair:
    """A truth and, where files give it, its input."""

    name: str
    truth: Path
    input: Path | None = None


@dataclass(frozen=True)
class _File:
    """What the name of a file says.

    Args:
        path: of the file.
        key: what a truth and its inputs share.
        is_input: whether it is an input.
        scale: that it belongs to; None: to any.
        sure: not an input by the end of its own name alone, which may be a photographer's.
    """

    path: Path
    key: str
    is_input: bool = False
    scale: int | None = None
    sure: bool = True


def find_pairs(folder: Path, protocol: Protocol) -> list[Pair]:
    """The truths below a folder, sorted by name, with their inputs where the protocol reads any.

    Truths and inputs are told apart by their folders (HR, GT, target; LR, input, noisy ...; X4) or
    by the ends of their names (_HR, x4, _LRBI_x4, _SRF_4_LR ...), and belong together by what
    remains of the names. Files of other scales are passed over. Where there are no truths, or none
    for what only its name makes an input, these are truths.

    Raises CallError where there is no image, a truth lacks its input or the other way round, or two
    files stand for the same.
    """
    files = [_parse(path, path.relative_to(folder)) for path in list_images(folder)]
    known = {file.key for file in files if not file.is_input}
    files = [
        file if file.sure or file.key in known else _File(file.path, file.path.stem)
        for file in files
    ]
    if all(file.is_input for file in files):
        if protocol.make is None:
            raise CallError(
                f"{folder} holds inputs without truths; those are expected in a folder HR, GT or"
                " target"
            )
        files = [_File(file.path, file.path.stem) for file in files]
    fitting = [file for file in files if file.scale in (None, protocol.scale)]
    seen = [file for file in fitting if file.is_input and protocol.reads_inputs]
    truths = _by_key([file for file in fitting if not file.is_input], folder, paired=bool(seen))
    inputs = _by_key(seen, folder, paired=True)
    if not inputs and protocol.make is None:
        raise CallError(
            f"{folder} holds no inputs; they are expected in a folder such as input, named as the"
            " truths"
        )
    if not truths:
        raise CallError(f"{folder} holds no truths for {protocol.setting}")
    if inputs and inputs.keys() != truths.keys():
        lonely = [path for key, path in truths.items() if key not in inputs]
        lonely += [path for key, path in inputs.items() if key not in truths]
        alone = [str(path.relative_to(folder)) for path in sorted(lonely)]
        more = f" and {len(alone) - 3} more" if len(alone) > 3 else ""
        raise CallError(
            f"{folder}: without a partner: {', '.join(alone[:3])}{more}; add or remove them"
        )
    return [Pair(key, path, inputs.get(key)) for key, path in sorted(truths.items())]


def _parse(path: Path, relative: Path) -> _File:
    by_folder, scale = False, None
    for part in relative.parts[:-1]:
        tokens = re.split(r"[^a-z0-9]+", part.lower())
        if any(token in TRUTH or re.fullmatch(r"gtmod\d+", token) for token in tokens):
            by_folder = False
        elif any(token in INPUT or token.startswith("lrbic") for token in tokens):
            by_folder = True
        if found := re.search(r"(?:x|srf_)([2-8])$", part.lower()):
            scale = int(found[1])
    match = STEM.fullmatch(path.stem)
    # The key takes what nothing else does.
    assert match
    role = (match["role"] or match["rain"] or ("lr" if match["scale"] else "")).lower()
    is_input = role not in TRUTH if role else by_folder
    number = match["scale"] or match["srf"]
    return _File(
        path,
        match["key"],
        is_input=is_input,
        scale=int(number) if number else scale,
        sure=by_folder or not is_input,
    )


def _by_key(files: Sequence[_File], folder: Path, *, paired: bool) -> dict[str, Path]:
    """Paths by key; where keys repeat, by paths below `folder`, if need be with their suffixes.

    Raises CallError where keys repeat that have to be paired.
    """
    keys = {file.key: file.path for file in files}
    if len(keys) < len(files) and paired:
        twice = next(file for file in files if file.path != keys[file.key])
        both = f"{twice.path.relative_to(folder)} and {keys[twice.key].relative_to(folder)}"
        raise CallError(
            f"{folder}: {both} stand for the same image; remove one, or name the folder of one kind"
        )
    if len(keys) < len(files):
        keys = {
            (file.path.parent.relative_to(folder) / file.key).as_posix(): file.path
            for file in files
        }
    if len(keys) < len(files):
        keys = {file.path.relative_to(folder).as_posix(): file.path for file in files}
    return keys


@dataclass(frozen=True)
class Sample:
    """A truth (uint8) and its input (uint8, or float32 beyond [0, 1]), ready to be measured.

    Args:
        name: of the image.
        truth: H x W x 3, or H x W where gray is compared.
        input: what a network sees.
        pixels: `hash_of` the truth's file.
        digest: of truth and input as they are here.
    """

    name: str
    truth: Pixels
    input: Array
    pixels: str
    digest: str


def load_sample(pair: Pair, protocol: Protocol) -> Sample:
    """Read a truth and read or make its input.

    Raises:
        ImageError: a file cannot be read. CallError: truth and input do not fit together, or are
        too small to be measured.
    """
    whole = read_rgb(pair.truth)
    truth = modcrop(protocol.prepare(whole), protocol.scale)
    least = SSIM_WINDOW + 2 * protocol.border
    height, width = truth.shape[:2]
    if min(height, width) < least:
        raise CallError(
            f"{pair.truth} has {width}x{height} pixels: too small, as SSIM needs {SSIM_WINDOW}"
            f" within a border of {protocol.border}; leave it out"
        )
    if pair.input is None:
        assert protocol.make
        image = protocol.make(truth)
    else:
        image = protocol.prepare(read_rgb(pair.input))
        expected = (height // protocol.scale, width // protocol.scale)
        if image.shape[:2] != expected:
            at = f" at x{protocol.scale}" if protocol.scale > 1 else ""
            raise CallError(
                f"{pair.input} has {image.shape[1]}x{image.shape[0]} pixels, but"
                f" {expected[1]}x{expected[0]} belong to {pair.truth} of"
                f" {whole.shape[1]}x{whole.shape[0]}{at}; replace or remove both"
            )
    shapes = str((truth.shape, image.shape, image.dtype)).encode()
    digest = hashlib.sha256(shapes + truth.tobytes() + image.tobytes()).hexdigest()
    truth = np.ascontiguousarray(truth)
    return Sample(pair.name, truth, image, hash_of(whole), digest)

"""One page that shows pictures before and after, under a divider that is dragged."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..errors import CallError
from ..images.image import Image
from ..images.io import encode_image, read_image
from ..images.samples import to_uint8
from ..system.files import write_atomically
from .template import HERE, data_address, fill

PIXELS = 40_000_000
"""Of all images of a page together; more are shown smaller."""

LOSSLESS = 12_000_000
"""Pixels of a page up to which its images are stored without loss."""

QUALITY = 95
LONGEST = 16_383
"""Pixels a side of a WebP image."""

THUMBNAIL = 160
"""Pixels a side of the pictures from which one chooses."""


@dataclass(frozen=True)
class Scene:
    """A picture before, and what became of it.

    Attributes:
        before: the file.
        results: one file or several.
    """

    before: Path
    results: tuple[Path, ...]


def match_files(before: Path, results: Sequence[Path]) -> list[Scene]:
    """Pair files, or the images of folders, by name: a result has the image's, or NAME_x4 ...

    Raises CallError where something does not exist, or no image has a result.
    """
    for path in (before, *results):
        if not path.exists():
            raise CallError(f"{path}: no such file; check the path")
    kinds = {path.is_dir() for path in (before, *results)}
    if len(kinds) > 1:
        raise CallError("compare a file with files, or a folder with folders")
    if not before.is_dir():
        return [Scene(before, tuple(results))]
    from ..images.folders import list_images

    found = [_by_stem(folder) for folder in results]
    scenes = []
    for image in list_images(before):
        place = image.relative_to(before)
        names = (place.as_posix(), place.with_suffix("").as_posix())
        fitting = [next((files[n] for n in names if n in files), None) for files in found]
        if any(fitting):
            scenes.append(Scene(image, tuple(filter(None, fitting))))
    if not scenes:
        places = ", ".join(map(str, results))
        raise CallError(f"{places}: no image is called like one in {before}")
    return scenes


def _by_stem(folder: Path) -> dict[str, Path]:
    """List the images of a folder by the beginning of their names: a for a.jpg and for a_x4.png."""
    from ..images.folders import list_images

    files: dict[str, Path] = {}
    for path in list_images(folder):
        stem = path.relative_to(folder).with_suffix("").as_posix()
        beginning, mark, _ = stem.rpartition("_")
        files.setdefault(stem, path)
        if mark:
            files.setdefault(beginning, path)
    return files


def write_page(
    target: Path,
    scenes: Sequence[Scene],
    progress: Callable[[float, str], None] = lambda share, label: None,
) -> None:
    """Write the page of some scenes.

    The images are stored as they are seen, without what else their files hold, such as the place
    where they were taken.

    Args:
        target: an HTML file; its folder exists.
        scenes: one or several.
        progress: called with the share done and what is at work.

    Raises as `read_image`.
    """
    pictures = []
    for i, scene in enumerate(scenes):
        progress(i / len(scenes), f"page: {scene.before.name}")
        pictures.append(_picture(scene, PIXELS // len(scenes), LOSSLESS // len(scenes)))
    first = pictures[0]["name"]
    title = first if len(pictures) == 1 else f"{first} and {len(pictures) - 1} more"
    page = fill(
        HERE / "compare.html", {"title": f"{title}: before and after", "pictures": pictures}
    )
    write_atomically(target, page.encode())


def _picture(scene: Scene, room: int, exact: int) -> dict[str, Any]:
    """What the page shows of a scene, in `room` pixels; up to `exact` pixels without loss."""
    files = (scene.before, *scene.results)
    images = [_shown(read_image(path, first_frame=True)) for path in files]
    sizes = [image.pixels.shape[1::-1] for image in images]
    total = sum(width * height for width, height in sizes)
    longest = max(max(size) for size in sizes)
    share = min(1.0, math.sqrt(room / total), LONGEST / longest)
    quality = 100 if total * share**2 <= min(room, exact) else QUALITY
    names = [path.name for path in files]
    views = []
    for path, image, (width, height) in zip(files, images, sizes, strict=True):
        name = path.name if names.count(path.name) == 1 else f"{path.parent.name}/{path.name}"
        smaller = "" if share == 1 else f", shown at {share:.0%}"
        what = "before" if path is scene.before else "after"
        src = data_address(_encode(_resized(image, share), quality))
        label = what if len(files) == 2 else f"{what}: {name}"
        views.append(
            {"label": label, "about": f"{what}: {name}, {width}x{height}{smaller}", "src": src}
        )
    width, height = max(sizes)
    scale = min(1.0, THUMBNAIL / max(width, height))
    small = _encode(_resized(images[sizes.index((width, height))], scale), QUALITY)
    return {
        "name": scene.before.name,
        "width": width,
        "height": height,
        "views": views,
        "thumbnail": data_address(small),
    }


def _shown(image: Image) -> Image:
    """An image in 8 bits, with its colours and without its other metadata."""
    alpha = None if image.alpha is None else to_uint8(image.alpha)
    colours, tags = image.icc_profile, image.colour
    return Image(to_uint8(image.pixels), alpha, icc_profile=colours, colour=tags)


def _resized(image: Image, share: float) -> Image:
    if share == 1:
        return image
    height, width = image.pixels.shape[:2]
    size = max(1, round(width * share)), max(1, round(height * share))

    def smaller(samples: np.ndarray) -> np.ndarray:
        return np.asarray(cv2.resize(samples, size, interpolation=cv2.INTER_AREA))

    alpha = None if image.alpha is None else smaller(image.alpha)
    return replace(image, pixels=smaller(image.pixels), alpha=alpha)


def _encode(image: Image, quality: int) -> bytes:
    return encode_image(image, "webp", quality)[0]

"""A photograph in memory, as every part of the program hands it to the next."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .colour import ColourTags

WHITE: dict[Any, float] = {
    np.dtype(np.uint8): 255,
    np.dtype(np.uint16): 65535,
    np.dtype(np.float32): 1.0,
}


NO_GAIN_MAP = "holds a gain map for HDR, which is left out: the result is its SDR picture"
"""A note of files that hold two pictures in one."""


@dataclass(frozen=True, eq=False)
class Image:
    """A photograph as it is seen: EXIF orientation is applied.

    pixels: H x W (gray) or H x W x 3 (RGB); uint8 in 0..255, uint16 in 0..65535, or float32, where
        black is 0 and white is 1, and which may go beyond both.
    alpha: H x W, of the type and range of pixels, not premultiplied; None where the file has none.
    icc_profile: the colour space of pixels; None where the file has none, or one that does not fit
        pixels.
    exif: well-formed EXIF from its byte order mark on, without a thumbnail, and of orientation 1.
    xmp: Adobe's metadata, an XML packet.
    dpi: pixels an inch across and down, 1..65535.
    text: texts by the keywords of PNG, such as Description or Comment.
    notes: what of the file was not read, one line each.
    quantization: of a JPEG file, the 64 steps for luma, row by row.
    colour: what the file says of its colours other than by a profile.
    iptc: captions and credits of news agencies, as IPTC-IIM.
    lossless: whether it was read from a WebP file that loses nothing.
    read_size: height and width in the file that it was read from; None where it was not.
    gain_map: a JPEG file, upright and of any size, by which displays make HDR of pixels.
    frames: the others of an animation, or pages; None where there are none.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    icc_profile: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    text: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    quantization: tuple[int, ...] | None = None
    colour: "ColourTags | None" = None
    iptc: bytes | None = None
    lossless: bool = False
    read_size: tuple[int, int] | None = None
    gain_map: bytes | None = None
    frames: "Frames | None" = None

    def __post_init__(self) -> None:
        shape = self.pixels.shape
        if self.pixels.dtype not in WHITE or not (
            len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)
        ):
            raise ValueError(f"no pixels of an image: {self.pixels.dtype} {shape}")
        alpha = self.alpha
        if alpha is not None and (alpha.dtype, alpha.shape) != (self.pixels.dtype, shape[:2]):
            raise ValueError(f"alpha does not fit the pixels: {alpha.dtype} {alpha.shape}")


@dataclass(frozen=True, eq=False)
class Frames:
    """What follows the first frame of an animation, or the first page of a document.

    images: the others, each whole; those of an animation are as large as the first.
    durations: milliseconds that each frame is shown, the first included; empty for pages.
    plays: how often an animation is shown; 0 for ever.
    """

    images: tuple[Image, ...]
    durations: tuple[float, ...] = ()
    plays: int = 0

    @property
    def kind(self) -> str:
        """What they are to the user: an animation or pages."""
        return "animation" if self.durations else "pages"


def each_frame(
    image: Image,
    change: Callable[[Image, Callable[[float], None]], Image],
    progress: Callable[[float], None] | None = None,
) -> Image:
    """Change the first frame and all others.

    change: takes a frame and a function to be called with the share done, from 0 to 1.
    progress: called with the share that is done of all.
    """
    if image.frames is None:
        return change(image, progress or (lambda share: None))
    report = progress or (lambda share: None)
    images = (replace(image, frames=None), *image.frames.images)

    def changed(number: int) -> Image:
        return change(images[number], lambda share: report((number + share) / len(images)))

    first, *others = (changed(number) for number in range(len(images)))
    return replace(first, frames=replace(image.frames, images=tuple(others)))


@dataclass
class Stored:
    """A photograph as a reader finds it in a file, not yet upright.

    format: by Pillow's name. pixels, alpha: see `Image`. info: metadata by Pillow's names.
    turn: the EXIF orientation that is still to be applied.
    notes: what of the file is not read.
    fields: of `Image`, the others that are known.
    """

    format: str
    pixels: np.ndarray
    alpha: np.ndarray | None
    info: dict[Any, Any] = field(default_factory=dict)
    turn: Any = 1
    notes: list[str] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)

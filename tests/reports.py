"""A benchmark's report as `measure.run` gives it; shared by tests."""

from mambair_cli.bench.quality.results import ImageRow, Network, Report, Result

NETWORK = Network(
    sha256="0" * 64,
    device="cpu",
    backend="numba",
    dtype="float32",
    parameters=174_000,
    leaf_parameters=150_000,
    macs=12_100_000_000,
    leaf_macs=8_600_000_000,
)


def result(name, decibels, seconds=None):
    """A result with these PSNR (dB) by image; SSIM is a hundredth of them."""
    cost = () if seconds is None else (seconds / len(decibels), 2**28)
    rows = tuple(
        ImageRow(image, 40, 30, {"psnr": value, "ssim": value / 100}, *cost)
        for image, value in decibels.items()
    )
    return Result(name, rows, None if seconds is None else NETWORK)


def report(*results, **changes):
    """A report of these results; the baseline comes first."""
    return Report(
        **{
            "mambair": "0.1.0",
            "threads": 2,
            "dataset": "Set5",
            "folder": "data/Set5",
            "copy": "all 5 images, pixels as known",
            "complete": True,
            "task": "upscale",
            "setting": "x4",
            "channel": "y",
            "border": 4,
            "inputs": "read from files",
            "seed": None,
            "tiler": "auto",
            "seconds": 4.0,
            "network_seconds": 3.8,
            "results": results,
            "published": (),
        }
        | changes
    )

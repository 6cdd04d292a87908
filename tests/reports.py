"""A benchmark's facts as `quality.run` gives them; shared by tests."""


def result(name, decibels, **cost):
    """A result with these PSNR (dB) by image; SSIM is a hundredth of them."""
    images = [
        {"image": image, "width": 40, "height": 30, "psnr": value, "ssim": value / 100}
        for image, value in decibels.items()
    ]
    mean = sum(decibels.values()) / len(decibels)
    found = {"name": name, "images": images, "mean": {"psnr": mean, "ssim": mean / 100}}
    found["interval"] = {"psnr": (mean - 1, mean + 1), "ssim": None}
    if cost:
        for row in images:
            row |= {"seconds": cost["seconds"] / len(images), "peak_memory": 2**28}
        facts = {
            "parameters": 174_000,
            "leaf_parameters": 150_000,
            "macs": 12.1e9,
            "leaf_macs": 8.6e9,
        }
        facts |= {
            "backend": "numba",
            "device": "cpu",
            "dtype": "float32",
            "megapixels_per_second": 0.5,
            "peak_memory": 2**28,
        }
        found |= facts | cost
    return found


def facts(*results, **changes):
    """A report of these results; the baseline comes first."""
    return {
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
        "results": list(results),
        "published": [],
    } | changes

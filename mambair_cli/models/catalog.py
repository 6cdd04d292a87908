"""What mambair can do and with which weights: tables of data, no torch."""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

MAX_SCALE = 16  # times as large a side can become
PUBLISHED = (
    Path(__file__).parent / "published.csv"
)  # figures of the papers' tables, each with its source


@dataclass(frozen=True)
class Task:
    """A kind of restoration, and the command of the same name.

    scale is the default one. suffix tells a result from the input beside it; {scale} in it stands for the scale.
    option chooses among its models: it takes one of `settings` (the first is the default) or, where the models are for
    levels of the degradation, a number from weakest to worst; level says what that counts, option_help what it means.
    """

    name: str
    summary: str
    scale: int
    suffix: str
    option: str = ""
    option_help: str = ""
    settings: tuple[str, ...] = ()
    level: str = ""
    weakest: int = 0
    worst: int = 0

    def strength(self, level: int) -> int:
        """Of the degradation, the higher the worse."""
        return level if self.worst > self.weakest else -level

    def nearest(self, levels: Iterable[int], level: int | None) -> int:
        """Of levels that models are for, the nearest that is at least as strong, or else the strongest."""
        least = self.strength(self.weakest if level is None else level)
        enough = [other for other in levels if self.strength(other) >= least]
        return min(enough, key=self.strength) if enough else max(levels, key=self.strength)


@dataclass(frozen=True)
class Score:
    """PSNR in dB and SSIM (None: not given) on a data set; channel is Y, RGB or gray."""

    dataset: str
    psnr: float
    ssim: float | None
    channel: str = "Y"


@dataclass(frozen=True)
class Model:
    """A trained network.

    Attributes:
        name: what `-m` takes.
        task: a name of TASKS.
        arch: a name of `weights.ARCHITECTURES`; config: what its configuration class is built from.
        scale: how many times larger its results are.
        parameters: their number.
        gmacs: multiply-adds in units of 1e9 for an output of 1280x720, all of them as `bench.complexity` counts.
        degradation: what its inputs should have suffered.
        licence: of the weights.
        source: who trained it, and where that is described.
        levels: of the degradation, the lowest and the highest number, in what the task's level counts (sigma of 255,
            JPEG quality).
        file: under weights/, of a bundled model; None for those to be downloaded.
        urls: where its file can be had, best first. Empty: no address is known.
        sha256: of the file, hexadecimal. None: nobody of this project could fetch it yet.
        measured: scores on what this project measured; else published: task, setting and method in PUBLISHED.
    """

    name: str
    task: str
    arch: str
    scale: int
    parameters: int
    gmacs: float
    degradation: str
    licence: str
    source: str
    config: Mapping[str, Any] = field(hash=False)
    levels: tuple[int, int] | None = None
    file: str | None = None
    urls: tuple[str, ...] = ()
    sha256: str | None = None
    measured: tuple[Score, ...] = ()
    published: tuple[str, str, str] | None = None

    @property
    def bundled(self) -> bool:
        """Whether it ships with the package."""
        return self.file is not None

    @property
    def verified(self) -> bool:
        """Whether someone of this project has held the file, so that its hash is known."""
        return self.sha256 is not None

    @property
    def scores(self) -> tuple[Score, ...]:
        """What it reaches: measured here, or else as published."""
        return self.measured or published_scores(*self.published or ("", "", ""))


TASKS = {
    task.name: task
    for task in (
        Task(
            "upscale",
            "Enlarge photographs and restore their detail.",
            scale=4,
            suffix="_x{scale:g}",
            option="degradation",
            option_help="What was suffered: bicubic (only made smaller) or real (blur, noise, JPEG). Default: bicubic.",
            settings=("bicubic", "real"),
        ),
        Task(
            "denoise",
            "Take the noise out of photographs.",
            scale=1,
            suffix="_denoised",
            option="noise",
            option_help="Its sigma of 255, such as 25; auto (measured); or real (of cameras). Default: auto.",
            settings=("auto", "real"),
            level="sigma",
            weakest=0,
            worst=255,
        ),
        Task("derain", "Take the rain out of photographs.", scale=1, suffix="_derained"),
        Task(
            "dejpeg",
            "Take out what JPEG compression put in.",
            scale=1,
            suffix="_dejpeg",
            option="jpeg",
            option_help="Its quality, such as 40, or auto (by the file's tables and its pixels). Default: auto.",
            settings=("auto",),
            level="quality",
            weakest=100,
            worst=1,
        ),
    )
}

# What models of a task have to beat: task and method in PUBLISHED, and the setting of a scale or level.
BASELINES = {
    "upscale": ("classic_sr", "Bicubic", "x{}"),
    "dejpeg": ("jpeg_gray", "JPEG input", "q{}"),
}

BICUBIC = "bicubic downsampling"
CAMERA = "noise of cameras"
REAL = "blur, noise and JPEG of unknown strength, as in real photographs"
CLASSIC = {"embed_dim": 180, "depths": (6,) * 6, "d_state": 16, "expand": 2.0}
LIGHT = {"embed_dim": 60, "depths": (6,) * 4, "upsampler": "pixelshuffledirect"}
LIGHT_A = {**LIGHT, "d_state": 16, "expand": 1.2, "conv_block": "light_a"}
LIGHT_B = {**LIGHT, "d_state": 16, "expand": 1.5, "conv_block": "light_b"}
LIGHT_C = {**LIGHT, "d_state": 10, "expand": 1.2, "conv_block": "light_c"}
SAME_SIZE = {**CLASSIC, "expand": 1.2, "upsampler": "", "upscale": 1}
OMNI = {"dim": 48, "d_state": 16, "expand": 1.0, "ffn_expand": 2.66}
TINY = {
    **LIGHT,
    "embed_dim": 48,
    "depths": (3, 3),
    "d_state": 4,
    "expand": 1.0,
    "conv_block": "light_c",
}
TINY_SAME_SIZE = {**TINY, "upsampler": "", "upscale": 1}
MAMBAIR = "Apache-2.0"
VMAMBAIR = "none stated by its authors"  # so nothing of it may be passed on


def _hugging_face(repository: str, file: str) -> str:
    return f"https://huggingface.co/{repository}/resolve/main/{file}"


def _drive(identity: str) -> str:
    """Of a public file on Google Drive; `confirm` skips the page that warns of large files."""
    return f"https://drive.usercontent.google.com/download?id={identity}&export=download&confirm=t"


MODELS: tuple[Model, ...] = (
    Model(
        name="tiny-x2",
        task="upscale",
        arch="mambair",
        scale=2,
        config={**TINY, "depths": (5, 5), "upscale": 2},
        file="tiny-x2.safetensors",
        sha256="5e8414ee9859af02cbcd4b881c00a1e71a85b96ea8e75785b5818630d890d1ba",
        parameters=217654,
        gmacs=64.0,
        degradation=BICUBIC,
        measured=(
            Score("Set5", 37.68, 0.9595),
            Score("Set14", 33.19, 0.9142),
            Score("B100", 32.00, 0.8976),
        ),
        licence="Apache-2.0",
        source="trained by this project, see weights/tiny-x2.md",
    ),
    Model(
        name="tiny-x3",
        task="upscale",
        arch="mambair",
        scale=3,
        config={**TINY, "depths": (5, 5), "upscale": 3},
        file="tiny-x3.safetensors",
        sha256="515ac99c8fdcea92b4ee93b8e53901b2f5fd8d39a18db3b2673671c96ba1e4b0",
        parameters=224149,
        gmacs=29.1,
        degradation=BICUBIC,
        measured=(
            Score("Set5", 33.91, 0.9234),
            Score("Set14", 29.96, 0.8345),
            Score("B100", 28.91, 0.8003),
        ),
        licence="Apache-2.0",
        source="trained by this project, see weights/tiny-x3.md",
    ),
    Model(
        name="tiny-x4",
        task="upscale",
        arch="mambair",
        scale=4,
        config={**TINY, "upscale": 4},
        file="tiny-x4.safetensors",
        sha256="2519b3bd4217b5da1ea85002ba5a4799ec186ef46bc4ea9f0e491eb08ffd0f3f",
        parameters=173814,
        gmacs=12.1,
        degradation=BICUBIC,
        measured=(
            Score("Set5", 31.61, 0.8869),
            Score("Set14", 28.17, 0.7710),
            Score("B100", 27.32, 0.7279),
        ),
        licence="Apache-2.0",
        source="trained by this project, see weights/tiny-x4.md",
    ),
    Model(
        name="tiny-real-x4",
        task="upscale",
        arch="mambair",
        scale=4,
        config={**TINY, "upscale": 4},
        file="tiny-real-x4.safetensors",
        sha256="7da9d8c9e62c7dc558c3fc8cb01dd3e3e3071420b7b584ecc81cd3ad1a20bb4e",
        parameters=173814,
        gmacs=12.1,
        degradation=REAL,
        licence="Apache-2.0",
        source="trained by this project, see weights/tiny-real-x4.md",
    ),
    Model(
        name="tiny-denoise",
        task="denoise",
        arch="mambair",
        scale=1,
        levels=(0, 55),
        config=TINY_SAME_SIZE,
        file="tiny-denoise.safetensors",
        sha256="3ac30b01ef8de66165b5e4d8b0f41fc9a346d0c1dec649eab33db13fbab22ac6",
        parameters=154329,
        gmacs=175.5,
        degradation="Gaussian noise of any sigma to 55 of 255",
        measured=(Score("CBSD68, sigma 25", 30.79, 0.8727, "RGB"),),
        licence="Apache-2.0",
        source="trained by this project, see weights/tiny-denoise.md",
    ),
    Model(
        name="tiny-denoise-real",
        task="denoise",
        arch="mambair",
        scale=1,
        config=TINY_SAME_SIZE,
        file="tiny-denoise-real.safetensors",
        sha256="75dd42653bdbb2fea930b262201e47ff22946cd43c65a882393c9761d8c4ac11",
        parameters=154329,
        gmacs=175.5,
        degradation=CAMERA,
        measured=(Score("PolyU, Nikon and Sony", 37.70, 0.9565, "RGB"),),
        licence="Apache-2.0",
        source="trained by this project, see weights/tiny-denoise-real.md",
    ),
    Model(
        name="tiny-dejpeg",
        task="dejpeg",
        arch="mambair",
        scale=1,
        levels=(10, 100),
        config=TINY_SAME_SIZE,
        file="tiny-dejpeg.safetensors",
        sha256="e400988f61a50ea80bfb636e61eab14ee17824ab8aee6a53645c7ed910e72cdc",
        parameters=154329,
        gmacs=175.5,
        degradation="JPEG of any quality from 10 on",
        measured=(Score("classic5, quality 10", 29.05, 0.7907, "gray"),),
        licence="Apache-2.0",
        source="trained by this project, see weights/tiny-dejpeg.md",
    ),
    Model(
        name="tiny-derain",
        task="derain",
        arch="vmambair",
        scale=1,
        config={
            "dim": 16,
            "blocks": (1, 2, 2, 3),
            "refinement": 1,
            "d_state": 4,
            "expand": 1.0,
            "ffn_expand": 2.0,
            "upscale": 1,
            "channel_inner": 4,
        },
        file="tiny-derain.safetensors",
        sha256="1c5a35c65ab861075733c347588cdf1df20fa0c57cf25acabfbf7ce3c3be6f0a",
        parameters=1205110,
        gmacs=92.7,
        degradation="streaks of rain",
        measured=(Score("Rain100H, 20 of it", 21.87, 0.7103),),
        licence="Apache-2.0",
        source="trained by this project, see weights/tiny-derain.md",
    ),
    *(
        Model(
            name=f"mambair-classic-x{scale}",
            task="upscale",
            arch="mambair",
            scale=scale,
            config={**CLASSIC, "upscale": scale},
            parameters=parameters,
            gmacs=gmacs,
            degradation=BICUBIC,
            published=("classic_sr", f"x{scale}", "MambaIR"),
            licence=MAMBAIR,
            source="MambaIR, arXiv:2402.15648, classic super-resolution",
            urls=urls,
        )
        for scale, parameters, gmacs, urls in (
            (2, 20421863, 6215.1, (_drive("11Kiy_0hmMyDjMvW7MmbUT6tO9n5JrDeB"),)),
            (3, 20606503, 2777.7, (_drive("1u0VcESEduHu-GBCC6vDGQt9qXSX2AKdn"),)),
            (
                4,
                20569575,
                1588.9,
                (
                    _hugging_face("cguoh/MambaIR", "MambaIRv1_ckpt/MambaIR_classicSRx4.pth"),
                    _drive("1YXggWIsi-auCjmPQDvW9FjB1f9fZK0hN"),
                ),
            ),
        )
    ),
    *(
        Model(
            name=f"mambair-light-{letter}-x{scale}",
            task="upscale",
            arch="mambair",
            scale=scale,
            config={**config, "upscale": scale},
            parameters=parameters,
            gmacs=gmacs,
            degradation=BICUBIC,
            published=("light_sr", f"x{scale}", f"MambaIR-light ({name})"),
            licence=MAMBAIR,
            source=f"MambaIR, arXiv:2402.15648, light super-resolution, {source}",
            urls=(_drive(identity),) if identity else (),
        )
        for letter, config, name, source, files in (
            (
                "a",
                LIGHT_A,
                "v1",
                "as in version 1 of the paper",
                (
                    (2, 933672, 417.8, "1mI3vVcv1inEZ8XmDudk4G8HYcPMUO0cg"),
                    (3, 941787, 186.2, "1tphJw5diWpvX95ZLFCHNTP8QfKtb3uHx"),
                    (4, 953148, 105.6, "1MHJ2ZP7P6Rfb29hDAwZj9SZqIUCLffFU"),
                ),
            ),
            (
                "b",
                LIGHT_B,
                "gen B",
                "as in later versions of the paper",
                ((2, 1363320, 567.5, None), (3, 1371435, 252.7, None), (4, 1382796, 143.0, None)),
            ),
            (
                "c",
                LIGHT_C,
                "gen C",
                "as released last",
                (
                    (2, 905016, 334.1, "1eWovtH7YvEn2Bm9wBK5REOhbIgapsLxM"),
                    (3, 913131, 149.1, "1JoC3fwah5Xo0Z1s8DnmXQlsctKQjs1Hx"),
                    (4, 924492, 84.6, "1jIz579k_16569HFVF-76KgqAbJaJoDgF"),
                ),
            ),
        )
        for scale, parameters, gmacs, identity in files
    ),
    Model(
        name="mambair-real-x4",
        task="upscale",
        arch="mambair",
        scale=4,
        config={**CLASSIC, "upscale": 4},
        parameters=20569575,
        gmacs=1588.9,
        degradation=REAL,
        licence=MAMBAIR,
        source="MambaIR, arXiv:2402.15648, real-world super-resolution (GAN)",
        urls=(_drive("16BBSRz1HellkTgypu4wu3CHA20CLgpSY"),),
    ),
    *(
        Model(
            name=f"mambair-denoise-{sigma}",
            task="denoise",
            arch="mambair",
            scale=1,
            levels=(sigma, sigma),
            config=SAME_SIZE,
            parameters=15777507,
            gmacs=18139.1,
            degradation=f"Gaussian noise, sigma {sigma} of 255",
            published=("denoise_color", f"sigma{sigma}", "MambaIR"),
            licence=MAMBAIR,
            source="MambaIR, arXiv:2402.15648, colour denoising",
            urls=urls,
        )
        for sigma, urls in (
            (15, (_drive("1w5Y502iKSkqhP-OpleppPmk6PAnvWPdr"),)),
            (
                25,
                (
                    _hugging_face("cguoh/MambaIR", "MambaIRv1_ckpt/ColorDN_MambaIR_level25.pth"),
                    _drive("1qSPy6B7Jvi7PDHM1fl8Q88kn7ckwtusK"),
                ),
            ),
            (50, (_drive("1O2o9xPruX8MtUL4qmuxV4Vfsef8L_jLM"),)),
        )
    ),
    Model(
        name="mambair-denoise-real",
        task="denoise",
        arch="mambair_unet",
        scale=1,
        config={"dim": 48, "blocks": (4, 6, 6, 8), "refinement": 4, "d_state": 16, "expand": 1.5},
        parameters=26779480,
        gmacs=3231.6,
        degradation=CAMERA,
        published=("denoise_real", "-", "MambaIR"),
        licence=MAMBAIR,
        source="MambaIR, arXiv:2402.15648, real denoising (SIDD)",
        urls=(_drive("1iMcapgaT7VPfR2UFYy21KbX3rUHFJCU8"),),
    ),
    *(
        Model(
            name=f"mambair-jpeg-{quality}",
            task="dejpeg",
            arch="mambair",
            scale=1,
            levels=(quality, quality),
            config={**SAME_SIZE, "in_chans": 1},
            parameters=15771025,
            gmacs=18133.2,
            degradation=f"JPEG of quality {quality}, gray",
            published=("jpeg_gray", f"q{quality}", "MambaIR"),
            licence=MAMBAIR,
            source="MambaIR, arXiv:2402.15648, JPEG artefact reduction",
            urls=(_drive(identity),),
        )
        for quality, identity in (
            (10, "1kncutEIAq9MvD8w6If6VZD7hkRkRcXWr"),
            (30, "1hIIJQR59XmizMapxLOWtihhF3R7prYu3"),
            (40, "1XbuIsLuCtwV78cVMYLuWXm-hNQDsbn6M"),
        )
    ),
    *(
        Model(
            name=f"vmambair-{name}",
            task=task,
            arch="vmambair",
            scale=scale,
            config={
                **OMNI,
                "blocks": blocks,
                "refinement": blocks[0],
                "upscale": scale,
                "channel_inner": inner,
            },
            parameters=parameters,
            gmacs=gmacs,
            degradation=degradation,
            licence=VMAMBAIR,
            source=f"VmambaIR, arXiv:2403.11423, {source}",
        )
        for name, task, scale, blocks, inner, parameters, gmacs, degradation, source in (
            (
                "x4",
                "upscale",
                4,
                (15, 1, 1, 1),
                4,
                12028273,
                496.7,
                BICUBIC,
                "super-resolution (GAN)",
            ),
            (
                "real-x4",
                "upscale",
                4,
                (6, 2, 2, 1),
                1,
                10497813,
                281.0,
                REAL,
                "real-world super-resolution (GAN)",
            ),
        )
    ),
    *(
        Model(
            name=f"vmambair-{name}",
            task="derain",
            arch="vmambair",
            scale=1,
            config={
                **OMNI,
                "blocks": (3, 5, 7, 9),
                "refinement": 2,
                "upscale": 1,
                "channel_inner": inner,
            },
            parameters=parameters,
            gmacs=2300.6,
            degradation="streaks of rain",
            published=published,
            licence=VMAMBAIR,
            source=f"VmambaIR, arXiv:2403.11423, {source}",
        )
        for name, inner, parameters, published, source in (
            ("derain", 4, 28709875, ("derain", "-", "VmambaIR"), "deraining"),
            ("derain-variant", 2, 28699461, None, "deraining, the second form"),
        )
    ),
)


def bundled_models(task: str, real: bool) -> list[Model]:
    """Those of a task, by scale; real: those for real photographs."""
    fitting = (
        m
        for m in MODELS
        if m.bundled and m.task == task and (m.degradation in (REAL, CAMERA)) == real
    )
    return sorted(fitting, key=lambda model: model.scale)


def model_named(name: str) -> Model | None:
    """The row of this name, if there is one."""
    return next((model for model in MODELS if model.name == name), None)


@lru_cache
def published_scores(task: str, setting: str, method: str) -> tuple[Score, ...]:
    """What PUBLISHED says of a method, in the order of the papers; empty where it says nothing."""
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return tuple(
        Score(r["dataset"], float(r["psnr"]), float(r["ssim"]) if r["ssim"] else None, r["channel"])
        for r in rows
        if (r["task"], r["setting"], r["method"]) == (task, setting, method)
    )

"""The benchmark data sets that are known by name: where they come from, finding, checking."""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import CallError, did_you_mean
from ...images.folders import Pixels
from ...models.cache import cache_folder

DATA_VARIABLE = "MAMBAIR_DATA"


@dataclass(frozen=True)
class Archive:
    """A tar or zip file that holds the truths of a set.

    Args:
        url: of the file.
        inside: a pattern (of `fnmatch`) of the truths' names in it.
        md5: of the file, where its owner tells it.
    """

    url: str
    inside: str = "*"
    md5: str = ""


@dataclass(frozen=True)
class Files:
    """The truths of a set one by one.

    Args:
        url: with {} for a name.
        names: of the images.
    """

    url: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class DataSet:
    """A published set of test images.

    Args:
        name: as the papers call it.
        task: what it is measured for unless the call says.
        images: how many truths it has.
        licence: in words.
        source: where a person gets it.
        digest: `digest_of` all truths, where a whole copy was at hand.
        sizes: (height, width) of some truths, by name.
        aliases: other names.
        part_of: the name of a set that holds this one.
        members: the names of the images that make it up there.
        addresses: where it may be fetched, the first that works; only with a digest.
        steps: what a person does instead of laying it out in folders.
    """

    name: str
    task: str
    images: int
    licence: str
    source: str
    digest: str = ""
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    part_of: str = ""
    members: frozenset[str] = frozenset()
    addresses: tuple[Archive | Files, ...] = ()
    steps: str = ""

    @property
    def layout(self) -> str:
        """The folders that are expected, in words."""
        if self.task in ("derain", "denoise-real"):
            return f"{self.name}/input/*.png and {self.name}/target/*.png of the same names"
        if self.task == "upscale":
            return (
                f"{self.name}/HR/*.png (and {self.name}/LR_bicubic/X4/*x4.png and so on; without"
                " them inputs are made)"
            )
        return f"{self.name}/HR/*.png"

    @property
    def by_hand(self) -> str:
        """What a person does to get it."""
        if self.steps:
            return self.steps
        return (
            f"get it from {self.source} ({self.licence}), lay it out as {self.layout}, and name the"
            f" folder above it as `data_root` or in {DATA_VARIABLE}"
        )


_EDSR = "https://cv.snu.ac.kr/research/EDSR/benchmark.tar"
_EDSR_HOLDS = f"{_EDSR} (Set5, Set14, B100, Urban100 with LR_bicubic)"
_HUB = "https://huggingface.co/datasets/eugenesiow/{0}/resolve/main/data/{0}_HR.tar.gz"
_SELFEXSR = (
    "https://raw.githubusercontent.com/jbhuang0604/SelfExSR/"
    "8f6dd8c1d20cb7e8792a7177b4f6fd677633f598/data"
)
_FFDNET = "https://github.com/cszn/FFDNet, folder testsets"
_FBCNN = "https://github.com/jiaxi-jiang/FBCNN, folder testsets"
_MPRNET = (
    "https://github.com/swz30/MPRNet, Deraining, test.zip"
    " (Test100, Rain100H, Rain100L, Test2800, Test1200)"
)
_BSDS = "non-commercial research and education (Berkeley BSDS)"
_UNSTATED = "research only (none stated)"

CBSD68 = frozenset(map(str, (
    101085, 101087, 102061, 103070, 105025, 106024, 108005, 108070, 108082, 109053, 119082,
    12084, 123074, 126007, 130026, 134035, 14037, 143090, 145086, 147091, 148026, 148089, 157055,
    159008, 160068, 16077, 163085, 167062, 167083, 170057, 175032, 175043, 182053, 189080, 19021,
    196073, 197017, 208001, 210088, 21077, 216081, 219090, 220075, 223061, 227092, 229036, 236037,
    24077, 241004, 241048, 253027, 253055, 260058, 271035, 285079, 291000, 295087, 296007, 296059,
    299086, 300091, 302008, 304034, 304074, 306005, 3096, 33039, 351093,
)))  # fmt: skip

SETS: tuple[DataSet, ...] = (
    DataSet(
        name="Set5",
        task="upscale",
        images=5,
        licence=_UNSTATED,
        source=_EDSR_HOLDS,
        digest="56d899b36425f6e2932d723ffc58806b5f82e6731427bb2990b7d877f2ea3f95",
        sizes={"baby": (512, 512), "bird": (288, 288), "woman": (344, 228)},
        addresses=(
            Archive(_HUB.format("Set5"), md5="e128ede786dabb7ebeee99e5fa1ad985"),
            Archive(_EDSR, "*/Set5/HR/*"),
        ),
    ),
    DataSet(
        name="Set14",
        task="upscale",
        images=14,
        licence=_UNSTATED,
        source=_EDSR_HOLDS,
        digest="f58a95f24549c95a1b265e155b020c6b54038fe4e3761f7de613678f0ca76a2f",
        sizes={"baboon": (480, 500), "barbara": (576, 720)},
        addresses=(
            Archive(_HUB.format("Set14"), md5="3fce01c3dfe9760194e8a22f6bc032c5"),
            Archive(_EDSR, "*/Set14/HR/*"),
            Files(
                _SELFEXSR + "/Set14/image_SRF_2/{}_SRF_2_HR.png",
                tuple(f"img_{i:03}" for i in range(1, 15)),
            ),
        ),
    ),
    DataSet(
        name="B100",
        task="upscale",
        images=100,
        licence=_BSDS,
        source=f"{_EDSR_HOLDS}; the validation images of BSDS500",
        digest="69d8bf1e1b6f3027f46ab12cccdf0b155d9d75436879d897cb7eb963e9855aa8",
        sizes={"101085": (481, 321), "103070": (321, 481)},
        aliases=("BSD100", "BSDS100"),
        addresses=(Archive(_HUB.format("BSD100")), Archive(_EDSR, "*/B100/HR/*")),
    ),
    DataSet(
        name="Urban100",
        task="upscale",
        images=100,
        licence=(
            "photographs under Creative Commons licences of their own, listed in SelfExSR's"
            " source_selected.xlsx"
        ),
        source=f"{_EDSR_HOLDS}; https://github.com/jbhuang0604/SelfExSR",
        digest="958644bbdf2c4f097b9d8e305be40b0da97b7ff1f364c31d3fde1856e84d407a",
        sizes={
            "img_001": (644, 1024),
            "img_011": (1024, 564),
            "img_021": (1200, 796),
            "img_031": (680, 1024),
            "img_061": (672, 1024),
            "img_071": (768, 1024),
        },
        addresses=(
            Archive(_HUB.format("Urban100"), md5="65d9d84a34b72c6f7ca1e26a12df1e4c"),
            Archive(_EDSR, "*/Urban100/HR/*"),
            Files(
                _SELFEXSR + "/Urban100/image_SRF_4/{}_SRF_4_HR.png",
                tuple(f"img_{i:03}" for i in range(1, 101)),
            ),
        ),
    ),
    DataSet(
        name="Manga109",
        task="upscale",
        images=109,
        licence="academic use, on request",
        source="http://www.manga109.org",
    ),
    DataSet(
        name="CBSD68",
        task="denoise",
        images=68,
        licence=_BSDS,
        source=f"{_FFDNET}; its images are taken from B100 where CBSD68 is not there",
        digest="1bac1f7ed07ced4bde57c39f047bcb6579c5a278ccced9c3042d8ae961eedc73",
        sizes={"101085": (481, 321), "103070": (321, 481)},
        aliases=("BSD68",),
        part_of="B100",
        members=CBSD68,
    ),
    DataSet(
        name="Kodak24",
        task="denoise",
        images=24,
        licence="released by Kodak for unrestricted use",
        source=(
            f"{_FFDNET} (the 500x500 crops of the published tables, not the photographs of 768x512)"
        ),
        digest="3cfca200f94674e865790fc9b87ce139bfaab923901233983f8a1ca347dcdae1",
        sizes={"kodim01": (500, 500), "kodim24": (500, 500)},
        # Not yet reached from where this was written; what it gives is checked by `digest`.
        addresses=(
            Files(
                "https://raw.githubusercontent.com/cszn/FFDNet/master/testsets/Kodak24/{}.png",
                tuple(f"kodim{i:02}" for i in range(1, 25)),
            ),
        ),
    ),
    DataSet(
        name="McMaster",
        task="denoise",
        images=18,
        licence="research only (Zhang 2011)",
        source=_FFDNET,
        digest="79a5147d4512b607f38e0ed69c7d835f76ea554d00a535328cf208e630176b97",
        sizes={"1": (500, 500), "18": (500, 500)},
    ),
    DataSet(
        name="classic5",
        task="dejpeg",
        images=5,
        licence=_UNSTATED,
        source=_FBCNN,
        digest="f93ee88502210e14f461d2cd9cd9262b1c17c5f274a7e12cf4af5869d24233f6",
    ),
    DataSet(
        name="LIVE1",
        task="dejpeg",
        images=29,
        licence="research only",
        source=f"{_FBCNN}; https://live.ece.utexas.edu/research/quality",
    ),
    DataSet(
        name="SIDD",
        task="denoise-real",
        images=1280,
        licence="MIT",
        source=(
            "https://www.eecs.yorku.ca/~kamel/sidd/benchmark.php"
            " (validation blocks of 256x256, as images)"
        ),
    ),
    DataSet(
        name="DND",
        task="denoise-real",
        images=50,
        licence="research only",
        source="https://noise.visinf.tu-darmstadt.de",
        steps=(
            "its truths are not given out: restore its noisy images and send the results to"
            " https://noise.visinf.tu-darmstadt.de, which measures them"
        ),
    ),
    DataSet(
        name="PolyU",
        task="denoise-real",
        images=100,
        licence="research only",
        source=(
            "https://github.com/csjunxu/PolyU-Real-World-Noisy-Images-Dataset, folder CroppedImages"
        ),
        digest="04bc38dd55368965582a5062085b72c99ef13cca838cc56e9dc4f95557e53427",
    ),
    DataSet(
        name="Rain100H",
        task="derain",
        images=100,
        licence="research only (Yang 2017)",
        source=_MPRNET,
    ),
    DataSet(
        name="Rain100L",
        task="derain",
        images=100,
        licence="research only (Yang 2017)",
        source=_MPRNET,
    ),
    DataSet(
        name="Test100",
        task="derain",
        images=98,
        licence="research only (Zhang 2019)",
        source=_MPRNET,
    ),
    DataSet(
        name="Test1200",
        task="derain",
        images=1200,
        licence="research only (Zhang 2018)",
        source=_MPRNET,
    ),
    DataSet(
        name="Test2800",
        task="derain",
        images=2800,
        licence="research only (Fu 2017)",
        source=_MPRNET,
    ),
)


def set_named(name: str) -> DataSet | None:
    """The row of this name or alias, whatever its case; None where there is none."""
    wanted = _plain(name)
    return next((row for row in SETS if wanted in map(_plain, (row.name, *row.aliases))), None)


def known_set(name: str) -> DataSet:
    """As `set_named`. Raises CallError that names the nearest, or all, where there is none."""
    if row := set_named(name):
        return row
    raise CallError(f"{name} is no data set; {_hint(name)}")


def _hint(name: str) -> str:
    known = [row.name for row in SETS]
    return did_you_mean(name, known, f"the known sets are {', '.join(known)}")


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def find_set(
    name_or_folder: str,
    data_root: Path | None = None,
    fetch: Callable[[DataSet], Path] | None = None,
) -> tuple[DataSet | None, Path]:
    """The row and the folder of a known set, or None and the folder that is named.

    A known set is looked for in `data_root`, the folder of the variable MAMBAIR_DATA, the working
    directory, and the cache, and in a folder `benchmark` of each, by its name or an alias in any
    case. One that is part of another is taken from there where it has no folder of its own.

    Args:
        name_or_folder: of SETS, or a folder.
        data_root: see above.
        fetch: gets a set that is nowhere here and has addresses, and gives its folder.

    Raises:
        CallError: there is neither such a set nor such a folder, with what a person does to get
        the set. What `fetch` raises.
    """
    row = set_named(name_or_folder)
    if row is None:
        folder = Path(name_or_folder)
        if folder.is_dir():
            return None, folder
        raise CallError(
            f"{name_or_folder} is no data set and not a folder; {_hint(name_or_folder)}"
        )
    roots = _roots(data_root)
    rows = [row, *filter(None, [set_named(row.part_of)])]
    for wanted in rows:
        for root in roots:
            if found := _in_root(wanted, root):
                return row, found
    for wanted in rows:
        if fetch and wanted.addresses:
            return row, fetch(wanted)
    raise CallError(f"{row.name} is not in {', '.join(map(str, roots))}; {row.by_hand}")


def _roots(data_root: Path | None) -> list[Path]:
    if data_root and not data_root.is_dir():
        raise CallError(
            f"`data_root` {data_root} is not a folder; name the one that holds the data sets"
        )
    named = [data_root] if data_root else []
    variable = os.environ.get(DATA_VARIABLE)
    return [*named, *([Path(variable)] if variable else []), Path(), fetched_folder()]


def fetched_folder() -> Path:
    """Where sets that were fetched lie."""
    return cache_folder() / "data"


def _in_root(row: DataSet, root: Path) -> Path | None:
    wanted = {_plain(name) for name in (row.name, *row.aliases)}
    for parent in (root, root / "benchmark"):
        if parent.is_dir():
            for folder in sorted(parent.iterdir()):
                if _plain(folder.name) in wanted and folder.is_dir():
                    return folder
    return None


def digest_of(hashes: Iterable[str]) -> str:
    """A set's digest, from the hashes of its truths' pixels in any order; names do not count."""
    return hashlib.sha256("".join(sorted(hashes)).encode()).hexdigest()


def check_files(row: DataSet, folder: Path, sizes: Mapping[str, tuple[int, int]]) -> None:
    """Refuse a wrong copy of a set, given the (height, width) of its truths by their names.

    Raises CallError that names what is wrong: too many images, or other sizes, such as half of the
    right ones.
    """
    advice = f"get the set from {row.source}, or measure this folder by its path"
    if len(sizes) > row.images:
        raise CallError(
            f"{folder} holds {len(sizes)} images, {row.name} has {row.images}; {advice}"
        )
    for name, right in row.sizes.items():
        if (found := sizes.get(name, right)) != right:
            half = " at half size" if (2 * found[0], 2 * found[1]) == right else ""
            raise CallError(
                f"{folder} is a wrong copy of {row.name}{half}: {name} has {found[1]}x{found[0]}"
                f" pixels, not {right[1]}x{right[0]}; {advice}"
            )


def describe_copy(row: DataSet, hashes: Sequence[str]) -> str:
    """What is known of the copy whose truths have these hashes, in words."""
    if len(hashes) < row.images:
        return f"{len(hashes)} of its {row.images} images"
    if not row.digest:
        return f"all {row.images} images; their pixels cannot be checked, as no copy was at hand"
    if digest_of(hashes) == row.digest:
        return f"all {row.images} images, pixels as known"
    return f"{row.images} images, but not the pixels that are known of this set"


def hash_of(pixels: Pixels) -> str:
    """SHA-256 of the size and the pixels of an H x W x 3 image, whatever file they come from."""
    return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()

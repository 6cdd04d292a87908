"""The benchmark data sets that are known by name: what they hold, where a person gets them, finding and checking."""

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import CallError, DownloadError, ImageError, did_you_mean
from ...images.folders import Pixels, list_images, read_rgb
from ...models.cache import cache_folder
from ...models.download import download

DATA_VARIABLE = "MAMBAIR_DATA"
LARGEST_IMAGE = 2**24  # bytes of a file that is fetched


@dataclass(frozen=True)
class DataSet:
    """A published set of test images.

    task: what it is measured for unless the call says. images: how many truths it has. digest: `digest_of` all of
    them, where a whole copy was at hand. sizes: (height, width) of some, by name. members: the names of those that
    make it up where it is a part of the set `part_of`. names, download: of the files, and the address to fetch
    each from ({} is its name), where licence and address allow that.
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
    names: tuple[str, ...] = ()
    download: str = ""

    @property
    def layout(self) -> str:
        """The folders that are expected, in words."""
        if self.task in ("derain", "denoise-real"):
            return f"{self.name}/input/*.png and {self.name}/target/*.png of the same names"
        if self.task == "upscale":
            return f"{self.name}/HR/*.png and, unless they shall be made, {self.name}/LR_bicubic/X4/*x4.png and so on"
        return f"{self.name}/HR/*.png"


_EDSR = (
    "https://cv.snu.ac.kr/research/EDSR/benchmark.tar (Set5, Set14, B100, Urban100 with LR_bicubic)"
)
_FFDNET = "https://github.com/cszn/FFDNet, folder testsets"
_FBCNN = "https://github.com/jiaxi-jiang/FBCNN, folder testsets"
_MPRNET = "https://github.com/swz30/MPRNet, Deraining, test.zip (Test100, Rain100H, Rain100L, Test2800, Test1200)"
_BSDS = "non-commercial research and education (Berkeley BSDS)"
_UNSTATED = "research only (none stated)"

CBSD68 = frozenset(map(str, (
    101085, 101087, 102061, 103070, 105025, 106024, 108005, 108070, 108082, 109053, 119082, 12084, 123074, 126007,
    130026, 134035, 14037, 143090, 145086, 147091, 148026, 148089, 157055, 159008, 160068, 16077, 163085, 167062,
    167083, 170057, 175032, 175043, 182053, 189080, 19021, 196073, 197017, 208001, 210088, 21077, 216081, 219090,
    220075, 223061, 227092, 229036, 236037, 24077, 241004, 241048, 253027, 253055, 260058, 271035, 285079, 291000,
    295087, 296007, 296059, 299086, 300091, 302008, 304034, 304074, 306005, 3096, 33039, 351093,
)))  # fmt: skip

SETS: tuple[DataSet, ...] = (
    DataSet(
        name="Set5",
        task="upscale",
        images=5,
        licence=_UNSTATED,
        source=_EDSR,
        digest="56d899b36425f6e2932d723ffc58806b5f82e6731427bb2990b7d877f2ea3f95",
        sizes={"baby": (512, 512), "bird": (288, 288), "woman": (344, 228)},
    ),
    DataSet(
        name="Set14",
        task="upscale",
        images=14,
        licence=_UNSTATED,
        source=_EDSR,
        digest="f58a95f24549c95a1b265e155b020c6b54038fe4e3761f7de613678f0ca76a2f",
        sizes={"baboon": (480, 500), "barbara": (576, 720)},
    ),
    DataSet(
        name="B100",
        task="upscale",
        images=100,
        licence=_BSDS,
        source=f"{_EDSR}; the validation images of BSDS500",
        digest="69d8bf1e1b6f3027f46ab12cccdf0b155d9d75436879d897cb7eb963e9855aa8",
        sizes={"101085": (481, 321), "103070": (321, 481)},
        aliases=("BSD100", "BSDS100"),
    ),
    DataSet(
        name="Urban100",
        task="upscale",
        images=100,
        licence="photographs under Creative Commons licences of their own, listed in SelfExSR's source_selected.xlsx",
        source=f"{_EDSR}; https://github.com/jbhuang0604/SelfExSR",
        sizes={
            "img_001": (644, 1024),
            "img_011": (1024, 564),
            "img_021": (1200, 796),
            "img_031": (680, 1024),
            "img_061": (672, 1024),
            "img_071": (768, 1024),
        },
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
        source=f"{_FFDNET}; they are images of B100, from which they are taken where CBSD68 is not there",
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
        source=f"{_FFDNET} (the 500x500 crops of the published tables, not the photographs of 768x512)",
        digest="3cfca200f94674e865790fc9b87ce139bfaab923901233983f8a1ca347dcdae1",
        sizes={"kodim01": (500, 500), "kodim24": (500, 500)},
        names=tuple(f"kodim{i:02}.png" for i in range(1, 25)),
        # Not yet reached from where this was written; what it gives is checked by `digest`.
        download="https://raw.githubusercontent.com/cszn/FFDNet/master/testsets/Kodak24/{}",
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
        source="https://www.eecs.yorku.ca/~kamel/sidd/benchmark.php (validation blocks of 256x256, as images)",
    ),
    DataSet(
        name="PolyU",
        task="denoise-real",
        images=100,
        licence="research only",
        source="https://github.com/csjunxu/PolyU-Real-World-Noisy-Images-Dataset, folder CroppedImages",
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
    return next(
        (row for row in SETS if _plain(name) in map(_plain, (row.name, *row.aliases))), None
    )


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def find_set(name_or_folder: str, data_root: Path | None = None) -> tuple[DataSet | None, Path]:
    """The row and the folder of a known set, or None and the folder that is named.

    A known set is looked for in `data_root`, the folder of the variable MAMBAIR_DATA, the working directory, and
    the cache, and in a folder `benchmark` of each, by its name or an alias in any case. One that is part of
    another is taken from there where it has no folder of its own.

    Raises CallError where there is neither such a set nor such a folder, with where a person gets the set.
    """
    row = set_named(name_or_folder)
    if row is None:
        folder = Path(name_or_folder)
        if folder.is_dir():
            return None, folder
        known = [row.name for row in SETS]
        hint = did_you_mean(name_or_folder, known, f"the known sets are {', '.join(known)}")
        raise CallError(f"{name_or_folder} is no data set and not a folder; {hint}")
    roots = _roots(data_root)
    for wanted in (row, set_named(row.part_of) if row.part_of else None):
        for root in roots:
            if wanted and (found := _in_root(wanted, root)):
                return row, found
    raise CallError(
        f"{row.name} is not in {', '.join(map(str, roots))};"
        f" {f'mambair bench download {row.name} fetches it, or ' if row.download else ''}{_by_hand(row)}"
    )


def _by_hand(row: DataSet) -> str:
    return (
        f"get it from {row.source} ({row.licence}), lay it out as {row.layout}, and name the folder above it with"
        f" --data-root or {DATA_VARIABLE}"
    )


def _roots(data_root: Path | None) -> list[Path]:
    if data_root and not data_root.is_dir():
        raise CallError(f"--data-root {data_root} is not a folder")
    named = [data_root] if data_root else []
    variable = os.environ.get(DATA_VARIABLE)
    return [*named, *([Path(variable)] if variable else []), Path(), _downloads()]


def _downloads() -> Path:
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
    """Of a set, from the hashes of its truths' pixels: their order, their names and their format do not count."""
    return hashlib.sha256("".join(sorted(hashes)).encode()).hexdigest()


def check_files(row: DataSet, folder: Path, sizes: Mapping[str, tuple[int, int]]) -> None:
    """Refuse a wrong copy of a set, given the (height, width) of its truths by their names.

    Raises CallError that names what is wrong: too many images, or other sizes, such as half of the right ones.
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
                f"{folder} is a wrong copy of {row.name}{half}: {name} has {found[1]}x{found[0]} pixels, not"
                f" {right[1]}x{right[0]}; {advice}"
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


def download_set(
    name: str, progress: Callable[[float, str], None] = lambda share, label: None
) -> Path:
    """Fetch a set into the cache, where licence and address allow, and check its pixels; returns its folder.

    `progress` is called with the share of the files that are there and the next one.
    Raises CallError for a set that a person has to get, with where and into which layout; DownloadError where it
    cannot be fetched, ImageError where it is not what was expected.
    """
    row = set_named(name)
    if row is None:
        raise CallError(
            f"{name} is no data set; the known ones are {', '.join(row.name for row in SETS)}"
        )
    if not row.download:
        raise CallError(f"{row.name} cannot be fetched for you: {_by_hand(row)}")
    folder, partial = _downloads() / row.name, _downloads() / "partial" / row.name
    if folder.is_dir():
        return folder
    partial.mkdir(parents=True, exist_ok=True)
    for i, file in enumerate(row.names):
        progress(i / len(row.names), file)
        if not (partial / file).is_file():
            try:
                download(row.download.format(file), partial / file, limit=LARGEST_IMAGE)
            except DownloadError as error:
                raise DownloadError(f"{error}; or {_by_hand(row)}") from error
    try:
        digest = digest_of(hash_of(read_rgb(path)) for path in list_images(partial))
    except ImageError as error:
        digest = str(error)
    if digest != row.digest:
        shutil.rmtree(partial)  # or it would be taken for fetched the next time
        raise ImageError(
            f"{row.download.format('')}: holds not the {row.name} that is known ({digest}, not {row.digest}), so that"
            f" nothing was kept; {_by_hand(row)}"
        )
    partial.replace(folder)
    return folder


def hash_of(pixels: Pixels) -> str:
    """SHA-256 of the size and the pixels of an H x W x 3 image: the same whatever file they come from."""
    return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()

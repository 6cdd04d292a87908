"""Command lines do what they did when they were recorded: everything but words is compared.

The recording (recorded/commands.json, and samples of the pixels in commands.npz) comes from the
commit before the package was divided into folders. `python tests/test_unchanged.py --record` makes
it anew, for what is meant to change. Nothing is imported from the package but the command line.
"""

import io
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
import zlib
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest
import safetensors.numpy
import tifffile

from mambair_cli import cli

HERE = Path(__file__).parent
FACTS, SAMPLES = HERE / "recorded" / "commands.json", HERE / "recorded" / "commands.npz"

# A row is what one types one after the other, with < and > as in a shell. Pixels are compared only
# where the nets that this file writes made them; the bundled ones may be trained anew.
ROWS = [
    # What goes in
    ["upscale photo.png -m net2.safetensors -o out.png --json"],
    ["upscale alpha.png -m net2.safetensors -o out.png --json"],
    ["upscale alpha.png -m net2.safetensors -o out.png --alpha bicubic --json"],
    ["upscale deep.png -m net2.safetensors -o out.png --json"],
    ["upscale deep.tif -m net2.safetensors --json"],
    ["upscale float.tif -m net2.safetensors -o out.tif --json"],
    ["upscale gray.png -m net2.safetensors -o out.png --json"],
    ["upscale gray16.png -m net2.safetensors -o out.png --json"],
    ["upscale palette.png -m net2.safetensors -o out.png --json"],
    ["upscale moving.gif -m net2.safetensors --json"],
    ["upscale cmyk.jpg -m net2.safetensors -o out.png --json"],
    ["upscale camera.jpg -m net2.safetensors --json"],
    ["upscale camera.jpg -m net2.safetensors -o out.png"],
    ["upscale lossless.webp -m net2.safetensors -o out.tiff --json"],
    ["upscale - -o - -m net2.safetensors --json < photo.png > out.png"],
    ["upscale - -o - -m net2.safetensors --format tif < deep.png > out.tif"],
    # How large, how, and in which form
    ["upscale photo.png -s 1.5 -m net2.safetensors --json"],
    ["upscale photo.png -s 3 -m net4.safetensors -o out.png --json"],
    ["upscale photo.png -s 4 -m net4.safetensors -o out.png --json"],
    ["upscale photo.png -s 8 -m net4.safetensors -o out.png --json"],
    ["upscale photo.png --width 60 -m net4.safetensors --json"],
    ["upscale photo.png --height 36 --width 30 -m net4.safetensors --json"],
    ["upscale wide16.png --tile 32 --tile-overlap 8 -m net2.safetensors -o out.png --json"],
    ["upscale photo.png --ensemble -m net2.safetensors -o out.png --json"],
    ["upscale photo.png --backend reference -m net2.safetensors -o out.png --json"],
    ["upscale camera.jpg --format webp --quality 80 -m net2.safetensors --json"],
    ["upscale deep.png --format jpg --suffix _big -m net2.safetensors --json"],
    ["upscale deep.png -m net2.safetensors -o out.bmp", "upscale gray.png -m net2.safetensors"],
    # Folders: the second run skips what the first did
    [
        "upscale in -o out -m net2.safetensors --json",
        "upscale in -o out -m net2.safetensors --json",
        "upscale in -o out -m net2.safetensors -s 3 --overwrite --quiet --json",
    ],
    ["upscale in --glob a* --glob deeper/* -o out --format png -m net2.safetensors --json"],
    ["upscale photo.png alpha.png -o out/ --suffix _2 -m net2.safetensors"],
    ["upscale photo.png -o empty -m net2.safetensors --json"],
    # Other tasks
    ["denoise noisy.png -m net1.safetensors -o out.png --json"],
    ["derain deep.png -m net1.safetensors -o out.png --json"],
    ["dejpeg gray.png -m gray1.safetensors --json"],
    ["denoise alpha.png -m gray1.safetensors -o out.png --ensemble --json"],
    # The bundled nets
    ["upscale camera.jpg --json"],
    ["upscale photo.png -s 2 --json", "upscale alpha.png -s 3 -o out.png --json"],
    ["upscale photo.png --degradation real -o out.png --json"],
    ["upscale photo.png -m tiny-x4 -s 2 -o out.jpg --json"],
    ["denoise noisy.png --json", "denoise deep.png --noise 25 -o out.png --json"],
    ["denoise noisy.png --noise real --json"],
    ["dejpeg camera.jpg --json", "dejpeg photo.png --jpeg 40 -o out.png --json"],
    ["derain camera.jpg -o out.jpg --json"],
    # Models
    ["models list --json"],
    ["models info tiny-x2 --json", "models info mambair-classic-x4 --json"],
    [
        "models import net1.safetensors --name my-net",
        "models info my-net --json",
        "models list --task derain --json",
        "models verify --json",
        "derain photo.png -m my-net --json",
        "models path my-net",
        "models remove my-net",
        "derain photo.png -m my-net",
    ],
    ["models convert net4.safetensors net.safetensors", "models path tiny-x2", "models path"],
    # The installation, measuring, training
    ["doctor --json", "--version"],
    [
        "bench --dataset set -s 2 -m net2.safetensors --csv a.csv --markdown a.md --html a.html"
        " --save out --json > report.json",
        "bench --dataset set -s 2 -m net2.safetensors --fail-below 90 --json",
        "bench compare report.json report.json --json",
    ],
    ["bench --dataset set --noise 25 -m net1.safetensors --images 1 --border 2 --json"],
    ["bench tiling wide.png -m net2.safetensors --json"],
    ["train --list"],
    [
        "train --recipe recipe.toml --data set --out run --set data.batch=1 --set data.patch=8",
        "train --recipe recipe.toml --data set --out run",
        "train --out run --data set --resume",
        "upscale photo.png -m run/model.safetensors -o out.png --json",
    ],
    # What is wrong
    [""],
    ["--help", "upscale --help", "denoise --help", "train --help", "bench --help"],
    ["nonsense", "upscale photo.png --nonsense", "upscale", "denoise photo.png -s 2"],
    ["upscale missing.png", "upscale in", "upscale photo.png -o photo.png"],
    ["upscale photo.png -o none/out.png", "upscale photo.png -o out.gif"],
    ["upscale in/cut.png", "upscale in/notes.txt", "upscale empty.png"],
    ["upscale - -o - < in/notes.txt", "upscale - < photo.png"],
    ["upscale photo.png -m net1.safetensors", "derain photo.png -m net2.safetensors"],
    ["upscale photo.png -m tiny-x9", "upscale photo.png -m cut.safetensors"],
    ["upscale photo.png -m missing.pth", "denoise photo.png -m tiny-x2"],
    ["upscale photo.png -s 17", "upscale photo.png -s 2 --width 60", "upscale photo.png --width 1"],
    ["upscale photo.png --tile 0", "upscale photo.png --max-pixels 100"],
    ["upscale photo.png --memory-limit 1MB", "upscale photo.png --device cuda"],
    ["denoise photo.png --noise loud", "dejpeg photo.png --jpeg 0 --json"],
    ["models info nonsense", "models pull mambair-light-b-x2", "models remove tiny-x2"],
    ["bench --dataset missing", "bench --dataset empty -s 2", "bench compare in/notes.txt x.json"],
    ["train --recipe tiny-x9 --data set --out run", "train --recipe tiny-x2 --data set"],
    ["train --recipe recipe.toml --data set --out run --set data.pach=3"],
]
IDS = ["; ".join(row) or "nothing" for row in ROWS]

# Of JSON, the values of these are compared; of the others only their types.
VALUES = {
    "arch", "bundled", "channel", "dataset", "dtype", "failed", "frames", "image", "input",
    "level", "levels", "licence", "model", "models", "name", "not_tried", "ok", "output",
    "parameters", "psnr", "scale", "seed", "setting", "size_in", "size_out", "skipped",
    "ssim", "status", "task", "tile", "tiles", "urls", "wrapping",
}  # fmt: skip
RECIPE = """
scale = 2
seed = 1
data = {patch = 10, batch = 3, validation = 1}
optimiser = {lr = 2e-3, betas = [0.9, 0.99], weight_decay = 0.01, clip = 1.0, ema = 0.9}
schedule = {iterations = 2, warmup = 0.1}
[network]
arch = "mambair"
embed_dim = 12
depths = [1]
d_state = 2
expand = 1.0
conv_block = "light_c"
upsampler = "pixelshuffledirect"
"""
BLOCK = "layers.0.residual_group.blocks.0"
# Of a small MambaIR of 12 channels, one block and two states.
SHAPES = {
    "patch_embed.norm.weight": (12,),
    "patch_embed.norm.bias": (12,),
    f"{BLOCK}.skip_scale": (12,),
    f"{BLOCK}.ln_1.weight": (12,),
    f"{BLOCK}.ln_1.bias": (12,),
    f"{BLOCK}.self_attention.x_proj_weight": (4, 5, 12),
    f"{BLOCK}.self_attention.dt_projs_weight": (4, 12, 1),
    f"{BLOCK}.self_attention.dt_projs_bias": (4, 12),
    f"{BLOCK}.self_attention.A_logs": (48, 2),
    f"{BLOCK}.self_attention.Ds": (48,),
    f"{BLOCK}.self_attention.in_proj.weight": (24, 12),
    f"{BLOCK}.self_attention.conv2d.weight": (12, 1, 3, 3),
    f"{BLOCK}.self_attention.conv2d.bias": (12,),
    f"{BLOCK}.self_attention.out_norm.weight": (12,),
    f"{BLOCK}.self_attention.out_norm.bias": (12,),
    f"{BLOCK}.self_attention.out_proj.weight": (12, 12),
    "layers.0.conv.weight": (12, 12, 3, 3),
    "layers.0.conv.bias": (12,),
    "norm.weight": (12,),
    "norm.bias": (12,),
    "conv_after_body.weight": (12, 12, 3, 3),
    "conv_after_body.bias": (12,),
}


def write_net(path, scale, channels=3):
    """A net that gives the picture on, each pixel `scale` x `scale` times, and adds a texture."""
    last = "conv_last" if scale == 1 else "upsample.0"
    shapes = SHAPES | {
        "conv_first.weight": (12, channels, 3, 3),
        "conv_first.bias": (12,),
        f"{last}.weight": (channels * scale**2, 12, 3, 3),
        f"{last}.bias": (channels * scale**2,),
    }
    net = {}
    for key, shape in shapes.items():
        noise = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
        net[key] = noise / np.sqrt(np.prod(shape[1:]))
        if key.endswith("bias"):
            net[key] = 0.1 * noise
        if key.endswith(("norm.weight", "ln_1.weight", "skip_scale", "Ds")):
            net[key] = 1 + 0.1 * noise
    net[f"{BLOCK}.self_attention.A_logs"] += np.log([1, 2])
    net[f"{BLOCK}.self_attention.dt_projs_bias"] -= 3
    net[f"{last}.weight"] *= 0.05
    net[f"{last}.bias"] *= 0.05
    if scale > 1:
        for c in range(channels):
            for key in ("conv_first", "conv_after_body"):
                net[f"{key}.weight"][c] = 0
                net[f"{key}.bias"][c] = 0
            net["conv_first.weight"][c, c, 1, 1] = 1
            net[f"{last}.weight"][c * scale**2 : (c + 1) * scale**2, c, 1, 1] += 1
    safetensors.numpy.save_file({k: v.astype(np.float32) for k, v in net.items()}, path)


def write_scene():
    """Fill the working directory with what the rows name."""
    with PIL.Image.open(HERE / "data" / "photo.png") as image:
        scene = np.asarray(image)
    pixels = scene[60:78, 80:104]
    photo, ramp = PIL.Image.fromarray(pixels), np.linspace(0, 255, 24 * 18).reshape(18, 24)
    deep = pixels.astype(np.uint16) * 257 + np.arange(24, dtype=np.uint16)[:, None]
    profile = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
    exif = PIL.Image.Exif()
    exif.update({271: "a maker", 272: "a camera", 274: 6, 306: "2024:05:06 07:08:09"})
    exif.get_ifd(0x8769)[0x9003] = "2024:05:06 07:08:09"
    exif.get_ifd(0x8825)[1] = "N"
    photo.save("photo.png", dpi=(300, 300))
    PIL.Image.fromarray(np.dstack([pixels, ramp.astype(np.uint8)])).save("alpha.png")
    PIL.Image.fromarray(pixels[..., 1]).save("gray.png")
    PIL.Image.fromarray(deep[..., 1]).save("gray16.png")
    PIL.Image.fromarray(scene[20:60, 30:110]).save("wide.png")
    cv2.imwrite("deep.png", deep[..., ::-1])
    cv2.imwrite("wide16.png", scene[20:60, 30:110, ::-1].astype(np.uint16) * 257)
    tiff = {"photometric": "rgb", "metadata": None, "resolution": (150, 150)}
    tifffile.imwrite("deep.tif", deep, iccprofile=profile, **tiff)
    tifffile.imwrite("float.tif", pixels[..., 1] / np.float32(255), metadata=None)
    photo.quantize(64).save("palette.png")
    photo.save("moving.gif", save_all=True, append_images=[photo.rotate(180)])
    photo.convert("CMYK").save("cmyk.jpg", quality=95, subsampling=0)
    held = {"exif": exif, "icc_profile": profile, "dpi": (300, 300)}
    photo.save("camera.jpg", quality=95, subsampling=0, **held)
    photo.save("lossless.webp", lossless=True, exif=exif, icc_profile=profile)
    noise = np.random.default_rng(0).normal(0, 25, (64, 64, 3))
    noisy = (scene[40:104, 60:124] + noise).round().clip(0, 255).astype(np.uint8)
    PIL.Image.fromarray(noisy).save("noisy.png")
    for folder in ("in/deeper", "set", "empty"):
        Path(folder).mkdir(parents=True)
    photo.crop((0, 0, 16, 12)).save("in/a.png")
    photo.crop((0, 0, 12, 16)).save("in/deeper/b.jpg", quality=95, subsampling=0, **held)
    Path("in/cut.png").write_bytes(Path("photo.png").read_bytes()[:800])
    Path("in/notes.txt").write_text("no image at all\n")
    Path("empty.png").touch()
    for i, name in enumerate(("one", "two", "three")):
        part = scene[20 * i : 20 * i + 32, 30 * i : 30 * i + 36]
        PIL.Image.fromarray(part).save(f"set/{name}.png")
    for scale in (1, 2, 4):
        write_net(f"net{scale}.safetensors", scale)
    write_net("gray1.safetensors", 1, channels=1)
    Path("cut.safetensors").write_bytes(Path("net2.safetensors").read_bytes()[:-100])
    Path("recipe.toml").write_text(RECIPE)


def run(line):
    """Run a command line in this process, without a GPU: what it answers, but for its words."""
    words, streams = shlex.split(line), {}
    for sign in "<>":
        if sign in words:
            at = words.index(sign)
            streams[sign] = words[at + 1]
            del words[at : at + 2]
    data = Path(streams["<"]).read_bytes() if "<" in streams else b""
    stdin, out, err = (io.TextIOWrapper(io.BytesIO(b), "utf-8") for b in (data, b"", b""))
    with ExitStack() as stack:
        for name, value in {"stdin": stdin, "stdout": out, "stderr": err}.items():
            stack.enter_context(patch.object(sys, name, value))
        stack.enter_context(patch.object(sys, "argv", ["mambair", *words]))
        stack.enter_context(patch.dict(os.environ, MAMBAIR_HOME="home", COLUMNS="300"))
        for target in ("torch.cuda.is_available", "torch.backends.mps.is_available"):
            stack.enter_context(patch(target, return_value=False))
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        for stream in (out, err):
            stream.flush()
    texts = [stream.buffer.getvalue() for stream in (out, err)]
    if ">" in streams:
        Path(streams[">"]).write_bytes(texts[0])
    answer = {"code": code, "stdout": bool(texts[0]), "stderr": bool(texts[1])}
    if "--json" in words:
        answer["json"] = next((shape(found) for text in texts for found in objects(text)), None)
    elif words and words[-1] in ("--help", "--list"):
        text = re.sub(r"\x1b\[[\d;?]*\w", "", texts[0].decode())
        pattern = r"^[^\w-]*((?:--)?\w[\w-]*)  +(-\w\b)?"
        found = re.findall(pattern, text, re.MULTILINE)
        answer["names"] = sorted({" ".join(filter(None, names)) for names in found})
    return answer


def objects(text):
    """The JSON in what a stream got, a line each."""
    for line in text.splitlines():
        if line[:1] in (b"{", b"["):
            yield json.loads(line)


def shape(found, key="", exact=True):
    """JSON with types in place of the values that are not compared."""
    if isinstance(found, dict):
        if found.get("bundled"):
            # What else it holds may change when it is trained anew.
            changing = set(found) - {"name", "task", "scale", "licence", "bundled"}
            return {k: "<any>" if k in changing else shape(v, k) for k, v in found.items()}
        exact = exact and key not in ("better", "key")
        return {k: shape(v, k, exact) for k, v in found.items()}
    if isinstance(found, list):
        return [shape(v, key, exact) for v in found]
    if exact and key in VALUES:
        return found.replace("\\", "/") if isinstance(found, str) else found
    kinds = {bool: "bool", int: "number", float: "number", str: "text", type(None): "null"}
    return f"<{kinds[type(found)]}>"


def held(path):
    """What a file holds, but for its pixels."""
    suffix = path.suffix
    if suffix == ".json":
        return shape(json.loads(path.read_bytes()))
    if suffix == ".jsonl":
        return [shape(line) for line in objects(path.read_bytes())]
    if suffix == ".csv":
        return {"names": path.read_text("utf-8").splitlines()[0].split(",")}
    if suffix == ".safetensors":
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        notes = header.pop("__metadata__", {})
        return {"metadata": sorted(notes), "tensors": {k: v["shape"] for k, v in header.items()}}
    if suffix not in (".png", ".jpg", ".tif", ".tiff", ".webp", ".bmp"):
        return {}
    with PIL.Image.open(path) as image:
        exif, info = image.getexif(), image.info
        tags = {f"{tag}": str(exif[tag]) for tag in (271, 272, 274, 306) if tag in exif}
        for ifd in (0x8769, 0x8825):
            tags |= {f"{ifd} {tag}": str(value) for tag, value in exif.get_ifd(ifd).items()}
        facts = {"format": image.format, "mode": image.mode, "exif": tags}
        facts["icc"] = len(info.get("icc_profile") or b"")
        facts["dpi"] = [round(float(value)) for value in info.get("dpi", ())]
    samples = pixels_in(path)
    return facts | {"shape": list(samples.shape), "dtype": str(samples.dtype)}


def pixels_in(path):
    """(H,W) or (H,W,C) as the file has them."""
    if path.suffix == ".png":
        return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if path.suffix in (".tif", ".tiff"):
        return tifffile.imread(path)
    with PIL.Image.open(path) as image:
        return np.asarray(image)


def samples_of(path):
    """At most 4000 of a file's samples."""
    flat = pixels_in(path).ravel()
    return flat[np.linspace(0, len(flat) - 1, min(4000, len(flat))).astype(int)]


def outcome(row):
    """What a row answers and leaves in a new copy of the scene, and samples of the pixels."""
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    answers, files, samples = [run(line) for line in row], {}, {}
    by_own_net = any(re.search(r"-m (net|gray|my-)", line) for line in row)
    # The lock of a manifest is no result.
    left = [
        path for path in Path().rglob("*") if path.is_file() and path.name != ".mambair.jsonl.lock"
    ]
    for path in sorted(left):
        if before.pop(path, None) != path.read_bytes():
            files[path.as_posix()] = held(path)
            if by_own_net and "dtype" in files[path.as_posix()]:
                samples[path.as_posix()] = samples_of(path)
    gone = [path.as_posix() for path in before if not path.is_file()]
    return {"answers": answers, "files": files, "gone": gone}, samples


def differences(recorded, found, where=""):
    """What is no more as it was, a line each; new keys, names and models are no difference."""
    if isinstance(recorded, dict) and isinstance(found, dict):
        for key, value in recorded.items():
            if key in found:
                yield from differences(value, found[key], f"{where}/{key}")
            else:
                yield f"{where}/{key} is gone"
    elif isinstance(recorded, list) and isinstance(found, list):
        if where.endswith("/names"):
            yield from (f"{where}: {name} is gone" for name in recorded if name not in found)
        elif labelled(recorded) and labelled(found):
            yield from differences(labelled(recorded), labelled(found), where)
        elif len(recorded) != len(found):
            yield f"{where}: {len(found)} elements, not {len(recorded)}"
        else:
            for i, (old, new) in enumerate(zip(recorded, found, strict=True)):
                yield from differences(old, new, f"{where}/{i}")
    elif isinstance(recorded, float) and isinstance(found, (int, float)):
        if abs(found - recorded) > 0.0005 * abs(recorded):
            yield f"{where}: {found}, not {recorded}"
    elif recorded not in (found, "<null>"):
        yield f"{where}: {found!r}, not {recorded!r}"


def labelled(values):
    """A list of models or of files by their names, as several threads finish in any order."""
    for key in ("name", "input"):
        if all(isinstance(value, dict) and key in value for value in values):
            return {value[key]: value for value in values}
    return {}


def differing(recorded, found, lossy):
    """How samples differ by more than errors of 1e-4 before rounding; empty where they do not."""
    if (recorded.shape, recorded.dtype) != (found.shape, found.dtype):
        return f"{found.shape} of {found.dtype}, not {recorded.shape} of {recorded.dtype}"
    white = {"uint8": 255, "uint16": 65535, "float32": 1}[str(recorded.dtype)]
    off = np.abs(found.astype(float) - recorded.astype(float)) / white
    # Such errors flip the rounding of 2.5 % of 8-bit samples, each by one; compression with losses
    # spreads each over the pixels around.
    step, most = (4 / 255, 0.1) if lossy else (1 / white, 0.03)
    share = (off > 1e-4).mean()
    if off.max() > step + 1e-4 or share > most:
        return f"{share:.2%} are off, the worst by {off.max() * 255:.2f} of 255"
    return ""


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A folder of all that the rows name."""
    folder = tmp_path_factory.mktemp("scene")
    with pytest.MonkeyPatch.context() as patching:
        patching.chdir(folder)
        write_scene()
    return folder


@pytest.fixture(scope="module")
def recorded():
    """The outcomes of the rows, and samples of the pixels by row and file."""
    return json.loads(FACTS.read_text("utf-8")), dict(np.load(SAMPLES))


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_row(row, scene, recorded, tmp_path, monkeypatch):
    shutil.copytree(scene, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    name = IDS[ROWS.index(row)]
    facts, samples = outcome(row)
    assert not list(differences(recorded[0][name], facts))
    assert sorted(facts["files"]) == sorted(recorded[0][name]["files"])
    for path, found in samples.items():
        lossy = path.endswith((".jpg", ".webp"))
        assert not differing(recorded[1][f"{name}: {path}"], found, lossy), path


def test_the_recording_has_these_rows(recorded):
    assert list(recorded[0]) == IDS


CHANGES = {
    "an exit code": lambda facts: facts["answers"][0].update(code=1),
    "nothing on stdout": lambda facts: facts["answers"][0].update(stdout=False),
    "a key": lambda facts: facts["answers"][0]["json"].pop("seconds"),
    "a type": lambda facts: facts["answers"][0]["json"].update(seconds="<text>"),
    "a value": lambda facts: facts["answers"][0]["json"].update(size_out=[36, 47]),
    "a tag": lambda facts: facts["files"]["camera_x2.jpg"]["exif"].pop("271"),
    "the resolution": lambda facts: facts["files"]["camera_x2.jpg"].update(dpi=[300, 72]),
    "a file": lambda facts: facts["files"].clear(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_changes_is_seen(recorded, change):
    name = "upscale camera.jpg -m net2.safetensors --json"
    facts = json.loads(json.dumps(recorded[0][name]))
    assert not list(differences(recorded[0][name], facts))
    change(facts)
    assert len(list(differences(recorded[0][name], facts))) == 1


def test_what_is_new_is_no_change(recorded):
    facts = json.loads(json.dumps(recorded[0]))
    for row in facts.values():
        for answer in row["answers"]:
            if isinstance(answer.get("json"), dict):
                answer["json"]["new"] = 1
            if "names" in answer:
                answer["names"].append("--new")
    assert facts != recorded[0]
    assert not list(differences(recorded[0], facts))


@pytest.mark.parametrize("file", ["deep.png", "photo.png"])
def test_other_pixels_are_seen(recorded, file):
    was = recorded[1][f"upscale {file} -m net2.safetensors -o out.png --json: out.png"]
    white = np.iinfo(was.dtype).max
    one, darker = was.copy(), was.clip(white // 255) - white // 255
    one[100] = white - one[100]
    for other in (one, darker, was[::-1], was[:-1], was.astype(np.float32)):
        assert differing(was, other, lossy=False)
    assert differing(was, darker, lossy=True)


@pytest.mark.parametrize("file", ["deep.png", "photo.png"])
def test_errors_of_another_processor_are_none(recorded, file):
    was = recorded[1][f"upscale {file} -m net2.safetensors -o out.png --json: out.png"]
    white, random = np.iinfo(was.dtype).max, np.random.default_rng(0)
    before_rounding = was + random.uniform(-0.5, 0.5, was.shape)
    error = random.uniform(-1e-4, 1e-4, was.shape) * white
    found = (before_rounding + error).round().clip(0, white).astype(was.dtype)
    assert (found != was).any()
    assert not differing(was, found, lossy=False)


def record():
    """Write down what the rows answer now."""
    facts, samples = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for row, name in zip(ROWS, IDS, strict=True):
            place = Path(folder, f"{len(facts)}")
            place.mkdir()
            os.chdir(place)
            write_scene()
            facts[name], found = outcome(row)
            samples |= {f"{name}: {path}": pixels for path, pixels in found.items()}
        os.chdir(HERE)
    FACTS.parent.mkdir(exist_ok=True)
    lines = (f"{json.dumps(name)}: {json.dumps(fact)}" for name, fact in facts.items())
    FACTS.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
    np.savez_compressed(SAMPLES, **samples)


if __name__ == "__main__" and sys.argv[1:] == ["--record"]:
    record()

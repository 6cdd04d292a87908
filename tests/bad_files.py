"""Files that no command can use; shared by tests."""

import io
import pickle
from pathlib import Path

import PIL.Image
import torch
from calls import DEEP, PHOTO, jpeg
from safetensors.torch import load_file, save_file

from mambair_cli.images.io import Image, write_image
from mambair_cli.models.weights import bundled_folder

EVIL = (Path.touch, (Path("pwned"),))


class Evil:
    """A pickle of it calls `Path.touch`, which the tests see by the file `pwned`."""

    def __reduce__(self):
        return EVIL


def write_bad_files(bad):
    """Fill a folder with them, beside photo.png."""
    write_image(bad / "photo.png", Image(PHOTO))
    write_image(bad / "deep.png", Image(DEEP))
    (bad / "photo.jpg").write_bytes(jpeg(PIL.Image.fromarray(PHOTO)))
    PIL.Image.new("L", (9000, 1)).save(bad / "line.png")
    for name in ("photo.png", "deep.png", "photo.jpg"):
        data = (bad / name).read_bytes()
        (bad / f"cut {name}").write_bytes(data[: len(data) * 2 // 3])
    (bad / "text.png").write_text("no image at all\n")
    for name in ("zero.png", "zero.pth", "zero.safetensors"):
        (bad / name).touch()
    for name in ("folder.png", "folder.pth", "empty"):
        (bad / name).mkdir()
    (bad / "soft.png").symlink_to("photo.png")
    (bad / "hard.png").hardlink_to(bad / "photo.png")
    other = {"features.weight": torch.ones(3, 3)}
    torch.save(other, bad / "other.pth")
    save_file(other, bad / "other.safetensors")
    torch.save([1, 2], bad / "list.pth")
    (bad / "text.pth").write_text("no checkpoint at all\n")
    (bad / "text.safetensors").write_text("no checkpoint at all\n")
    weights = (bundled_folder() / "tiny-x2.safetensors").read_bytes()
    (bad / "cut.safetensors").write_bytes(weights[:-100])
    saved = io.BytesIO()
    torch.save(load_file(bundled_folder() / "tiny-x2.safetensors"), saved)
    (bad / "cut.pth").write_bytes(saved.getvalue()[:-5000])
    torch.save({"params": {"conv_first.weight": Evil()}}, bad / "evil.pth")
    torch.save({"params": Evil()}, bad / "evil old.pth", _use_new_zipfile_serialization=False)
    for protocol in (0, 2, 4):
        (bad / f"evil {protocol}.pth").write_bytes(pickle.dumps({"params": Evil()}, protocol))
    (bad / "evil.safetensors").write_bytes(pickle.dumps({"params": Evil()}))
    (bad / "recipe.toml").write_text("scale = 2\n")

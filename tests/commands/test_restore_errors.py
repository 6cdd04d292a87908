"""`mambair upscale` with bad input: one line, the exit code, and nothing else has changed."""

import errno
import io
import os
import pickle
from pathlib import Path

import pytest
from calls import LONG, check_bad, contents, each_call, fails, run

from mambair_cli.images import io as image_io
from mambair_cli.images.io import OUTPUT_SUFFIXES
from mambair_cli.restore.restorer import Restorer

UPSCALE = [  # options after `upscale photo.png -o out.png`; exit code, words of the message
    ("-s 17", 2, "--scale", "mambair upscale --help"),
    ("-s 0.9", 2, "--scale"),
    ("-s nan", 2, "scale"),
    ("-s 2 --width 100", 2, "--scale", "--width"),
    ("--width 0", 2, "--width"),
    ("--width 10", 1, "photo.png: is 24x18, and 10x8 is smaller"),
    ("--height 2000", 1, "photo.png", "is too large; give a size of at most 384x288"),
    ("--memory-limit much", 2, "--memory-limit", "'much'", "4GB"),
    ("--memory-limit 1MB", 1, "memory"),
    ("--alpha sharp", 2, "--alpha", "bicubic"),
    ("--max-pixels 100", 1, "photo.png", "--max-pixels"),
    ("--max-pixels 0", 2, "--max-pixels"),
    ("-s two", 2, "--scale", "not a number"),
    ("-s", 2, "-s"),
    ("-m tiny-x9", 2, "'tiny-x9'", "did you mean 'tiny-x"),
    ("-m nonsense", 2, "'nonsense'", "mambair models list"),
    ("-m missing.pth", 2, "missing.pth is missing"),
    ("-m folder.pth", 2, "folder.pth is a folder"),
    ("-m empty", 2, "empty is a folder"),
    (f"-m {LONG}", 2, LONG),
    ("-m zero.pth", 1, "zero.pth"),
    ("-m zero.safetensors", 1, "zero.safetensors"),
    ("-m text.pth", 1, "text.pth", "checkpoint"),
    ("-m text.safetensors", 1, "text.safetensors", "safetensors"),
    ("-m photo.png", 1, "photo.png", "checkpoint"),
    ("-m list.pth", 1, "list.pth", "state dict"),
    ("-m cut.pth", 1, "cut.pth"),
    ("-m cut.safetensors", 1, "cut.safetensors"),
    ("-m other.pth", 1, "other.pth", "another architecture"),
    ("-m other.safetensors", 1, "other.safetensors", "another architecture"),
    ("-m evil.pth", 1, "evil.pth", "could run code", "state_dict"),
    ("-m evil old.pth", 1, "evil old.pth", "could run code"),
    ("-m evil 0.pth", 1, "evil 0.pth"),
    ("-m evil 2.pth", 1, "evil 2.pth", "could run code"),
    ("-m evil 4.pth", 1, "evil 4.pth", "could run code"),
    ("-m evil.safetensors", 1, "evil.safetensors"),
    ("--tile none", 2, "--tile", "auto, off", "'none'"),
    ("--tile 0", 2, "--tile", "'0'"),
    ("--tile -8", 2, "--tile", "'-8'"),
    ("--tile 32", 2, "--tile-overlap", "larger than the overlap of 32"),
    ("--tile-overlap -1", 2, "--tile-overlap"),
    ("--tile_overlap x", 2, "--tile-overlap"),
    ("--device tpu", 2, "'tpu'", "auto, cpu, cuda"),
    ("--device cuda:x", 2, "'cuda:x'"),
    ("--device cuda", 1, "'cuda'", "try --device cpu"),
    ("--device mps", 1, "'mps'", "try --device cpu"),
    ("--backend mamba", 2, "--backend", "'mamba'", "'auto'", "'numba'", "reference"),
    ("--nonsense", 2, "--nonsense", "mambair upscale --help"),
    ("extra.png", 2, "extra.png"),
]


@pytest.mark.parametrize(("options", "code", "words"), [(o, c, w) for o, c, *w in UPSCALE])
def test_bad_options_of_upscale(call, bad, options, code, words):
    split = options.split(
        " ", 1 if options.startswith("-m") else -1
    )  # names of models may hold spaces
    check_bad(call, bad, ["upscale", "photo.png", "-o", "out.png", *split], code, words)


@each_call(
    ("upscale", 2, "INPUT", "mambair upscale --help"),
    ("upscale  missing.png", 2, "missing.png: no such file", "check the path"),
    ("upscale  text.png/x.png", 2, "text.png/x.png: no such file"),
    ("upscale  empty", 2, "empty: is a folder", "with -o"),
    ("upscale  .", 2, ".: is a folder"),
    ("upscale  text.png", 1, "text.png: not an image", "convert it"),
    ("upscale  zero.png", 1, "zero.png: the file is empty", "fetch or export it again"),
    ("upscale  cut photo.png", 1, "cut photo.png: damaged", "fetch or export it again"),
    ("upscale  cut deep.png", 1, "cut deep.png: damaged"),
    ("upscale  cut photo.jpg", 1, "cut photo.jpg: damaged"),
    (f"upscale  {LONG}.png", 1, f"{LONG}.png", "too long"),
    ("upscale  photo.png  -o  none/out.gif", 2, "none/out.gif: unknown suffix '.gif'"),
    ("upscale  photo.png  -o  text.png/a/out.png", 2, "text.png is a file, not a folder"),
    (
        "upscale  photo.png  -o  text.png/out.png",
        2,
        "text.png/out.png: text.png is a file, not a folder",
    ),
    ("upscale  empty  -o  out.png", 2, "out.png: looks like a file", "add a slash"),
    ("upscale  photo.png  --width  60  --exact", 2, "--exact needs both --width and --height"),
    ("upscale  photo.png  -o  photo.jpg/", 2, "photo.jpg: is a file", "name a folder"),
    (f"upscale  photo.png  -o  {LONG}.png", 1, f"{LONG}.png", "too long"),
    ("upscale  photo.png  -o  photo.png", 2, "photo.png: is the input itself", "another -o"),
    ("upscale  photo.png  -o  empty/../photo.png", 2, "photo.png: is the input itself"),
    ("upscale  photo.png  -o  soft.png", 2, "soft.png: is the input itself"),
    ("upscale  photo.png  -o  hard.png", 2, "hard.png: is the input itself"),
    ("upscale  soft.png  -o  photo.png", 2, "photo.png: is the input itself"),
    ("upscale  photo.png  -o  out.gif", 2, "out.gif: unknown suffix '.gif'", *OUTPUT_SUFFIXES),
    ("upscale  photo.png  -o  out", 2, "out: unknown suffix"),
    ("upscale  line.png  -s  2  -o  out.webp", 2, "out.webp: WebP ends at 16383", "use .png"),
)
def test_bad_calls(call, bad, line, code, words):
    check_bad(call, bad, line.split("  "), code, words)


def test_the_malicious_pickle_would_run(bad_files, folder):
    pickle.loads((bad_files / "evil 2.pth").read_bytes())
    assert Path("pwned").is_file()
    assert not (bad_files / "pwned").exists()


def test_a_malicious_pickle_in_the_real_program(bad):
    check_bad(
        run, bad, ["upscale", "photo.png", "-m", "evil 4.pth"], 1, ["evil 4.pth", "could run code"]
    )


def test_an_output_that_cannot_be_created(call, folder, monkeypatch):
    if Path("/proc/self").is_dir():  # whose files not even root can create
        fails(call("upscale", "photo.png", "-s", 2, "-o", "/proc/out.png"), 1, "/proc/out.png: ")
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.R_OK)
    fails(call("upscale", "photo.png", "-s", 2, "-o", "out.png"), 1, "out.png: no permission")
    Path("out.png").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.R_OK or path == folder)
    fails(call("upscale", "photo.png", "-s", 2, "-o", "out.png"), 1, "out.png: is write-protected")
    assert Path("out.png").read_bytes() == b""


def test_bad_outputs_are_found_before_the_work(call, bad, monkeypatch):
    def never(*arguments, **options):
        raise AssertionError

    monkeypatch.setattr("mambair_cli.restore.upscaler.load_restorer", never)
    for output in ("text.png/out.png", "photo.jpg/", "photo.png", "out.gif"):
        assert call("upscale", "photo.png", "-o", output)[0] == 2


# Failures and interrupts on the way


@pytest.mark.parametrize("existing", [None, b"old"], ids=["new", "existing"])
@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, ["mambair: interrupted\n"]),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            1,
            ["out.png: cannot be written: No space left"],
        ),
    ],
    ids=["interrupt", "full disk"],
)
@pytest.mark.parametrize("place", ["read", "network", "encode", "write", "replace"])
def test_an_output_is_there_whole_or_not_at_all(
    call, folder, monkeypatch, existing, error, code, words, place
):
    if existing:
        Path("out.png").write_bytes(existing)
    before = contents(folder)

    def fail(*arguments, **options):
        raise error

    class FullDisk(io.FileIO):
        write = fail

    def open_full(path, mode="r", *rest, original=Path.open, **options):
        return FullDisk(path, mode) if mode == "xb" else original(path, mode, *rest, **options)

    monkeypatch.setattr(
        *{
            "read": (image_io, "read_file", fail),
            "network": (Restorer, "restore", fail),
            "encode": (image_io.PIL.Image.Image, "save", fail),
            "write": (Path, "open", open_full),
            "replace": (Path, "replace", fail),
        }[place]
    )
    result = call("upscale", "photo.png", "-s", 2, "-o", "out.png")
    monkeypatch.undo()
    if code == 1 and place in ("read", "network", "encode"):
        words = ["No space left on device"]
    fails(result, code, *words)
    assert contents(folder) == before

"""`mambair upscale` of folders and in pipes, mostly with the stand-in for networks."""

import io
import json
import logging
import re
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest
from calls import TAIL, fails, program
from doubler import Doubler, doubled
from folders import files_in, full_disk, make, pixels_of

from mambair_cli.batch import pipeline, restore_files
from mambair_cli.batch.manifest import MANIFEST
from mambair_cli.batch.rates import keep_rate
from mambair_cli.images.io import Image, read_image
from mambair_cli.models.catalog import model_named
from mambair_cli.restore import upscaler
from mambair_cli.restore.condition import Finding

pytestmark = pytest.mark.usefixtures("empty_folder")


@pytest.fixture(autouse=True)
def no_rates(tmp_path_factory, monkeypatch):
    """Nothing is known of the speed of this machine."""
    monkeypatch.setenv("MAMBAIR_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture
def call(call, monkeypatch):
    """As `call`, with the stand-in for networks."""

    def call_with_stand_in(*arguments, restorer=None):
        stand_in = restorer or Doubler()

        def upscaler_of(choice, options):
            stand_in.choice = choice
            return stand_in

        monkeypatch.setattr(upscaler, "Upscaler", upscaler_of)
        return call(*arguments)

    return call_with_stand_in


def test_the_summary(call):
    make("in/a.png", "in/b.png")
    code, out, err = call("upscale", "in", "-o", "out", "-s", 2)
    assert (code, err) == (0, "")
    assert re.fullmatch(f"out: 2 restored, 0.0 megapixels; tiny-x2, {TAIL}", out)
    Path("in/two\nlines.png").write_text("no image")
    code, out, err = call("upscale", "in", "-o", "out", "-s", 2)
    assert code == 1
    assert (
        err
        == "mambair: in/two\\nlines.png: not an image that can be read; convert it to PNG or JPEG\n"
    )
    assert re.fullmatch(f"out: 2 skipped as finished, 1 failed; tiny-x2, {TAIL}", out)


def test_what_would_have_been_better_is_said_of_whole_runs(call, monkeypatch, caplog):
    make("in/a.png", "in/b.png")
    facts = json.loads(call("upscale", "in", "-o", "out", "-s", 2, "--json")[1])
    assert facts["better"]["model"] == "mambair-light-c-x2"
    facts = json.loads(call("upscale", "in", "-o", "out", "-s", 2, "--json")[1])
    assert (facts["skipped"], facts["better"]) == (2, None)
    better = {
        "model": "large",
        "here": True,
        "gain": 1.25,
        "dataset": "Set14",
        "scale": 2,
        "seconds": 72000,
    }
    monkeypatch.setattr(restore_files, "_better", lambda *_: better)
    with caplog.at_level(logging.INFO):
        call("upscale", "in", "-o", "out", "-s", 2)
    assert "1.2 dB better on Set14 x2: -m large, about 20 h 0 min" in caplog.text


def test_json(call):
    make("in/a.png")
    Path("in/b.png").touch()
    code, out, err = call("upscale", "in", "-o", "out", "-s", 2, "--json")
    assert code == 1
    assert "b.png: the file is empty" in err
    facts = json.loads(out)
    good, bad = facts.pop("files")
    assert facts["better"].pop("seconds") >= facts.pop("seconds") > 0
    light, tiny = (model_named(name).scores[0].psnr for name in ("mambair-light-c-x2", "tiny-x2"))
    gain = pytest.approx(light - tiny, abs=0.005)
    assert facts == {
        "output": "out", "ok": 1, "skipped": 0, "failed": 1, "not_tried": 0,
        "passed_over": 0, "scale": 2, "model": "tiny-x2", "backend": "numba", "device": "cpu",
        "better": {"model": "mambair-light-c-x2", "here": False, "gain": gain, "dataset": "Set5", "scale": 2},
    }  # fmt: skip
    bad, good = sorted((good, bad), key=lambda record: record["status"])
    assert good.pop("seconds") > 0
    assert good == {
        "input": "in/a.png", "output": "out/a.png", "status": "ok", "size_in": [16, 16], "size_out": [32, 32],
        "tiles": 1, "level": None, "seen": "", "why": "", "left": None, "models": ["tiny-x2"],
        "memory": None, "error": None, "notes": [],
    }  # fmt: skip
    assert bad["error"] in err
    assert (
        json.loads(call("upscale", "in/a.png", "-o", "out/", "-s", 2, "--json")[1])["skipped"] == 1
    )
    assert (
        json.loads(call("upscale", "in/a.png", "-o", "out/", "-s", 2, "--json", "--overwrite")[1])[
            "ok"
        ]
        == 1
    )


def test_every_kind_of_image_is_found_and_the_rest_is_counted(call):
    names = ("A.HIF", "b.mpo", "c.qoi", "d.JIF", "e.jpx", "f.pcx", "g.SGI", "h.dds", "i.TGA")
    names = (*names, "j.JP2", "k.hdr", "l.pfm", "m.pam", "n.jxl")
    Path("in/sub").mkdir(parents=True)
    for name in names:
        Path("in", name).touch()
    for name in ("notes.txt", "sub/raw.nef", ".hidden.txt"):
        Path("in", name).write_text("no image")
    code, out, _ = call("upscale", "in", "-o", "out", "-s", 2, "--json")
    facts = json.loads(out)
    assert (code, facts["failed"], facts["passed_over"]) == (1, len(names), 2)
    assert {Path(file["input"]).name for file in facts["files"]} == set(names)
    assert ", 2 not images; " in call("upscale", "in", "-o", "out", "-s", 2)[1]


def test_what_decides_whether_a_result_is_finished(call):
    make("in/a.png")
    for options, done in [
        (["-s", 2, "--degradation", "bicubic"], "ok"),
        (["-m", "tiny-x2"], "skipped"),
        (["-m", "tiny-x2", "--tile", 64, "--device", "cpu"], "skipped"),
        (["-m", "tiny-x4", "-s", 2], "ok"),
        (["-m", "tiny-x4"], "ok"),
        (["-s", 4, "--degradation", "bicubic"], "skipped"),
        (["-s", 4], "ok"),
        (["-s", 4, "--degradation", "auto"], "skipped"),
    ]:
        assert json.loads(call("upscale", "in", "-o", "out", "--json", *options)[1])[done] == 1


def test_options_of_names(call):
    make("in/a.png", "in/b.bmp")
    assert (
        call(
            "upscale",
            "in",
            "-o",
            "out",
            "-s",
            2,
            "--format",
            "webp",
            "--suffix",
            "_big",
            "--glob",
            "a*",
        )[0]
        == 0
    )
    assert files_in() == [MANIFEST, "a_big.webp"]
    assert call("upscale", "in/a.png", "-s", 2, "--format", "tiff")[0] == 0
    assert call("upscale", "in/a.png", "-s", 2, "--suffix", "-big")[0] == 0
    assert files_in("in") == ["a-big.png", "a.png", "a_x2.tiff", "b.bmp"]
    code, out, err = call("upscale", "in", "-o", "in", "-s", 2)
    assert (code, out) == (2, "")
    assert err.startswith("mambair: in: is the folder of the inputs as well")


def test_a_width_that_some_files_exceed(call):
    make("in/a.png")
    make("in/b.png", size=64)
    code, out, err = call("upscale", "in", "-o", "out", "--width", 32)
    assert code == 1
    assert err == (
        "mambair: in/b.png: is 64x64, and 32x32 is smaller; give a size of at least 64x64\n"
    )
    assert out.startswith("out: 1 restored, 1 failed, 0.0 megapixels; ")


def test_what_was_finished_otherwise_is_restored_again(call):
    make("in/a.png")
    options = [
        (),
        ("-s", 3),
        ("-s", 1.5),
        ("--width", 32),
        ("--height", 32),
        ("--width", 32, "--height", 32),
        ("--width", 32, "--height", 32, "--exact"),
    ]
    options += [("--ensemble",), ("--alpha", "bicubic"), ("--quality", 50), ("-m", "tiny-x2")]
    for asked in options:
        for status in ("ok", "skipped"):
            facts = json.loads(call("upscale", "in", "-o", "out", *asked, "--json")[1])
            assert facts[status] == 1, (asked, status)
    assert (
        json.loads(call("upscale", "in", "-o", "out", "-s", 2, "-m", "tiny-x2", "--json")[1])[
            "skipped"
        ]
        == 1
    )


def test_notes_are_said(call):
    PIL.Image.fromarray(pixels_of(0)).save(
        "a.png",
        icc_profile=PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes(),
    )
    make("b.png")
    restorer = Doubler()
    restorer.restore_image = lambda image, *rest: Image(
        doubled(image.pixels), icc_profile=image.icc_profile
    )
    code, _, err = call(
        "upscale", "a.png", "b.png", "-o", "out", "--format", "bmp", restorer=restorer
    )
    assert code == 0
    assert re.fullmatch(r"mambair: out/a\.bmp: BMP has no [^\n]*colour profile[^\n]*\n", err)


def test_an_interrupted_command_says_what_is_done(call):
    def at_work(image):
        if image.pixels.tobytes() == pixels_of(1).tobytes():
            raise KeyboardInterrupt

    make(*(f"in/{i}.png" for i in range(5)))
    code, out, err = call("upscale", "in", "-o", "out", "-s", 2, restorer=Doubler(at_work))
    assert (code, err) == (130, "mambair: interrupted\n")
    assert out.startswith("out: 1 restored, 4 not tried, 0.0 megapixels; ")
    code, out, err = call(
        "upscale", "in", "-o", "out", "-s", 2, "--json", restorer=Doubler(at_work)
    )
    assert (code, err) == (130, "mambair: interrupted\n")
    facts = json.loads(out)
    assert (facts["skipped"], facts["ok"], facts["not_tried"]) == (1, 0, 4)


def test_a_full_disk_in_the_command(call, monkeypatch):
    make("a.png", "b.png", "c.png")
    monkeypatch.setattr(Path, "replace", full_disk)
    code, _, err = call("upscale", "a.png", "b.png", "c.png", "-o", "out")
    assert code == 1
    assert "mambair: out/a.png: cannot be written: No space left on device\n" in err
    assert err.endswith(
        "mambair: stopped, as nothing more can be written; make room and run it again\n"
    )
    assert files_in() == [MANIFEST]


def test_a_folder_ends_with_what_was_found_in_words(call, monkeypatch):
    make(*(f"in/{name}.png" for name in "abcd"))
    found = {0: "noisy", 1: "noisy", 2: "compressed", 3: "clean"}
    seen = {pixels_of(seed).tobytes(): kind for seed, kind in found.items()}
    restorer = Doubler()
    restorer.measure = lambda image: Finding(seen[image.pixels.tobytes()], "looks so")
    monkeypatch.setattr(pipeline, "advice", lambda result, *_: "still looks `noisy=x`")
    code, out, err = call("upscale", "in", "-o", "out", "-s", 2, restorer=restorer)
    assert (code, err) == (0, "")
    assert out.splitlines()[-2:] == [
        "2 of 4 looked noisy, 1 compressed: restored with tiny-x2",
        "4 results may need more, such as out/a.png: it still looks --noisy x",
    ]
    facts = json.loads(call("upscale", "in", "-o", "out", "-s", 2, "--json", restorer=restorer)[1])
    assert [file["seen"] for file in facts["files"]] == [found[i] for i in range(4)]
    code, out, err = call("upscale", "in/a.png", "-o", "a.png", "-s", 2, restorer=restorer)
    assert ", looks so: tiny-x2, numba" in out
    assert err == "mambair: a.png: still looks --noisy x\n"
    code, out, err = call("upscale", "in/a.png", "-o", "a.png", "-s", 2, "-q", restorer=restorer)
    assert (code, err) == (0, "")


def test_a_dry_run_writes_nothing(call):
    make("in/a.png", "in/b.png")
    call("upscale", "in", "-o", "out", "-s", 2, "--glob", "a*")
    Path("in/c.png").touch()
    before = files_in(".")
    restorer = Doubler(pytest.fail)
    line = ["upscale", "in", "-o", "out", "-s", 2, "--dry-run"]
    code, out, err = call(*line, restorer=restorer)
    assert (code, files_in(".")) == (1, before)
    assert err == "mambair: in/c.png: the file is empty; fetch or export it again\n"
    rows = [line.split() for line in out.splitlines()]
    assert [row[:2] for row in rows[1:4]] == [
        ["skipped", "in/a.png"], ["planned", "in/b.png"], ["failed", "in/c.png"]
    ]  # fmt: skip
    assert rows[2][2:6] == ["out/b.png", "16x16", "32x32", "tiny-x2"]
    assert out.endswith(
        "1 of 3 would be restored; time: unknown on this machine; nothing was written\n"
    )
    keep_rate("tiny-x2", "numba", "cpu", 25_600, 100.0)
    facts = json.loads(call(*line, "--json", restorer=restorer)[1])
    assert [file["status"] for file in facts["files"]] == ["skipped", "planned", "failed"]
    assert facts["expected"] == pytest.approx(1.0)
    assert facts["files"][1]["memory"] == 1000
    code, out, err = call("upscale", "in/b.png", "-o", "new/b.png", "--dry-run", restorer=restorer)
    assert (code, err, files_in(".")) == (0, "", before)
    fails(
        call("upscale", "in/c.png", "--dry-run", restorer=restorer), 1, "c.png: the file is empty"
    )


def test_shards(call, monkeypatch):
    names = [f"{i}.png" for i in range(6)]
    make(*(f"in/{name}" for name in names))
    line = ["upscale", "in", "-o", "out", "-s", 2, "--json"]
    first = json.loads(call(*line, "--shard", "1/2")[1])
    assert (first["ok"], first["not_tried"]) == (3, 0)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "1")
    code, out, err = call(*line)
    assert (code, json.loads(out)["ok"]) == (0, 3)
    assert err == "mambair: 3 of 6 files are part 2/2 of Slurm's array; --shard 1/1 takes all\n"
    assert json.loads(call(*line, "--shard", "1/1")[1])["skipped"] == 6
    # a single file is no folder to share
    assert call("upscale", "in/0.png", "-o", "0.png", "-s", 2)[0] == 0
    fails(
        call("upscale", "in/0.png", "-o", "0.png", "--shard", "1/2"), 2, "--shard is a part of many"
    )
    fails(call(*line[:-1], "--shard", "3/2"), 2, "--shard is a part such as 1/4", "'3/2'")


def test_a_shard_without_files(call):
    make("in/a.png")
    parts = [call("upscale", "in", "-o", "out", "-s", 2, "--shard", f"{i}/3") for i in (1, 2, 3)]
    assert [code for code, *_ in parts] == [0, 0, 0]
    assert sum(out.endswith("/3 has no files\n") for _, out, _ in parts) == 2
    assert [name for name in files_in() if name.endswith("png")] == ["a.png"]


def test_no_secret_of_an_address_is_shown(call):
    for address in ("ftp://me:secret@host/a.png", "https://me:secret@host/a.png?key=secret"):
        code, out, err = call("upscale", address, "-o", "a.png")
        assert (code, out) == (2, "")
        assert "secret" not in err


def test_a_long_run_says_how_long_it_takes(call):
    make("in/a.png", "in/b.png")
    keep_rate("tiny-x2", "numba", "cpu", 25_600, 25_600.0)
    code, _, err = call("upscale", "in", "-o", "out", "-s", 2)
    assert (code, err) == (0, "mambair: 0.0 megapixels, about 9 min\n")
    code, _, err = call("upscale", "in", "-o", "out", "-s", 2)
    assert (code, err) == (0, "")


def pipe(call, monkeypatch, data, *arguments):
    """Run the program with `data` on stdin: exit code, bytes on stdout, text on stderr."""
    out, err = io.TextIOWrapper(io.BytesIO()), io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        code, *_ = call(*arguments)
    out.flush()
    return code, out.buffer.getvalue(), err.getvalue()


def test_stdin_and_stdout(call, monkeypatch):
    make("a.png")
    data = Path("a.png").read_bytes()
    code, out, err = pipe(
        call, monkeypatch, data, "upscale", "-", "-o", "-", "--format", "tif", "-s", 2
    )
    assert code == 0
    assert re.fullmatch(f"-: 16x16 -> 32x32, tiny-x2, {TAIL}", err)
    Path("piped.tif").write_bytes(out)
    np.testing.assert_array_equal(read_image(Path("piped.tif")).pixels, doubled(pixels_of(0)))
    code, out, err = pipe(call, monkeypatch, data, "upscale", "-", "-o", "-", "-s", 2, "--json")
    assert (code, out[:4], json.loads(err)["output"]) == (0, b"\x89PNG", "-")
    code, out, err = pipe(call, monkeypatch, data, "upscale", "-", "-o", "b.png", "-s", 2)
    assert (code, err, out[:8]) == (0, "", b"b.png: 1")
    assert read_image(Path("b.png")).pixels.shape == (32, 32, 3)
    code, out, err = pipe(call, monkeypatch, b"", "upscale", "a.png", "-o", "-", "-s", 2)
    assert (code, out[:4]) == (0, b"\x89PNG")
    for data, words in ((b"", "stdin: the file is empty"), (b"text", "stdin: not an image")):
        code, out, err = pipe(call, monkeypatch, data, "upscale", "-", "-o", "-")
        assert (code, out) == (1, b"")
        assert re.fullmatch(rf"mambair: {words}[^\n]*\n", err)
    assert files_in(".") == ["a.png", "b.png", "piped.tif"]


@pytest.mark.long
def test_the_real_program_in_a_pipe():
    make("a.png")
    command = program("upscale", "-", "-o", "-", "-s", "2", "--format", "ppm")
    done = subprocess.run(
        **command, input=Path("a.png").read_bytes(), capture_output=True, check=True, timeout=120
    )
    assert done.stdout[:13] == b"P6 32 32 255\n"
    assert len(done.stdout) == 13 + 32 * 32 * 3
    assert done.stderr.startswith(b"-: 16x16 -> 32x32, tiny-x2")


def test_the_log_of_a_run(call):
    make("in/a.png", "in/b.png")
    Path("in/c.png").touch()
    for _ in range(2):
        assert call("upscale", "in", "-o", "out", "-s", 2, "--log", "run.jsonl")[0] == 1
    lines = [json.loads(line) for line in Path("run.jsonl").read_text("utf-8").splitlines()]
    assert [line["event"] for line in lines] == ["start", "file", "file", "file", "end"] * 2
    assert lines[0]["files"] == 3
    files = {line["input"]: line for line in lines[1:4]}
    assert files["in/a.png"]["status"] == "ok"
    assert "the file is empty" in files["in/c.png"]["error"]
    ends = lines[4], lines[9]
    assert [(end["ok"], end["skipped"], end["failed"]) for end in ends] == [(2, 0, 1), (0, 2, 1)]
    times = [datetime.fromisoformat(line["time"]) for line in lines]
    assert times == sorted(times)
    assert times[0].utcoffset() == timedelta(0)


def test_the_log_of_a_run_that_is_interrupted(call):
    def at_work(image):
        raise KeyboardInterrupt

    make("in/a.png")
    line = ["upscale", "in", "-o", "out", "-s", 2, "--log", "run.jsonl"]
    assert call(*line, restorer=Doubler(at_work))[0] == 130
    end = json.loads(Path("run.jsonl").read_text("utf-8").splitlines()[-1])
    assert (end["event"], end["stopped"], end["not_tried"]) == ("end", "interrupted", 1)


def test_a_log_that_cannot_be_written(call):
    make("in/a.png")
    line = ["upscale", "in", "-o", "out", "-s", 2, "--log", "no/run.jsonl"]
    fails(call(*line), 2, "no/run.jsonl: cannot be written")
    assert not Path("out").exists()


def test_a_page_of_before_and_after(call):
    make("in/a.png", "in/b.png")
    Path("in/c.png").touch()
    code, out, _ = call("upscale", "in", "-o", "out", "-s", 2, "--compare", "page.html")
    assert code == 1
    assert out.splitlines()[-1] == "page.html: 2 pictures, before and after; open it in a browser"
    page = Path("page.html").read_text("utf-8")
    assert "before: in/a.png, 16x16" in page
    assert "after: out/b.png, 32x32" in page


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("in -o out --compare page.png", "page.png: a page is called something.html"),
        ("in -o out --compare no/page.html", "there is no folder"),
        ("in/a.png -o - --compare page.html", "--compare shows files"),
        ("in -o s3://bucket/out/ --compare page.html", "--compare shows files"),
        ("https://host/a.png -o a.png --compare page.html", "--compare shows files"),
        ("in -o out --dry-run --compare page.html", "which --dry-run does not make"),
    ],
)
def test_a_page_that_cannot_be_written_is_told_first(call, words, told):
    make("in/a.png")
    fails(call("upscale", *words.split()), 2, told)
    assert not Path("out").exists()

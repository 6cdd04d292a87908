import errno
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import PIL.Image
import pytest
import torch
from calls import (
    DATA,
    TAIL,
    Terminal,
    check_bad,
    contents,
    each_call,
    fails,
    plain,
    plain_lines,
    program,
    run,
    works,
    write_tiled_photo,
)

import mambair_cli
from mambair_cli import ops
from mambair_cli.commands import doctor
from mambair_cli.images.io import read_image

# The real program: streams, terminals, signals


def test_readme_command(tmp_path):
    output = tmp_path / "out.png"
    out = works(run("upscale", DATA / "photo.png", "-s", "4", "-o", output))
    assert re.fullmatch(
        f"{re.escape(str(output))}: 192x144 -> 768x576, looks clean: tiny-x4, {TAIL}", out
    )
    with PIL.Image.open(output) as file:
        assert (file.size, file.mode) == ((768, 576), "RGB")
    assert list(tmp_path.iterdir()) == [output]


def test_interrupt_in_the_middle(folder):
    write_tiled_photo(Path("photo.png"))
    Path("out.png").write_bytes(b"old")
    before = contents(folder)
    terminal = Terminal("upscale", "photo.png", "-s", "4", "-o", "out.png", "--tile", "48")
    while not re.search(r"[1-9]\d?%", plain_lines(terminal.shown)) and terminal.read():
        pass
    terminal.process.send_signal(signal.SIGINT)
    # for a shell, both are 130
    assert terminal.end() in (130, -signal.SIGINT)
    assert plain_lines(terminal.shown).splitlines()[-1] == "mambair: interrupted"
    assert "100%" not in terminal.shown
    assert "Traceback" not in terminal.shown
    assert contents(folder) == before


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_stdout_cannot_encode(folder):
    name = b"\xc3\xbc\xff[red].png"
    os.rename(b"photo.png", name)  # noqa: PTH104
    code, out, err = run("--verbose", "upscale", name, "-s", "2", **ASCII)
    # What is decided, and which model would be better.
    backend, better = err.splitlines()
    assert (code, backend) == (0, "mambair: scan back end on cpu: numba")
    assert re.match(r"mambair: [\d.]+ dB better on Set5 x2: -m mambair-light-", better)
    assert re.fullmatch(
        rf"\\udcc3\\udcbc\\udcff\[red\]_x2\.png: 24x18 -> 48x36, tiny-x2, {TAIL}", out
    )
    assert sorted(os.fsencode(path.name) for path in folder.iterdir()) == [
        name,
        b"\xc3\xbc\xff[red]_x2.png",
    ]
    fails(run("upscale", b"no" + name, **ASCII), 2, r"no\udcc3\udcbc\udcff[red].png: no such file")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_stdout_on_a_full_disk():
    with Path("/dev/full").open("w") as full:
        start = program("--help", PYTHONUNBUFFERED="1")
        done = subprocess.run(**start, stdout=full, stderr=subprocess.PIPE, check=False)
    fails((done.returncode, "", done.stderr.decode()), 1, "No space left")


def test_closed_streams(call, folder, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert call("upscale", "photo.png", "-s", "2", "-o", "out.png")[0] == 0
    assert read_image(Path("out.png")).pixels.shape == (36, 48, 3)


def test_what_needs_no_torch_imports_none():
    code = """
import sys
from mambair_cli import cli
for line in sys.stdin.read().splitlines():
    sys.argv = ["mambair", *line.split()]
    try:
        cli.main()
    except SystemExit as stop:
        heavy = {"torch", "numba", "numpy", "cv2", "PIL"} & sys.modules.keys()
        print(line, "->", stop.code, *sorted(heavy), file=sys.stderr)
"""
    lines = [
        "--help",
        "--version",
        "upscale --help",
        "train --help",
        "bench --help",
        "bench tiling --help",
    ]
    lines += ["bench figure --help", "bench figure erf --help"]
    lines += [
        "models list",
        "models list --markdown",
        "models path",
        "models info mambair-classic-x4",
        "doctor --help",
    ]
    start = program()
    start["args"][1:] = ["-c", code]
    done = subprocess.run(
        **start, input="\n".join(lines), capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr.splitlines() == [f"{line} -> 0" for line in lines]


def test_python_m(folder):
    assert run("--version") == (0, f"mambair {mambair_cli.__version__}\n", "")
    fails(run("upscale", "missing.png"), 2, "missing.png: no such file")


# Help, and what concerns no single command


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (
            "",
            "upscale denoise derain dejpeg compare doctor train models bench --version --verbose -v --help"
            " --install-completion",
        ),
        (
            "upscale",
            "INPUT --output -o --scale -s --width --height --exact --model -m --degradation --dry-run --glob --overwrite --format --quality --suffix --tile"
            " --tile-overlap --device --backend --offline --quiet -q --json",
        ),
        ("models", "list info pull verify path convert import remove"),
        ("models list", "--task --markdown --json"),
        ("models info", "NAME|FILE --json"),
        ("models pull", "NAME --offline"),
        ("models verify", "--json"),
        ("models path", "[NAME]"),
        ("models convert", "FILE OUT.safetensors"),
        ("models import", "FILE --name"),
        ("models remove", "NAME"),
        ("doctor", "--json"),
        (
            "train",
            "--recipe --data --out --list --set --iterations --import-yaml --resume --init --val --low --val-low"
            " --dry-run --device --precision --device-batch --workers --cache --recompute --tensorboard --vgg",
        ),
        (
            "bench",
            "--dataset --data-root --scale -s --noise --jpeg --pairs --model -m --tiler --ensemble --channel --border"
            " --metric --images --seed --save --fresh --fail-below --csv --markdown --html --device --backend"
            " --dtype --json download compare speed scan tiling memory figure",
        ),
        ("bench speed", "--model -m --backend --device --dtype --quick --json"),
        ("bench compare", "A.json B.json --json"),
        ("bench download", "NAME"),
        ("bench figure", "erf complexity lam visual"),
        (
            "bench figure erf",
            "--output -o --dataset --data-root --model -m --images --device --backend",
        ),
        ("bench figure complexity", "--output -o --device"),
        ("bench figure lam", "IMAGE --output -o --model -m --at --side --device --backend"),
        (
            "bench figure visual",
            "IMAGE --output -o --model -m --scale -s --noise --jpeg --at --side",
        ),
        ("bench scan", "--quick --json"),
        ("bench tiling", "IMAGE --model -m --json"),
    ],
)
def test_help(call, monkeypatch, command, words):
    monkeypatch.setenv("COLUMNS", "120")
    text = works(call(*command.split(), "--help"))
    assert works(call(*command.split(), "-h")) == text
    shown = plain(text).split()
    assert f"Usage: mambair {command}".strip() in plain(text)
    for word in words.split():
        assert word in shown


def test_nothing_asked_is_answered_with_the_help(call):
    code, out, err = call()
    assert code == 2
    assert "Usage: mambair" in out + err
    assert "Traceback" not in err


@each_call(
    ("nonsense", 2, "'nonsense'", "mambair --help"),
    ("--nonsense", 2, "--nonsense", "mambair --help"),
    ("doctor  extra", 2, "extra", "mambair doctor --help"),
)
def test_bad_calls(call, bad, line, code, words):
    check_bad(call, bad, line.split("  "), code, words)


def test_a_name_of_two_lines_is_said_in_one(call, folder):
    fails(call("upscale", "two\nlines.png"), 2, r"two\nlines.png: no such file")


def test_doctor(call, monkeypatch):
    reason = "its [bold]compiler is missing"
    monkeypatch.setattr(
        ops,
        "BACKENDS",
        (replace(ops.BACKENDS[0], unavailable=lambda device, dtype: reason), ops.BACKENDS[-1]),
    )
    facts = json.loads(works(call("doctor", "--json")))
    assert facts["backends"] == {"numba": reason, "reference": None}
    assert facts["versions"]["mambair"] == mambair_cli.__version__
    assert facts["versions"]["torch"] == torch.__version__
    assert all(facts["devices"][name].startswith("unavailable: ") for name in ("cuda", "mps"))
    text = works(call("doctor"))
    for name, value in facts["versions"].items():
        assert f"{name} {value}" in text or f"Python {value}" in text
    for name, value in facts["devices"].items():
        # its free memory changes
        if name != "cpu":
            assert f"\n{name}: {value}\n" in text
    assert f"\nScan by numba: {reason}\n" in text
    assert "\nScan by reference: available\n" in text
    assert text.endswith("\nEverything that helps here is installed.\n")
    monkeypatch.setattr(doctor, "_faster", lambda backends: "pip install numba")
    assert works(call("doctor")).endswith("\nThis would make it faster: pip install numba\n")


def test_help_of_a_command(call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for line in ("", "upscale", "models list"):
        assert works(call("help", *line.split())) == works(call(*line.split(), "--help"))
    fails(call("help", "nonsense"), 2, "'nonsense'", "mambair --help")
    fails(call("help", "doctor", "more"), 2, "'more'", "mambair doctor --help")


def test_the_order_of_commands(call):
    text = plain(works(call("--help"))).partition(" Commands ")[2]
    names = [
        "upscale",
        "denoise",
        "derain",
        "dejpeg",
        "compare",
        "models",
        "doctor",
        "bench",
        "train",
    ]
    places = [text.index(f" {name} ") for name in names[1:]]
    assert places == sorted(places)
    assert "help" not in text.partition("Examples:")[0].split()


def test_help_in_panels(call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = works(call("upscale", "--help"))
    panels = ["Common", "Size", "Output", "Model", "Memory and speed", "Advanced"]
    places = [text.index(f"─ {panel} ─") for panel in panels]
    assert places == sorted(places)
    assert "─ Options ─" not in text
    assert "bool" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert "[default: auto]" in text
    assert "auto|bicubic|real" in text
    examples = text.partition("Examples:")[2].split("\n")
    assert sum("mambair upscale " in line for line in examples) == 4


def test_verbose_also_after_the_command(folder):
    code, _, err = run("upscale", "photo.png", "-s", "2", "-v")
    assert code == 0
    assert "scan back end on cpu: numba" in err


# What a shell, a disk or a machine may do to it


@pytest.mark.skipif(os.name != "posix", reason="of shells")
@pytest.mark.parametrize(
    ("streams", "code", "words"),
    [
        ("<&-", 0, ""),
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        ("> /dev/full", 1, "mambair: [Errno 28] No space left on device\n"),
        ("2> /dev/full", 0, ""),
        ("| true", 0, ""),
    ],
)
def test_closed_and_full_streams(streams, code, words):
    start = program("models", "list", "--markdown")
    line = " ".join(shlex.quote(part) for part in start["args"])
    command = ["bash", "-c", f"{line} {streams}"]
    done = subprocess.run(command, env=start["env"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (code, words)


OPEN = """
import os, sys
from mambair_cli.cli import _open_streams
_open_streams()
with open(sys.argv[1], "w") as file:
    os.write(2, b"what a library complains of")
    file.write("whole")
"""


@pytest.mark.skipif(os.name != "posix", reason="of shells")
def test_no_file_takes_the_place_of_a_closed_stream(tmp_path):
    start = program(tmp_path / "out")
    line = f"{shlex.quote(sys.executable)} -c {shlex.quote(OPEN)} {tmp_path / 'out'} <&- >&- 2>&-"
    subprocess.run(["bash", "-c", line], env=start["env"], check=True, timeout=60)
    assert (tmp_path / "out").read_text() == "whole"


def test_images_through_closed_streams(folder, call, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    fails(call("upscale", "-", "-o", "out.png", "-s", 2), 1, "stdin: is closed")
    data = Path("photo.png").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    fails(call("upscale", "-", "-o", "x.png", "-s", 2, "--max-bytes", "9"), 1, "stdin", "9 bytes")
    assert not Path("x.png").exists()


def test_names_with_commands_for_the_terminal(folder, call):
    name = "\x1b]0;owned\x07\x9b31m\u202egnp.png"
    Path(name).write_bytes(Path("photo.png").read_bytes())
    out = works(call("upscale", name, "-o", f"out {name}", "-s", 2))
    assert out.isascii()
    assert r"out \x1b]0;owned\x07\x9b31m\u202egnp.png: 24x18" in out
    assert Path(f"out {name}").exists()
    Path(name).write_text("no image")
    fails(call("upscale", name, "-o", "x.png"), 1, r"\x1b]0;owned\x07")
    fails(call("models", "info", name), 1, r"\x1b]0;owned\x07")


def test_paths_of_4000_characters(folder, call):
    for long in ("x" * 4000, "/".join(["y" * 200] * 20)):
        for arguments in (
            ("upscale", f"{long}.png", "-o", "out.png"),
            ("upscale", "photo.png", "-o", f"{long}.png"),
            ("upscale", "photo.png", "-o", f"{long}/"),
            ("upscale", "photo.png", "-o", "out.png", "-m", long),
            ("models", "info", long),
            ("models", "import", long, "--name", "a"),
            ("train", "--recipe", long),
            ("train", "--recipe", "tiny-x2", "--data", long, "--out", "run"),
        ):
            code, out, err = call(*arguments)
            assert re.fullmatch(r"(mambair: [^\n]+\n)*", err), arguments
            # Folders within folders may well have such a path.
            assert (code in (1, 2) and err) or (code == 0 and "/" in long)
            assert code == 0 or not out or arguments[-1].endswith("/")


def test_too_many_open_files_are_told_with_what_helps(call, monkeypatch, folder):
    def refuse(*arguments, **options):
        raise OSError(errno.EMFILE, "Too many open files", "photo.png")

    monkeypatch.setattr("mambair_cli.commands.restore.plan_files", refuse)
    fails(call("upscale", "photo.png"), 1, "Too many open files", "ulimit -n")


def test_a_poor_place(folder):
    """Without a home and a cache, in a locale without UTF-8, with -O, and with a jumping clock."""
    Path("Gr\u00fc\u00dfe.png").write_bytes(Path("photo.png").read_bytes())
    os.utime("Gr\u00fc\u00dfe.png", (2**33, 2**33))
    start = program("upscale", "Gr\u00fc\u00dfe.png", "-o", "out.png", "-s", "2")
    start["args"].insert(1, "-O")
    start["env"] |= {"HOME": "/dev/null", "MAMBAIR_HOME": "/dev/null/cache", "LC_ALL": "C"}
    start["env"] |= {"XDG_CACHE_HOME": "/dev/null", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run(**start, capture_output=True, timeout=240)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"out.png: 24x18 -> 48x36")
    assert read_image(Path("out.png")).pixels.shape == (36, 48, 3)

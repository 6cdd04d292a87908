"""How tests call the program, in this process and as a process of its own, and what they see;
shared by tests.
"""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mambair_cli
from mambair_cli.images.io import Image, read_image, write_image

DATA = Path(__file__).parent / "data"
# 24 x 18
PHOTO = read_image(DATA / "photo.png").pixels[60:78, 80:104]
DEEP = PHOTO.astype(np.uint16) * 257 + np.arange(24, dtype=np.uint16)[:, None]
LONG = "x" * 300
TAIL = r"(\w+) on cpu, \d+\.\d s\n"


def jpeg(picture, **options):
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=95, subsampling=0, **options)
    return file.getvalue()


def program(*arguments, **environment):
    """What starts the real program: the command line, and the environment."""
    root = str(Path(mambair_cli.__file__).parent.parent)
    return {
        "args": [sys.executable, "-m", "mambair_cli", *map(os.fspath, arguments)],
        "env": {**os.environ, "PYTHONPATH": root, "CUDA_VISIBLE_DEVICES": "", **environment},
    }


def run(*arguments, **environment):
    """Run the real program, its streams piped: exit code, stdout, stderr."""
    done = subprocess.run(
        **program(*arguments, **environment), capture_output=True, timeout=120, check=False
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def contents(folder):
    return {str(p): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def plain(text):
    """Text without colours, and without the line breaks and frames of a table."""
    return " ".join(re.sub(r"\x1b\[[\d;?]*\w|[│╭╮╰╯─]", "", text).split())


def fails(result, code, *words):
    """The result is one line on stderr that has all words, nothing else, and the exit code."""
    found, out, err = result
    assert re.fullmatch(r"mambair: [^\n]+\n", err), err
    assert "Traceback" not in err
    for word in words:
        assert word in err, err
    assert out == ""
    assert found == code


def works(result):
    """The result has exit code 0 and nothing on stderr; its stdout."""
    code, out, err = result
    assert (code, err) == (0, "")
    return out


def upscale(call, *arguments):
    """Run `upscale ... --json` and return its facts."""
    out = works(call("upscale", *arguments, "--json"))
    assert re.fullmatch(r"{[^\n]*}\n", out)
    return json.loads(out)


def each_call(*rows):
    """For each row: arguments, separated by two spaces; the exit code; words of the message."""
    return pytest.mark.parametrize(
        ("line", "code", "words"), [(line, code, words) for line, code, *words in rows]
    )


def check_bad(call, bad, arguments, code, words):
    """The call fails, and leaves the folder as it is."""
    before = contents(bad)
    fails(call(*arguments), code, *words)
    assert contents(bad) == before


class Terminal:
    """The real program in a terminal of its own: what it has shown so far, its exit code in the
    end.
    """

    def __init__(self, *arguments):
        pty = pytest.importorskip("pty")
        self.master, slave = pty.openpty()
        start = program(*arguments, TERM="xterm-256color", COLUMNS="100")
        # Where the tests run in the background of a shell, SIGINT is ignored, and would be by the
        # program.
        previous = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            self.process = subprocess.Popen(**start, stdin=slave, stdout=slave, stderr=slave)
        finally:
            signal.signal(signal.SIGINT, previous)
        os.close(slave)
        self.shown = ""

    def read(self):
        """More of what it shows; False at its end."""
        try:
            data = os.read(self.master, 65536)
        # how Linux ends a terminal
        except OSError:
            data = b""
        self.shown += data.decode(errors="replace")
        return bool(data)

    def end(self):
        with contextlib.closing(os.fdopen(self.master)):
            while self.read():
                pass
        return self.process.wait(60)


def plain_lines(shown):
    return re.sub(r"\x1b\[[\d;?]*\w", "", shown).strip()


def write_tiled_photo(path):
    """A photograph that keeps a net busy for some tiles."""
    pixels = read_image(DATA / "photo.png").pixels
    write_image(path, Image(np.tile(pixels, (2, 2, 1))))

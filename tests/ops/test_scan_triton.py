"""The Triton scan in Triton's interpreter, on the CPU, and on a GPU where there is one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scan_inputs import (
    FORWARD_ERROR,
    GRADIENT_ERROR,
    NAMES,
    definition,
    errors,
    scan_inputs,
    y_and_gradients,
)

triton = pytest.importorskip(
    "triton", reason="triton is not installed: pip install 'mambair[test]' (on Linux)"
)

from mambair_cli.ops import resolve_backend, scan_triton  # noqa: E402

# In the interpreter

SMALL = {"channels": 6, "N": 2, "R": 2}
SHORT = {"FORWARD_CHUNK": [2, 2], "BACKWARD_CHUNK": 2, "CARRY_AHEAD": 2}
CASES = {
    "odd": {"H": 3, "W": 5, **SMALL},
    "row": {"H": 1, "W": 5, **SMALL, "module": SHORT},
    "column": {"H": 5, "W": 1, **SMALL, "module": SHORT},
    "pixel": {"H": 1, "W": 1, "channels": 1, "N": 1, "R": 1, "module": SHORT},
    "batch, many short chunks": {"H": 3, "W": 3, "batch": 2, **SMALL, "module": SHORT},
    "one direction": {"H": 3, "W": 5, "K": 1, "batch": 2, **SMALL},
    "odd channels, states and rank": {"H": 2, "W": 3, "channels": 5, "N": 3, "R": 3},
    "more channels than lanes": {"H": 2, "W": 5, "channels": 70, "N": 4, "R": 2, "K": 1},
    "a channel a lane, under autocast": {
        "H": 2,
        "W": 5,
        **SMALL,
        "K": 1,
        "module": {"HELD": 0},
        "autocast": True,
    },
    "indices of 64 bits": {"H": 2, "W": 3, **SMALL, "module": {"LARGEST_INDEX": 0}},
    "float16": {"H": 2, "W": 5, **SMALL, "K": 1, "dtype": "float16"},
    "bfloat16": {"H": 2, "W": 5, **SMALL, "K": 1, "dtype": "bfloat16"},
}
LONG_CASES = {
    "light": {"H": 7, "W": 5, "channels": 72, "N": 10, "R": 4},
    "classic": {"H": 3, "W": 7, "channels": 360, "N": 16, "R": 12},
    "many chunks": {"H": 13, "W": 11, "batch": 2, "channels": 12, "N": 5, "R": 3},
    "many chunks, one direction": {"H": 37, "W": 9, "K": 1, "channels": 36, "N": 4, "R": 2},
    "long column": {"H": 150, "W": 2, **SMALL},
}
ROUNDING = {"float32": 0, "float16": 2**-11, "bfloat16": 2**-8}
old = (
    tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7)
    and np.lib.NumpyVersion(np.__version__) >= "2.4.0"
)
interpreter = pytest.mark.skipif(
    old, reason="the interpreter of Triton before 3.7 does not run with NumPy 2.4"
)


def interpret(cases):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
    program = Path(__file__).parents[1] / "interpreted_scan.py"
    command = [sys.executable, "-W", "error", str(program), json.dumps(cases)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def interpreted():
    return interpret(CASES)


def assert_within(found, case):
    y, x, *parameters = found
    rounding = ROUNDING[case.get("dtype", "float32")]
    assert y <= FORWARD_ERROR + rounding
    assert x <= GRADIENT_ERROR + rounding
    for name, error in zip(NAMES[1:], parameters, strict=True):
        assert error <= GRADIENT_ERROR, name


@interpreter
@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients(interpreted, name):
    assert_within(interpreted["cases"][name], CASES[name])


@interpreter
@pytest.mark.long
def test_outputs_and_gradients_of_larger_shapes():
    found = interpret(LONG_CASES)["cases"]
    for name, case in LONG_CASES.items():
        assert_within(found[name], case)


@interpreter
def test_softplus_and_its_derivative(interpreted):
    assert all(error < 3e-6 for error in interpreted["softplus"])


# How the work is cut


@pytest.mark.parametrize(
    ("lane_steps", "expected"),
    [
        (1, 8),
        (64 * 64 * 36, 8),
        (256 * 256 * 36, 32),
        (16 * 64 * 64 * 36, 32),
        (1024 * 1024 * 36, 256),
        (2**40, 256),
    ],
)
def test_chunks_are_as_long_as_the_gpu_is_full(lane_steps, expected):
    assert scan_triton._chunk_length(lane_steps, 132, 32) == expected


def test_sequences_and_images():
    image = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
    for columns in (False, True):
        sequence = scan_triton._sequence(image, columns)
        assert sequence.shape == (2, 16, 5)
        assert torch.equal(sequence[:, 12:], torch.zeros(2, 4, 5, dtype=torch.int64))
        assert torch.equal(scan_triton._image(sequence, 3, 4, columns), image)
    assert torch.equal(
        scan_triton._sequence(image, True)[0, :4], image[0, [0, 1, 2, 0], [0, 0, 0, 1]]
    )


def test_pairs_of_numbers_may_start_anywhere():
    x, x_dbl, *parameters = scan_inputs(2, 3, N=2, R=2, channels=4)[:5]
    moved = torch.empty(1 + x_dbl.numel())[1:].view_as(x_dbl).copy_(x_dbl)
    assert torch.equal(scan_triton._inputs(x, moved, *parameters)[1].view(torch.float32), x_dbl)


# On a GPU

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU_SHAPES = [
    {"H": 5, "W": 7},
    {"H": 1, "W": 300},
    {"H": 300, "W": 1},
    {"H": 1, "W": 1, "channels": 1, "N": 1, "R": 1},
    {"H": 37, "W": 41, "batch": 3, "channels": 72, "N": 10, "R": 4},
    {"H": 64, "W": 64, "channels": 72, "N": 10, "R": 4},
    {"H": 33, "W": 29, "channels": 216, "N": 16, "R": 12},
    {"H": 40, "W": 24, "channels": 360, "N": 16, "R": 12},
    {"H": 37, "W": 41, "K": 1, "batch": 2, "channels": 71, "N": 7, "R": 5},
]


@gpu
@pytest.mark.parametrize("shape", GPU_SHAPES, ids=str)
def test_on_a_gpu(shape):
    inputs = scan_inputs(**shape)
    scan = resolve_backend("triton", "cuda").scan
    found = y_and_gradients(lambda *v: scan(*(w.cuda() for w in v)).cpu(), inputs)
    again = y_and_gradients(lambda *v: scan(*(w.cuda() for w in v)).cpu(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    y, *gradients = errors(found, definition(inputs))
    assert y <= 1e-5
    assert max(gradients) <= 1e-4


@gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_on_a_gpu(dtype):
    inputs = [v.cuda() for v in scan_inputs(37, 41, channels=72, N=10, R=4)]
    inputs[0] = inputs[0].to(dtype)
    scan = resolve_backend("triton", "cuda").scan
    assert torch.equal(scan(*inputs), scan(inputs[0].float(), *inputs[1:]).to(dtype))

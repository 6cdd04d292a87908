"""The Triton kernels: run in Triton's interpreter, compiled for GPUs (which needs none), and run on one if there is."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scan_inputs import FORWARD_ERROR, GRADIENT_ERROR, NAMES, definition, errors, scan_inputs, y_and_gradients

triton = pytest.importorskip("triton", reason="triton is not installed: pip install 'mambair[test]' (on Linux)")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from mambair_cli.ops import resolve_backend, scan_triton  # noqa: E402

# In the interpreter

SMALL = {"channels": 6, "N": 2, "R": 2}
SHORT_CHUNKS = {"FORWARD_CHUNK": [2, 2], "BACKWARD_CHUNK": 2, "CARRY_AHEAD": 2}
CASES = {
    "odd": {"H": 3, "W": 5, **SMALL},
    "row": {"H": 1, "W": 11, **SMALL},
    "column": {"H": 11, "W": 1, **SMALL},
    "pixel": {"H": 1, "W": 1, "channels": 1, "N": 1, "R": 1},
    "batch, many short chunks": {"H": 3, "W": 3, "batch": 2, **SMALL, "module": SHORT_CHUNKS},
    "one direction": {"H": 3, "W": 5, "K": 1, "batch": 2, **SMALL},
    "odd channels, states and rank": {"H": 2, "W": 3, "channels": 5, "N": 3, "R": 3},
    "more channels than lanes": {"H": 2, "W": 5, "channels": 70, "N": 4, "R": 2, "K": 1},
    "a channel a lane": {"H": 2, "W": 5, **SMALL, "K": 1, "module": {"HELD": 0}},
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
old = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7) and np.lib.NumpyVersion(np.__version__) >= "2.4.0"
interpreter = pytest.mark.skipif(old, reason="the interpreter of Triton before 3.7 does not run with NumPy 2.4")


def interpret(cases):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
    program = Path(__file__).with_name("interpreted_scan.py")
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


# Compiled

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
REGISTERS = {"cuda": 128, "hip": 256}  # a thread: room for 16 warps a processor; for 2 wavefronts a SIMD unit
TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int64: "*i64", int: "i32"}
LIGHT = {"channels": 72, "N": 10, "R": 4}
CLASSIC = {"channels": 360, "N": 16, "R": 12}
KERNELS = {"_chunk_ends", "_carry", "_outputs", "_gradients"}


def launches(monkeypatch, target, dtype=torch.float32, **shape):
    """All different kernels that forward and backward launch, as (function, arguments by name, warps)."""
    made = {}

    def record(function, *arguments, grid, warmup, num_warps, **constants):
        named = dict(zip(function.arg_names, arguments, strict=False)) | constants
        types = {k: TYPES[getattr(v, "dtype", type(v))] for k, v in named.items() if k not in constants}
        made[f"{function.__name__} {sorted(constants.items(), key=str)}"] = function, types, constants, num_warps

    monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", record)
    monkeypatch.setattr(scan_triton, "_hardware", lambda device: (100, target.warp_size))
    inputs = scan_inputs(4, 8, **shape)
    inputs[0] = inputs[0].to(dtype)
    y, states = scan_triton.forward(*inputs, True)
    scan_triton.backward(torch.zeros_like(y), *inputs, states)
    return made.values()


def registers_and_stack(function, types, constants, warps, target):
    """Compiles for a GPU; registers of a thread, bytes of its stack: where registers do not suffice, or for arrays."""
    place = {name: (function.arg_names.index(name),) for name in function.arg_names}
    source = ASTSource(
        fn=function,
        signature=types | dict.fromkeys(constants, "constexpr"),
        constexprs={place[name]: value for name, value in constants.items()},
        attrs={place[name]: [["tt.divisibility", 16]] for name, kind in types.items() if kind.startswith("*")},
    )
    compiled = triton.compile(source, target=target, options={"num_warps": warps})
    if target.backend == "hip":
        found = {k: int(v) for k, v in re.findall(r"\.(\w+):\s*(\d+)$", compiled.asm["amdgcn"], re.MULTILINE)}
        assert found["vgpr_spill_count"] == found["sgpr_spill_count"] == 0
        return found["vgpr_count"], found["private_segment_fixed_size"]
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    binary = Path(os.environ["TRITON_CACHE_DIR"]) / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    command = [str(tools / "cuobjdump"), "-res-usage", str(binary)]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.search(rf"\b{name}:(\d+)", usage)[1]) for name in ("REG", "STACK", "LOCAL"))
    return registers, stack + local


def assert_compiles(monkeypatch, tmp_path, target, **shape):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    names = set()
    for function, types, constants, warps in launches(monkeypatch, target, **shape):
        registers, stack = registers_and_stack(function, types, constants, warps, target)
        print(f"{target.arch} {shape} {function.__name__} {warps=}: {registers} registers, {stack} bytes of stack")
        assert stack == 0
        assert registers <= REGISTERS[target.backend]
        names.add(function.__name__)
    assert names == KERNELS


@pytest.mark.parametrize("target", TARGETS)
def test_kernels_of_the_light_net_compile(monkeypatch, tmp_path, target):
    assert_compiles(monkeypatch, tmp_path, TARGETS[target], **LIGHT)


@pytest.mark.long
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "shape",
    [CLASSIC, LIGHT, {"channels": 72, "N": 16, "R": 3}, {"channels": 576, "N": 16, "R": 24}, {**LIGHT, "K": 1}],
    ids=str,
)
def test_kernels_compile(monkeypatch, tmp_path, target, dtype, shape):
    assert_compiles(monkeypatch, tmp_path, TARGETS[target], dtype=dtype, **shape)


@pytest.mark.long
@pytest.mark.parametrize("target", TARGETS)
def test_kernels_with_indices_of_64_bits_compile(monkeypatch, tmp_path, target):
    monkeypatch.setattr(scan_triton, "LARGEST_INDEX", 0)
    assert_compiles(monkeypatch, tmp_path, TARGETS[target], **LIGHT)


# How the work is cut


@pytest.mark.parametrize(
    ("lane_steps", "expected"),
    [(1, 8), (64 * 64 * 36, 8), (256 * 256 * 36, 32), (16 * 64 * 64 * 36, 32), (1024 * 1024 * 36, 256), (2**40, 256)],
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
    assert torch.equal(scan_triton._sequence(image, True)[0, :4], image[0, [0, 1, 2, 0], [0, 0, 0, 1]])


# On a GPU

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU_SHAPES = [
    {"H": 5, "W": 7},
    {"H": 1, "W": 300},
    {"H": 300, "W": 1},
    {"H": 1, "W": 1, "channels": 1, "N": 1, "R": 1},
    {"H": 37, "W": 41, "batch": 3, **LIGHT},
    {"H": 64, "W": 64, **LIGHT},
    {"H": 33, "W": 29, "channels": 216, "N": 16, "R": 12},
    {"H": 40, "W": 24, **CLASSIC},
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
    inputs = [v.cuda() for v in scan_inputs(37, 41, **LIGHT)]
    inputs[0] = inputs[0].to(dtype)
    scan = resolve_backend("triton", "cuda").scan
    assert torch.equal(scan(*inputs), scan(inputs[0].float(), *inputs[1:]).to(dtype))

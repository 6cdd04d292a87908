"""The Triton kernels, compiled for several GPUs, none of which is needed for it; `test_scan_triton`
runs them.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
from scan_inputs import scan_inputs

triton = pytest.importorskip(
    "triton", reason="triton is not installed: pip install 'mambair[test]' (on Linux)"
)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from mambair_cli.ops import scan_triton  # noqa: E402

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# a thread: room for 16 warps a processor; for 2 wavefronts a SIMD unit
REGISTERS = {
    "cuda": 128,
    "hip": 256,
}
TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    int: "i32",
}
LIGHT = {"channels": 72, "N": 10, "R": 4}
CLASSIC = {"channels": 360, "N": 16, "R": 12}
KERNELS = {"chunk_ends", "carry", "outputs", "gradients"}


def launches(monkeypatch, target, H=4, W=8, dtype=torch.float32, **shape):
    """All different kernels that forward and backward launch, as (function, types by name,
    constants, warps).
    """
    made = {}

    def record(function, *arguments, grid, warmup, num_warps, **constants):
        named = dict(zip(function.arg_names, arguments, strict=False))
        free = {param.name for param in function.params if not param.do_not_specialize}
        # as Triton does
        constants |= {k: v for k, v in named.items() if type(v) is int and v == 1 and k in free}
        types = {
            k: TYPES[getattr(v, "dtype", type(v))] for k, v in named.items() if k not in constants
        }
        made[f"{function.__name__} {sorted(constants.items(), key=str)}"] = (
            function,
            types,
            constants,
            num_warps,
        )

    monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", record)
    monkeypatch.setattr(scan_triton, "_hardware", lambda device: (100, target.warp_size))
    inputs = scan_inputs(H, W, **shape)
    inputs[0] = inputs[0].to(dtype)
    y, states = scan_triton.forward(*inputs, True)
    scan_triton.backward(torch.zeros_like(y), *inputs, states)
    return made.values()


def registers_and_stack(function, types, constants, warps, target):
    """Compiles for a GPU; registers of a thread, bytes of its stack: where registers do not
    suffice, or for arrays.
    """
    place = {name: (function.arg_names.index(name),) for name in function.arg_names}
    source = ASTSource(
        fn=function,
        signature=types | dict.fromkeys(constants, "constexpr"),
        constexprs={place[name]: value for name, value in constants.items()},
        attrs={
            place[name]: [["tt.divisibility", 16]]
            for name, kind in types.items()
            if kind.startswith("*")
        },
    )
    compiled = triton.compile(source, target=target, options={"num_warps": warps})
    if target.backend == "hip":
        found = {
            k: int(v)
            for k, v in re.findall(r"\.(\w+):\s*(\d+)$", compiled.asm["amdgcn"], re.MULTILINE)
        }
        assert found["vgpr_spill_count"] == found["sgpr_spill_count"] == 0
        return found["vgpr_count"], found["private_segment_fixed_size"]
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    binary = Path(os.environ["TRITON_CACHE_DIR"]) / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    command = [str(tools / "cuobjdump"), "-res-usage", str(binary)]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, local = (
        int(re.search(rf"\b{name}:(\d+)", usage)[1]) for name in ("REG", "STACK", "LOCAL")
    )
    return registers, stack + local


def assert_compiles(monkeypatch, tmp_path, target, **shape):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    names = set()
    for function, types, constants, warps in launches(monkeypatch, target, **shape):
        registers, stack = registers_and_stack(function, types, constants, warps, target)
        print(
            f"{target.arch} {shape} {function.__name__} {warps=}: {registers} registers, {stack} bytes of stack"
        )
        assert stack == 0
        assert registers <= REGISTERS[target.backend]
        names.add(function.__name__)
    assert names == KERNELS


@pytest.mark.parametrize("target", TARGETS)
def test_kernels_of_the_light_net_compile(monkeypatch, tmp_path, target):
    assert_compiles(monkeypatch, tmp_path, TARGETS[target], **LIGHT)


def test_kernels_compile_for_sizes_of_one(monkeypatch, tmp_path):
    """Triton compiles numbers that are 1 as constants."""
    assert_compiles(monkeypatch, tmp_path, TARGETS["sm_90"], H=1, W=1, channels=1, N=2, R=2, K=1)


@pytest.mark.long
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "shape",
    [
        CLASSIC,
        {"channels": 72, "N": 16, "R": 3},
        {"channels": 576, "N": 16, "R": 24},
        {**LIGHT, "K": 1},
        {**LIGHT, "dtype": torch.float16},
        {**LIGHT, "dtype": torch.bfloat16},
    ],
    ids=str,
)
def test_kernels_compile(monkeypatch, tmp_path, target, shape):
    assert_compiles(monkeypatch, tmp_path, TARGETS[target], **shape)


@pytest.mark.long
@pytest.mark.parametrize("target", TARGETS)
def test_kernels_with_indices_of_64_bits_compile(monkeypatch, tmp_path, target):
    monkeypatch.setattr(scan_triton, "LARGEST_INDEX", 0)
    assert_compiles(monkeypatch, tmp_path, TARGETS[target], **LIGHT)

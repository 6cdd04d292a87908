"""Whether kernels that measure a GPU do the work that is counted: from their machine code."""

import re
import subprocess
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip(
    "triton", reason="triton is not installed: pip install 'mambair[test]' (on Linux)"
)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from mambair_cli.bench.cost import gpu_rates  # noqa: E402


def loop_with_most(name, kernel, tmp_path):
    """The instructions of the part of a kernel for an H100 that has the most of this name."""
    source = ASTSource(
        fn=kernel,
        signature={"OUT": "*fp32", "repeats": "i32", "BLOCK": "constexpr"},
        constexprs={(2,): 32 * gpu_rates.CHAINS},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1})
    binary = tmp_path / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    text = subprocess.run(
        [str(tool), "-c", str(binary)], capture_output=True, text=True, check=True
    ).stdout
    loops = [
        body for label, body in re.findall(r"(\.L_x_\d+):\n((?:(?!\.L_x_\d+:).)*)", text, re.DOTALL)
    ]
    instructions = (re.findall(r"\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9.]*)", body) for body in loops)
    return max(instructions, key=lambda found: found.count(name))


# An exponential takes a processor as long as 8 other instructions: a few of those do not matter.
@pytest.mark.parametrize(
    ("kernel", "name", "beside"),
    [("exponentials", "MUFU.EX2", 1.2), ("multiply_adds", "FFMA", 0.1)],
)
def test_the_work_is_there_and_little_else(monkeypatch, tmp_path, kernel, name, beside):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found = loop_with_most(name, getattr(gpu_rates, kernel), tmp_path)
    assert found.count(name) > 0
    assert found.count(name) % gpu_rates.CHAINS == 0
    assert len(found) - found.count(name) < beside * found.count(name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_rates_of_a_gpu():
    rates = gpu_rates.measure_rates()
    assert 1e10 < rates.bytes < 2e13
    assert 1e10 < rates.exponentials < rates.instructions < 1e15

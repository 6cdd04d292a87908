import json
import os
import platform
import subprocess
import sys

import pytest
import scan_inputs as shared
import torch
from scan_inputs import (
    FORWARD_ERROR,
    GRADIENT_ERROR,
    NAMES,
    assert_within_bars,
    definition,
    scan_inputs,
    y_and_gradients,
)
from torch.utils._python_dispatch import TorchDispatchMode

from mambair_cli.ops import resolve_backend, scan_numba, simd
from mambair_cli.ops.scan_numba import CHUNK, state_count

scan_numba_op = resolve_backend("numba", "cpu").scan
# channels: whole vectors and a tail
MANY = simd.LANES * 3 + 5

SHAPES = {
    "odd": {"H": 5, "W": 7},
    "row": {"H": 1, "W": 45},
    "column": {"H": 45, "W": 1},
    "pixel": {"H": 1, "W": 1},
    "pixel, all of size 1": {"H": 1, "W": 1, "channels": 1, "N": 1, "R": 1},
    "whole chunks": {"H": CHUNK, "W": 2},
    "a step more than a chunk": {"H": CHUNK + 1, "W": 3},
    "batch": {"H": 6, "W": 5, "batch": 3},
    "channels: one vector": {"H": 4, "W": 9, "channels": simd.LANES},
    "channels: one more": {"H": 4, "W": 9, "channels": simd.LANES + 1},
    "channels: many": {"H": 4, "W": 9, "channels": MANY, "N": 6},
    "one state": {"H": 7, "W": 6, "N": 1, "R": 1},
    "many states": {"H": 3, "W": 6, "N": 16, "R": 12},
    "one direction": {"H": 7, "W": 9, "K": 1, "batch": 2, "channels": MANY},
    "one direction, pixel": {"H": 1, "W": 1, "K": 1},
}


@pytest.fixture(autouse=True)
def uninitialised_memory_is_not_a_number():
    """torch.empty gives NaN, so that what is read before it is written shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def assert_equal(found, expected):
    for name, a, b in zip(("y", *NAMES), found, expected, strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_outputs_and_gradients(shape):
    assert_within_bars(scan_numba_op, scan_inputs(**shape))


def test_forward_alone_gives_the_same_output():
    inputs = scan_inputs(5, 37, batch=2)
    with torch.inference_mode():
        y = scan_numba_op(*inputs)
    assert torch.equal(y, y_and_gradients(scan_numba_op, inputs)[0])


@pytest.mark.parametrize("bias", [20, -20])
def test_extreme_step_sizes(bias):
    inputs = scan_inputs(5, 37)
    inputs[3] = inputs[3] + bias
    assert_within_bars(scan_numba_op, inputs)


def test_decays_that_underflow():
    """Steps of any size: what is large forgets the past, what is small does nothing, and no NaN
    arises.
    """
    inputs = scan_inputs(5, 37)
    inputs[1] = inputs[1] * 100
    found = y_and_gradients(scan_numba_op, inputs)
    assert all(v.isfinite().all() for v in found)
    assert shared.errors(found, definition(inputs))[0] <= FORWARD_ERROR


@pytest.mark.parametrize("zero", range(6), ids=NAMES)
def test_zero_inputs(zero):
    inputs = scan_inputs(5, 7)
    inputs[zero] = torch.zeros_like(inputs[zero])
    assert_within_bars(scan_numba_op, inputs)


@pytest.mark.parametrize("bad", range(6), ids=NAMES)
def test_not_a_number_is_not_hidden(bad):
    inputs = scan_inputs(3, 3, channels=8)
    inputs[bad].view(-1)[0] = torch.nan
    expected = shared.ss2d_scan_sequential(*inputs)
    assert torch.equal(scan_numba_op(*inputs).isnan(), expected.isnan())


def test_non_contiguous_inputs_and_gradient():
    inputs = scan_inputs(5, 7, batch=2)
    expected = y_and_gradients(scan_numba_op, inputs)
    x, x_dbl = inputs[:2]
    strided = torch.full((*x.shape[:3], 2 * x.shape[3]), torch.nan)[..., ::2].copy_(x)
    inputs[:2] = strided, x_dbl.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0)
    inputs[2] = inputs[2].transpose(1, 2).contiguous().transpose(1, 2)
    inputs[4] = inputs[4].t().contiguous().t()
    assert not any(inputs[i].is_contiguous() for i in (0, 1, 2, 4))
    assert_equal(y_and_gradients(scan_numba_op, inputs), expected)

    leaves = [v.detach().requires_grad_() for v in inputs]
    gy = torch.randn(expected[0].shape, generator=torch.Generator().manual_seed(1))
    gy = gy.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    y = scan_numba_op(*leaves)
    found = torch.autograd.grad(y, leaves, gy, retain_graph=True)
    # D's is a sum in the order of the memory
    torch.testing.assert_close(found[5], expected[6])
    assert_equal([y, *found[:5], expected[6]], expected)

    dense = torch.autograd.grad(y, leaves, torch.ones_like(y), retain_graph=True)
    strideless = torch.autograd.grad(y.sum(), leaves)
    torch.testing.assert_close(strideless, dense)


@pytest.mark.parametrize("shape", [{"K": 4}, {"K": 1}, {"K": 4, "batch": 3}], ids=str)
def test_threads_do_not_change_the_output(shape, set_threads):
    inputs = scan_inputs(9, 7, channels=MANY, **shape)
    set_threads(1)
    expected = y_and_gradients(scan_numba_op, inputs)
    for threads in (2, 5):
        set_threads(threads)
        found = y_and_gradients(scan_numba_op, inputs)
        # Only x_dbl's gradient is a sum over groups of channels, whose number depends on the
        # threads.
        assert shared.errors([found[2]], [expected[2].double()])[0] < 1e-6
        assert_equal([*found[:2], expected[2], *found[3:]], expected)


def test_runs_repeat():
    inputs = scan_inputs(9, 7, batch=2)
    assert_equal(y_and_gradients(scan_numba_op, inputs), y_and_gradients(scan_numba_op, inputs))


@pytest.mark.parametrize("wanted", range(6), ids=NAMES)
def test_gradient_of_one_input_alone(wanted):
    inputs = scan_inputs(5, 7)
    expected = y_and_gradients(scan_numba_op, inputs)[1 + wanted]
    inputs[wanted].requires_grad_()
    y = scan_numba_op(*inputs)
    gy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    y.backward(gy)
    assert torch.equal(inputs[wanted].grad, expected)
    assert all(v.grad is None for i, v in enumerate(inputs) if i != wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    inputs = scan_inputs(5, 37, dtype=dtype)
    found = y_and_gradients(scan_numba_op, inputs)
    assert all(v.dtype == dtype for v in found)
    single = [v.float() for v in inputs]
    # The same gradient of y, rounded to half precision, reaches both.
    expected = y_and_gradients(lambda *v: scan_numba_op(*v).to(dtype), single)
    assert_equal(found, [v.to(dtype) for v in expected])


def test_mixed_precision():
    """As in a net under autocast: half-precision x, single-precision x_dbl and parameters."""
    inputs = scan_inputs(5, 7)
    inputs[0] = inputs[0].bfloat16()
    found = y_and_gradients(scan_numba_op, inputs)
    assert [v.dtype for v in found] == [torch.bfloat16, torch.bfloat16, *[torch.float32] * 5]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_saved_state_is_written(shape):
    inputs = scan_inputs(**shape)
    _, states = scan_numba.forward(*inputs, True)
    assert states.numel() == state_count(inputs[0].shape, inputs[2].shape[0], inputs[4].shape[1])
    assert not states.isnan().any()
    assert scan_numba.forward(*inputs, False)[1].numel() == 0


class Operations(TorchDispatchMode):
    """Collects the names of our operations that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "mambair":
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def test_states_are_saved_only_for_gradients(monkeypatch):
    saved = []
    forward = scan_numba.forward
    monkeypatch.setattr(scan_numba, "forward", lambda *a: saved.append(a[-1]) or forward(*a))
    inputs = scan_inputs(2, 3)
    scan_numba_op(*inputs)
    inputs[3].requires_grad_()
    scan_numba_op(*inputs)
    with torch.no_grad():
        scan_numba_op(*inputs)
    assert saved == [False, True, False]


def test_operations_that_run():
    with Operations() as operations:
        y_and_gradients(scan_numba_op, scan_inputs(2, 3))
    assert operations.names == ["mambair::ss2d_scan_numba", "mambair::ss2d_scan_numba_backward"]


def test_operations_are_registered_rightly():
    inputs = scan_inputs(5, 7, batch=2)
    states = scan_numba.forward(*inputs, True)[1]
    forward, backward = (
        torch.ops.mambair.ss2d_scan_numba.default,
        torch.ops.mambair.ss2d_scan_numba_backward.default,
    )
    torch.library.opcheck(forward, (*inputs, False))
    torch.library.opcheck(forward, (*[v.detach().requires_grad_() for v in inputs], True))
    torch.library.opcheck(backward, (torch.randn_like(inputs[0]), *inputs, states))


def test_a_compiled_graph_holds_the_operations():
    inputs = scan_inputs(2, 3)
    compiled = torch.compile(scan_numba_op, backend="aot_eager", fullgraph=True)
    assert_equal(y_and_gradients(compiled, inputs), y_and_gradients(scan_numba_op, inputs))


def test_a_second_derivative_is_refused():
    inputs = [v.requires_grad_() for v in scan_inputs(2, 3)]
    (gradient,) = torch.autograd.grad(
        scan_numba_op(*inputs).square().sum(), inputs[:1], create_graph=True
    )
    with pytest.raises(RuntimeError, match="has no second derivatives"):
        gradient.sum().backward()


def test_an_error_in_a_thread_is_not_swallowed(monkeypatch, set_threads):
    def broken(*_):
        raise ArithmeticError("the kernel")

    monkeypatch.setattr(scan_numba, "_forward", lambda: broken)
    for threads in (1, 2):
        set_threads(threads)
        with pytest.raises(ArithmeticError, match="the kernel"):
            scan_numba_op(*scan_inputs(2, 3))


ARM = platform.machine().lower() in ("aarch64", "arm64")
# What the environment asks for -> vector width and whether there are fused multiply-adds. All tests
# above run at the width that fits this processor.
WIDTHS = [n for n in (4, 8, 16) if n != simd.LANES]
SETTINGS = {f"width {n}": ({"MAMBAIR_SIMD_LANES": str(n)}, n, simd.HAS_FMA) for n in WIDTHS}
SETTINGS["generic CPU"] = ({"NUMBA_CPU_NAME": "generic"}, 4, ARM)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Measures the back end in a process of its own. All of them share a cache folder: none may
    take another's code from it.
    """
    cache = tmp_path_factory.mktemp("numba_cache")
    base = {k: v for k, v in os.environ.items() if not k.startswith(("MAMBAIR_SIMD", "NUMBA_CPU"))}
    # glibc fills new memory with 0x7f, the kernels' too: 3e38 where a float is read before it is
    # written.
    base |= {"NUMBA_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1", "MALLOC_PERTURB_": "128"}

    def measure(environment):
        command = [sys.executable, "-W", "error", shared.__file__]
        run = subprocess.run(
            command, env=base | environment, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr
        return json.loads(run.stdout)

    return measure


@pytest.mark.parametrize(("environment", "lanes", "fma"), SETTINGS.values(), ids=SETTINGS)
def test_vector_widths_and_the_cache(measured, environment, lanes, fma):
    found = measured(environment)
    assert (found["lanes"], found["fma"]) == (lanes, fma)
    assert found["compiled"] == [1, 1]
    assert found["finite"]
    assert found["forward"] <= FORWARD_ERROR
    assert found["gradients"] <= GRADIENT_ERROR
    # a second process finds all in the cache
    if environment == {"NUMBA_CPU_NAME": "generic"}:
        assert measured(environment) == found | {"compiled": [0, 0], "from_cache": [1, 1]}

import pytest
import torch
from scan_inputs import assert_within_bars, scan_inputs

from mambair_cli.ops import BACKENDS, ss2d_scan

RUNNABLE = [b.name for b in BACKENDS if b.unavailable("cpu", torch.float32) is None]


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.parametrize("shape", [(5, 7), (1, 9), (9, 1), (1, 1)], ids=str)
def test_named_back_end_runs_and_is_exact(ran, name, shape):
    assert_within_bars(
        lambda *inputs: ss2d_scan(*inputs, backend=name), scan_inputs(*shape, batch=2)
    )
    assert ran == [name]


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str
)
def test_auto_takes_the_fastest_that_can_run(ran, dtype):
    y = ss2d_scan(*scan_inputs(3, 4, dtype=dtype))
    assert ran == ["reference" if dtype == torch.float64 else "numba"]
    assert y.dtype == dtype
    assert y.shape == (1, 3, 4, 12)


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_does_not_reach_the_scan(name, dtype):
    inputs = scan_inputs(3, 40)
    expected = ss2d_scan(*inputs, backend=name)
    with torch.autocast("cpu", dtype):
        assert torch.equal(ss2d_scan(*inputs, backend=name), expected)


def flawed(index, change):
    inputs = scan_inputs(3, 4)
    inputs[index] = change(inputs[index])
    return inputs


@pytest.mark.parametrize("name", ["auto", *RUNNABLE])
@pytest.mark.parametrize(
    ("index", "change"),
    [
        (0, lambda x: x[0]),
        (0, lambda x: x[..., 1:]),
        (0, lambda x: x[:, 1:]),
        (1, lambda x_dbl: x_dbl[..., 1:]),
        (1, lambda x_dbl: x_dbl[:, :, :, :2]),
        (1, lambda x_dbl: x_dbl.transpose(1, 2)),
        (2, lambda weight: weight[:2]),
        (2, lambda weight: weight[:, :, 1:]),
        (3, lambda bias: bias.flatten()),
        (3, lambda bias: bias[:, 1:]),
        (4, lambda A_log: A_log[1:]),
        (4, lambda A_log: A_log.view(4, -1, A_log.shape[1])),
        (5, lambda D: D[1:]),
        (5, lambda D: D[:, None]),
    ],
)
def test_shapes_that_do_not_fit_are_refused(ran, name, index, change):
    with pytest.raises(ValueError, match=r"do not fit|must be"):
        ss2d_scan(*flawed(index, change), backend=name)
    assert ran == []


def test_two_directions_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        ss2d_scan(*scan_inputs(3, 4, K=2))

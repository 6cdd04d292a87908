"""The kernel behind `window_attention`."""

import torch
from windows import by_definition, inputs

from mambair_cli.ops import window_attention


def test_threads_give_the_same():
    qkv, bias = inputs(2, 5, 8, (2, 2, 3))
    threads, found = torch.get_num_threads(), []
    for n in (1, 2, 40):
        torch.set_num_threads(n)
        with torch.no_grad():
            found.append(window_attention(qkv, bias, True, backend="numba"))
    torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_large_scores_do_not_overflow():
    qkv, bias = inputs(2, 3, 8)
    with torch.no_grad():
        found = window_attention(100 * qkv, bias, False, backend="numba")
    expected = by_definition(100 * qkv, bias, False)
    assert (found - expected).abs().max() < 1e-3 * expected.abs().max()


def test_not_a_number_stays_in_its_window():
    qkv, bias = inputs(2, 3, 8)
    qkv[0, 3, 9, 7] = torch.nan
    with torch.no_grad():
        found = window_attention(qkv, bias, False, backend="numba").isnan().any(-1)
    assert found[0, :, 8:16].all()
    assert found.sum() == 64

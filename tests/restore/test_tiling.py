import itertools

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mambair_cli.errors import CallError
from mambair_cli.restore.tiling import merge, plan


@st.composite
def calls(draw):
    """Arguments of a `plan` that must succeed: sides are multiples, the tile is larger than the
    overlap.
    """
    multiple = draw(st.sampled_from([1, 2, 8]))
    overlap = draw(st.integers(0, 30))
    least = (-(-overlap // multiple) + 1) * multiple
    tile = draw(st.integers(least, least + 40))
    height, width = draw(st.integers(1, 150 // multiple)), draw(st.integers(1, 150 // multiple))
    return {
        "height": height * multiple,
        "width": width * multiple,
        "tile": tile,
        "overlap": overlap,
        "multiple": multiple,
    }


def axes(call):
    p = plan(**call)
    return [(call["height"], p.tile_height, p.tops), (call["width"], p.tile_width, p.lefts)]


@given(call=calls())
@settings(max_examples=200, deadline=None)
def test_plans_keep_what_was_asked(call):
    tile, overlap, multiple = call["tile"], call["overlap"], call["multiple"]
    for size, length, starts in axes(call):
        assert starts[0] == 0
        assert starts[-1] + length == size
        assert length <= tile
        if size <= tile:
            assert (length, starts) == (size, (0,))
        assert not any(value % multiple for value in (length, *starts))
        steps = [b - a for a, b in itertools.pairwise(starts)]
        assert all(length - step >= overlap for step in steps)
        assert not steps or max(steps) - min(steps) <= multiple


@given(call=calls())
@settings(max_examples=200, deadline=None)
def test_fewer_or_smaller_tiles_would_not_do(call):
    multiple = call["multiple"]
    overlap = -(-call["overlap"] // multiple) * multiple
    largest = call["tile"] // multiple * multiple
    for size, length, starts in axes(call):
        count = len(starts)
        assert count == 1 or (count - 1) * largest - (count - 2) * overlap < size
        assert count * (length - multiple) - (count - 1) * overlap < size


@given(call=calls(), scale=st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_weights_sum_to_one_everywhere(call, scale):
    p = plan(**call)
    total = np.zeros((scale * p.height, scale * p.width))
    for (top, left), (rows, columns) in zip(p.boxes, p.weights(scale), strict=True):
        assert rows.dtype == columns.dtype == np.float32
        assert rows.shape == (scale * p.tile_height,)
        assert columns.shape == (scale * p.tile_width,)
        assert min(rows.min(), columns.min()) >= 0
        y, x = scale * top, scale * left
        total[y : y + rows.size, x : x + columns.size] += np.outer(rows, columns)
    np.testing.assert_allclose(total, 1, rtol=0, atol=1e-6)


def test_a_plan_by_hand():
    p = plan(20, 40, tile=20, overlap=8)
    assert (p.tile_height, p.tops) == (20, (0,))
    # 3 * 19 - 2 * 8 = 41: the steps are 10 and 11
    assert (p.tile_width, p.lefts) == (
        19,
        (0, 10, 21),
    )
    assert p.boxes == [(0, 0), (0, 10), (0, 21)]
    p = plan(64, 64, tile=50, overlap=10, multiple=8)
    # 10 is two eights: they share 16
    assert (p.tile_height, p.tops) == (40, (0, 24))
    assert p.boxes == [(0, 0), (0, 24), (24, 0), (24, 24)]


def test_weights_by_hand():
    # Two tiles of 12 share 8 pixels: 2 of no weight, a raised cosine over 4, 2 of full weight.
    p = plan(1, 16, tile=12, overlap=8)
    ramp = (1 - np.cos(np.pi * np.array([1, 3, 5, 7]) / 8)) / 2
    (_, left), (_, right) = p.weights()
    np.testing.assert_allclose(right, [0, 0, *ramp, 1, 1, 1, 1, 1, 1], atol=1e-7)
    np.testing.assert_allclose(left, right[::-1], atol=1e-7)
    (_, left), (_, right) = plan(1, 16, tile=12, overlap=0).weights(2)
    # two tiles of 8, cut hard
    np.testing.assert_array_equal([left, right], np.ones((2, 16)))


def box_filter(image, radius, scale=1):
    """An operator that looks `radius` pixels far, and mirrors the image at its borders; then
    enlarges.
    """
    side = 2 * radius + 1
    mean = cv2.blur(image, (side, side), borderType=cv2.BORDER_REFLECT)[..., None]
    return mean.repeat(scale, axis=0).repeat(scale, axis=1)


def in_tiles(p, image, operator, scale=1):
    """Run the operator tile by tile; the tiles are copies, so that none sees beyond its edge."""
    tiles = (
        image[top : top + p.tile_height, left : left + p.tile_width].copy() for top, left in p.boxes
    )
    return merge(p, (operator(tile) for tile in tiles), scale)


SIZES = [(40, 40), (41, 57), (64, 29), (100, 73), (33, 120), (128, 128)]


@pytest.mark.parametrize("overlap", [0, 1, 4, 7, 8, 12, 16, 23])
@pytest.mark.parametrize("tile", [24, 25, 32])
@pytest.mark.parametrize("size", SIZES)
def test_a_local_operator_is_exact_up_to_a_quarter_of_the_overlap(size, tile, overlap):
    image = np.random.default_rng(0).random(size)
    p = plan(*size, tile, overlap)
    radius = overlap // 4
    whole = box_filter(image, radius)
    np.testing.assert_allclose(
        in_tiles(p, image, lambda t: box_filter(t, radius)), whole, rtol=0, atol=1e-6
    )

    # One pixel further than the quarter of what neighbours really share, and the seams show.
    shared = max(
        length - step
        for length, starts in [(p.tile_height, p.tops), (p.tile_width, p.lefts)]
        for step in np.diff(starts)
    )
    far = int(shared) // 4 + 1
    seams = np.abs(in_tiles(p, image, lambda t: box_filter(t, far)) - box_filter(image, far))
    assert seams.max() > 1e-5


@pytest.mark.parametrize("scale", [2, 3])
def test_a_local_operator_that_enlarges_is_exact(scale):
    image = np.random.default_rng(0).random((50, 67))
    p = plan(50, 67, tile=24, overlap=12)
    result = in_tiles(p, image, lambda t: box_filter(t, 3, scale), scale)
    np.testing.assert_allclose(result, box_filter(image, 3, scale), rtol=0, atol=1e-6)
    assert result.dtype == np.float32


def test_pixels_without_weight_are_never_read():
    p = plan(1, 16, tile=12, overlap=8)
    left, right = np.ones((1, 12, 1), np.float32), np.ones((1, 12, 1), np.float32)
    left[:, -2:] = right[:, :2] = np.nan
    np.testing.assert_allclose(merge(p, [left, right]), np.ones((1, 16, 1)), atol=1e-6)
    # the next pixel counts
    left[:, -3] = np.nan
    assert np.isnan(merge(p, [left, right])).any()


def test_one_tile_comes_back_bit_for_bit():
    output = np.random.default_rng(0).standard_normal((14, 18, 3)).astype(np.float32)
    np.testing.assert_array_equal(merge(plan(7, 9, tile=16, overlap=4), [output], 2), output)


def test_blending_is_smooth_between_tiles_that_disagree():
    p = plan(1, 16, tile=12, overlap=8)
    line = merge(p, [np.full((1, 12, 1), value, np.float32) for value in (0, 1)])[0, :, 0]
    assert (np.diff(line) >= 0).all()
    assert 0 < np.diff(line).max() < 0.5
    assert (line[:6] == 0).all()
    assert (line[10:] == 1).all()


def test_wrong_calls():
    wrong = [(16, 16, 1), (16, 20, 1), (16, -1, 1), (0, 0, 1), (15, 4, 16), (23, 9, 8)]
    for tile, overlap, multiple in wrong:
        with pytest.raises(CallError, match="overlap"):
            plan(64, 64, tile, overlap, multiple)
    with pytest.raises(ValueError, match="multiple of 8"):
        plan(64, 60, 32, 8, multiple=8)
    with pytest.raises(ValueError, match="0 pixels"):
        plan(0, 60, 32, 8)


def test_results_must_fit_the_plan():
    p = plan(16, 30, tile=20, overlap=4)
    good = np.zeros((16, p.tile_width, 3), np.float32)
    for bad in (good[1:], good[..., :2], good[..., 0]):
        with pytest.raises(ValueError, match="shape"):
            merge(p, [good, bad])
    for outputs in ([good], [good] * 3):
        with pytest.raises(ValueError, match="zip"):
            merge(p, outputs)

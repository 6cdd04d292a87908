import numpy as np

from mambair_cli.bench.quality.spots import find_spot


def test_the_spot_holds_the_largest_difference():
    a = np.full((60, 80, 3), 100, np.uint8)
    b = a.copy()
    b[40:45, 60:66, 1] = 90
    b[5, 5] = 120  # stronger, but less in sum
    top, left, side = find_spot(a, b, 16)
    assert side == 16
    assert 29 <= top <= 40
    assert 50 <= left <= 60
    assert find_spot(b[..., 1], a[..., 1], 16)[:2] == (top, left)


def test_a_spot_at_the_edge_lies_inside():
    a = np.zeros((20, 30), np.uint8)
    b = a.copy()
    b[-1, -1] = 255
    top, left, side = find_spot(a, b, 8)
    assert (top, left) == (12, 22)
    assert a[top : top + side, left : left + side].shape == (8, 8)


def test_small_images_are_shown_whole():
    assert find_spot(np.zeros((5, 9)), np.ones((5, 9)), 64) == (0, 0, 5)

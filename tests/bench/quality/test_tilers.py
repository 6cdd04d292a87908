import numpy as np
import pytest
from failing import fails

from mambair_cli.bench.quality.tilers import check_tiler, restore_split
from mambair_cli.errors import CallError

RNG = np.random.default_rng(0)


def split(image, scale=1, operator=None):
    """The result, and the shape and share of each part."""
    seen = []

    def restore(part, share):
        seen.append((part.shape[:2], share))
        part = operator(part) if operator else part
        return part.repeat(scale, 0).repeat(scale, 1)

    return restore_split(image, scale, restore), seen


@pytest.mark.parametrize(
    "shape", [(30, 40, 3), (199, 199, 3), (200, 401, 3), (1, 205), (407, 211), (600, 3, 1)]
)
@pytest.mark.parametrize("scale", [1, 2, 3])
def test_what_looks_at_single_pixels_is_the_same_in_parts(shape, scale):
    image = RNG.integers(0, 256, shape, dtype=np.uint8)
    result, seen = split(image, scale, lambda part: 255 - part)
    assert result.dtype == np.uint8
    assert np.array_equal(result, (255 - image).repeat(scale, 0).repeat(scale, 1))
    assert sum(share for _, share in seen) == pytest.approx(1)
    assert len(seen) == (shape[0] // 200 + 1) * (shape[1] // 200 + 1)


def test_parts_and_their_margins_by_hand():
    # 401 rows: 3 parts of ceil(401 / 3) = 134 with margins of 13; 200 columns: 2 of 100 with 10.
    _, seen = split(np.zeros((401, 200)))
    heights = (134 + 13, 134 + 26, 134 + 13)
    assert [shape for shape, _ in seen] == [(height, 110) for height in heights for _ in (0, 1)]
    assert split(np.zeros((199, 199)))[1] == [((199, 199), 1.0)]  # one part is the image itself


def test_the_image_is_padded_by_reflection_at_its_end():
    column = np.arange(401.0)[:, None]
    parts = []
    restore_split(column, 1, lambda part, share: parts.append(part) or part)
    assert parts[-1][-3:, 0].tolist() == [399, 400, 399]  # to 402


def test_parts_are_cut_hard_beyond_the_margin():
    # An operator that marks how far a pixel is from the end of its part.
    def distance(part):
        rows = np.arange(len(part))
        return np.broadcast_to(np.minimum(rows, rows[::-1])[:, None], part.shape)

    result, _ = split(np.zeros((300, 20)), 1, distance)
    assert result[149, 0] == result[150, 0] == 15  # 150 rows a part, margins of 15
    assert result[0, 0] == result[299, 0] == 0


def test_tilers_by_name():
    for name in ("auto", "whole", "published"):
        assert check_tiler(name) == name
    fails(lambda: check_tiler("64"), CallError, "auto, whole, published", "'64'")

import pytest

from mambair_cli.restore.size import Size

SIZES = [
    (Size(), (30, 40), 1),
    (Size(2.5), (75, 100), 2.5),
    (Size(width=60), (45, 60), 1.5),
    (Size(height=60), (60, 80), 2),
    (Size(width=60, height=120), (45, 60), 1.5),
    (Size(width=400, height=45), (45, 60), 1.5),
    (Size(width=60, height=120, exact=True), (120, 60), 4),
]


@pytest.mark.parametrize(("size", "result", "factor"), SIZES)
def test_the_size_of_a_result(size, result, factor):
    assert size.of(30, 40) == result
    assert size.factor(30, 40) == factor


def test_no_side_becomes_nothing():
    assert Size(width=16).of(3, 1000) == (1, 16)

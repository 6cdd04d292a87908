import math

import numpy as np
import pytest

from mambair_cli.bench.quality.intervals import interval, student_t


@pytest.mark.parametrize(
    ("freedom", "level", "quantile"),  # of printed tables
    [
        (1, 0.95, 12.706),
        (2, 0.95, 4.303),
        (4, 0.95, 2.776),
        (10, 0.95, 2.228),
        (99, 0.95, 1.984),
        (4, 0.99, 4.604),
        (30, 0.9, 1.697),
    ],
)
def test_quantiles_of_student(freedom, level, quantile):
    assert student_t(freedom, level) == pytest.approx(quantile, abs=6e-4)


def test_many_values_are_normal():
    assert student_t(100_000) == pytest.approx(1.95997, abs=1e-4)


def test_interval_by_hand():
    # Mean 3, deviation sqrt(2.5), standard error sqrt(0.5).
    low, high = interval([1, 2, 3, 4, 5])
    assert high - 3 == pytest.approx(3 - low) == pytest.approx(2.776445 * math.sqrt(0.5), abs=1e-5)


def test_the_interval_holds_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = sum(
        low < 0 < high
        for low, high in (interval(rng.standard_normal(5).tolist()) for _ in range(600))
    )
    assert 0.92 < held / 600 < 0.98


def test_what_has_no_interval():
    assert interval([]) is None
    assert interval([1.0]) is None
    assert interval([1.0, math.inf]) is None
    assert interval([2.0, 2.0]) == (2, 2)

import pytest
from training import recipe

from mambair_cli.training.schedule import Stage, learning_rate, stage_at, stages


@pytest.mark.parametrize(
    ("total", "share", "warmup"), [(1000, 0.03, 30), (50, 0, 1), (10, 1, 10), (1, 0.5, 1)]
)
def test_learning_rate(total, share, warmup):
    config = recipe(lr=0.5, iterations=total, warmup=share)
    rates = [learning_rate(config, i) for i in range(total + 1)]
    assert rates[:warmup] == pytest.approx([0.5 * (i + 1) / warmup for i in range(warmup)])
    assert max(rates) == rates[warmup - 1] == 0.5
    if warmup < total:
        assert rates[warmup] == 0.5
        assert rates[(warmup + total) // 2] == pytest.approx(0.25, rel=0.1)
        assert all(a > b for a, b in zip(rates[warmup:], rates[warmup + 1 :], strict=False))
        assert 0 < rates[total - 1] < 0.5 * 3 / (total - warmup) ** 2
        assert rates[total] == pytest.approx(0, abs=1e-12)


def test_the_rate_may_halve_in_steps():
    config = recipe(lr=0.4, iterations=200, warmup=0, halve_at=[0.5, 0.8, 0.95])
    rates = [learning_rate(config, i) for i in range(200)]
    changes = {i: rates[i] for i in range(1, 200) if rates[i] != rates[i - 1]}
    assert rates[0] == 0.4
    assert changes == {100: pytest.approx(0.2), 160: pytest.approx(0.1), 190: pytest.approx(0.05)}


def test_the_rate_may_stay_before_it_falls():
    """As for real denoising: 92k flat, then a cosine to the floor."""
    config = recipe(lr=3e-4, iterations=300, warmup=0, flat=92 / 300, floor=1e-6)
    assert {learning_rate(config, i) for i in range(93)} == {3e-4}
    assert learning_rate(config, 196) == pytest.approx((3e-4 + 1e-6) / 2)
    assert learning_rate(config, 299) == pytest.approx(1e-6, rel=0.02)
    constant = recipe(lr=3e-4, iterations=9, warmup=0, flat=1)
    assert {learning_rate(constant, i) for i in range(9)} == {3e-4}


def test_stages():
    config = recipe(iterations=[3, 2, 1], patch=[8, 9, 10], batch=4)
    assert stages(config) == [Stage(8, 4), Stage(9, 4), Stage(10, 4)]
    assert [stage_at(config, i).patch for i in range(8)] == [8, 8, 8, 9, 9, 10, 10, 10]

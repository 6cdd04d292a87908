import importlib.util

import pytest
from failing import fails

from mambair_cli.bench.figures import canvas
from mambair_cli.errors import CallError
from mambair_cli.images.folders import read_rgb


@pytest.mark.parametrize("suffix", canvas.SUFFIXES)
def test_a_figure_is_written(tmp_path, suffix):
    path = canvas.check_figure(tmp_path / f"figure{suffix}")
    figure, axes = canvas.panels(1, 2, 4, 2)
    assert axes.shape == (1, 2)
    canvas.bare(axes[0, 1], "below")
    assert (axes[0, 1].get_xlabel(), list(axes[0, 1].get_xticks())) == ("below", [])
    canvas.save(figure, path)
    assert path.stat().st_size > 500
    if suffix == ".png":
        assert read_rgb(path).shape == (400, 800, 3)


def test_svg_does_not_depend_on_the_time(tmp_path):
    for name in ("a.svg", "b.svg"):
        canvas.save(canvas.panels(1, 1, 2, 2)[0], tmp_path / name)
    a, b = ((tmp_path / name).read_text() for name in ("a.svg", "b.svg"))
    assert "<dc:date>" not in a
    assert len(a) == len(b)


def test_what_cannot_be_written_is_told_before_the_work(tmp_path, monkeypatch):
    fails(lambda: canvas.check_figure(tmp_path / "a.jpg"), CallError, "a.jpg", ".png, .svg, .pdf")
    fails(
        lambda: canvas.check_figure(tmp_path / "none" / "a.png"),
        CallError,
        "no folder",
        tmp_path / "none",
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    fails(
        lambda: canvas.check_figure(tmp_path / "a.png"), CallError, "pip install 'mambair[bench]'"
    )

import pytest

from mambair_cli.bench.figures import canvas
from mambair_cli.bench.peers import picture
from mambair_cli.bench.peers.race import PeerReport, PeerRow

pytest.importorskip("matplotlib", reason="figures need matplotlib")


def row(name, psnr, seconds, ours=False):
    times = (seconds, seconds)
    return PeerRow(
        name, ours, psnr is not None, 411_000, psnr, None, times, seconds, 1.0, 2**28, ""
    )


def test_the_picture(monkeypatch, tmp_path):
    drawn = []
    save = canvas.save
    monkeypatch.setattr(
        canvas, "save", lambda figure, path: drawn.append(figure) or save(figure, path)
    )
    rows = (
        row("tiny-x2", 37.7, 2.0, True),
        row("SPAN", 38.1, 1.0),
        row("SwinIR-light", None, 20.0),
    )
    failed = row("broken", 30.0, None)
    picture.draw(PeerReport(2, "Set5", 5, 256, 5, (*rows, failed), {}), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000
    (ax,) = drawn[0].axes
    texts = [text.get_text() for text in ax.texts]
    assert texts == ["tiny-x2, 411 K", "SPAN, 411 K", "SwinIR-light (time only)"]
    points = [(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines[:2]]
    assert points == [(2.0, 37.7), (1.0, 38.1)]
    assert list(ax.lines[2].get_xdata()) == [20.0, 20.0]
    assert ax.get_title() == "Set5 x2, 5 images"

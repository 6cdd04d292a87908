import csv
import shutil

import fit_processed
import numpy as np
import PIL.Image
from calls import DATA

from mambair_cli.degradations.processed import NAMES

PHOTO = np.asarray(PIL.Image.open(DATA / "photo.png").convert("RGB"))


def test_two_classes_are_told_apart():
    generator = np.random.default_rng(0)
    first, second = generator.normal(0, 1, (200, 3)), generator.normal(0, 1, (100, 3))
    second[:, 1] += 4
    weights = fit_processed.fit(first, second)
    scores = [fit_processed.design(values) @ weights for values in (first, second)]
    assert np.mean(scores[0] < 0) > 0.95
    assert np.mean(scores[1] > 0) > 0.95


def test_what_happens_to_photos_is_seeded():
    first, second = (fit_processed.process(PHOTO, np.random.default_rng(7)) for _ in range(2))
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, second)
    other = fit_processed.process(PHOTO, np.random.default_rng(8))
    assert other.shape != first.shape or (other != first).any()


def test_the_table_is_written_for_every_trace(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fit_processed, "WEIGHTS", tmp_path / "processed.csv")
    monkeypatch.setattr(fit_processed, "downscale", lambda photo, factor: photo)
    monkeypatch.setattr(fit_processed, "process", lambda photo, generator: photo[:-2, :-2])
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("photo", "osprey", "dragonfly"):
        shutil.copy(DATA / f"{name}.png", photos)
    fit_processed.main([str(photos)])
    with (tmp_path / "processed.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["trace"] for row in rows] == [*NAMES, "bias"]
    assert "clean, " in capsys.readouterr().out

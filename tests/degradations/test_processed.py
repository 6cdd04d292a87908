import csv

import cv2
import numpy as np
import PIL.Image
import pytest
from calls import DATA
from failing import fails

from mambair_cli.degradations.processed import NAMES, WEIGHTS, processed, traces

PHOTOS = {
    name: np.asarray(PIL.Image.open(DATA / f"{name}.png").convert("RGB"))
    for name in ("photo", "osprey", "dragonfly")
}
every_photo = pytest.mark.parametrize("name", PHOTOS)


@every_photo
def test_filters_and_resizing_are_seen(name):
    photo = PHOTOS[name]
    clean = processed(photo)
    assert clean < 2
    soft = cv2.GaussianBlur(photo, (0, 0), 0.8)
    size = int(1.25 * photo.shape[1]), int(1.25 * photo.shape[0])
    for changed in (soft, cv2.resize(photo, size, interpolation=cv2.INTER_LINEAR)):
        assert processed(changed) > clean + 0.5


@every_photo
def test_depth_and_colour_matter_little(name):
    photo = PHOTOS[name]
    expected = processed(photo)
    assert processed(photo.astype(np.uint16) * 257) == pytest.approx(expected, abs=0.01)
    assert processed(photo.astype(np.float32) / 255) == pytest.approx(expected, abs=0.01)
    gray = photo[:, :, 1]
    assert processed(gray) < 3.2
    assert processed(np.repeat(gray[:, :, None], 3, 2)) == pytest.approx(processed(gray), abs=1.5)
    assert np.isnan(traces(gray)).sum() == 5


def test_what_is_too_small_or_too_plain_is_not_judged():
    assert processed(PHOTOS["photo"][:60, :90]) is None
    assert processed(np.full((200, 200, 3), 90, np.uint8)) is None
    assert processed(np.full((20, 20), 90, np.uint8)) is None
    fails(lambda: processed(np.zeros((99, 99, 4), np.uint8)), ValueError, "H x W x 3")


def test_the_table_holds_every_trace():
    with WEIGHTS.open(encoding="utf-8", newline="") as file:
        assert [row["trace"] for row in csv.DictReader(file)] == [*NAMES, "bias"]
    assert traces(PHOTOS["photo"]).shape == (len(NAMES),)

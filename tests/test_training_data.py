from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mambair_cli.datasets import list_images, read_rgb
from mambair_cli.degrade import Jpeg, Noise
from mambair_cli.errors import CallError
from mambair_cli.image_io import Image, write_image
from mambair_cli.metrics import to_y
from mambair_cli.resize import downscale
from mambair_cli.training import data
from mambair_cli.training.data import TrainingPairs, read_images, split, validation_pairs

DATA = Path(__file__).parent / "data"
FLIPS = [(up, left, turn) for up in (1, -1) for left in (1, -1) for turn in (False, True)]


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


def save(folder, name, pixels):
    folder.mkdir(exist_ok=True)
    write_image(folder / name, Image(pixels))
    return folder / name


def training_pairs(files, scale, patch, seed=0, degradation=None, channels=3):
    return TrainingPairs(files, scale, degradation, patch, channels, seed)


def flipped(image, flip):
    up, left, turn = flip
    image = image[::up, ::left]
    return image.swapaxes(0, 1) if turn else image


def pixels(batch):
    """(B,3,H,W) in [0,1] -> B x H x W x 3 uint8; fails where a value is not that of a pixel."""
    scaled = batch.permute(0, 2, 3, 1).numpy() * 255
    rounded = np.rint(scaled)
    assert np.abs(scaled - rounded).max() < 1e-3
    return rounded.astype(np.uint8)


def find(patch, image):
    """All (top, left, flip) at which a low-resolution patch lies in an image."""
    side = patch.shape[0]
    return [
        (top, left, flip)
        for top in range(image.shape[0] - side + 1)
        for left in range(image.shape[1] - side + 1)
        for flip in FLIPS
        if np.array_equal(flipped(image[top : top + side, left : left + side], flip), patch)
    ]


# Files


def test_held_out_images_are_not_trained_on(tmp_path):
    for i in range(30):
        (tmp_path / f"{i:02}.png").touch()
    files, held_out = split(tmp_path, None, 8)
    assert len(held_out) == len(set(held_out)) == 8
    assert sorted(files + held_out) == list_images(tmp_path)
    assert files == sorted(files)
    assert split(tmp_path, None, 8) == (files, held_out)
    # A resumed run relies on the choice, so it stays the same from version to version.
    assert sorted(int(path.stem) for path in held_out) == [0, 1, 2, 7, 8, 12, 15, 19]


def test_validation_images_within_the_data_are_not_trained_on(tmp_path):
    (tmp_path / "val").mkdir()
    for name in ("a.png", "b.png", "val/c.png"):
        (tmp_path / name).touch()
    files, held_out = split(tmp_path, tmp_path / "." / "val" / ".." / "val", 8)
    assert files == [tmp_path / "a.png", tmp_path / "b.png"]
    assert [path.name for path in held_out] == ["c.png"]


# Images


def test_read_images_says_why_images_are_left_out(tmp_path):
    good = save(tmp_path, "good.png", noise(16, 17))
    small = save(tmp_path, "small.png", noise(15, 40))
    dot = save(tmp_path, "dot.png", noise(1, 1))
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(good.read_bytes()[:200])
    text = tmp_path / "text.png"
    text.write_text("no image")
    empty = tmp_path / "empty.png"
    empty.write_bytes(b"")
    (image,), skipped = read_images([small, good, dot, damaged, text, empty], 16, 3)
    assert np.array_equal(image, noise(16, 17))
    assert [Path(reason.split(": ")[0]) for reason in skipped] == [small, dot, damaged, text, empty]
    assert "smaller than 16 pixels" in skipped[0]
    assert "not an image" in skipped[3]
    with pytest.raises(CallError, match=r"none of 2 images .* first: .*small\.png: smaller than 16"):
        read_images([small, text], 16, 3)
    with pytest.raises(CallError, match="none of 0 images"):
        training_pairs([], 2, 8)


def test_gray_is_the_luma_of_the_metrics(tmp_path):
    (gray,), _ = read_images([save(tmp_path, "a.png", noise(9, 8))], 8, 1)
    assert (gray.shape, gray.dtype) == ((9, 8, 1), np.uint8)
    assert np.abs(gray[:, :, 0] - to_y(noise(9, 8))).max() <= 0.5 + 1e-9


# Validation


def test_validation_pairs_are_centres_that_are_shrunk(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "VALIDATION_CROP", 6)
    monkeypatch.setattr(data, "VALIDATION_SMALLEST", 5)
    image = noise(21, 10)
    (pair,), _ = validation_pairs([save(tmp_path, "a.png", image)], 2, None, 3)
    assert np.array_equal(pair.high, image[4:16])  # wide enough by less than a crop: the width stays
    assert pair.low.dtype == np.float32
    assert np.array_equal(pair.low * 255, downscale(image[4:16], 2))
    _, skipped = validation_pairs([tmp_path / "a.png", save(tmp_path, "b.png", noise(9, 20))], 2, None, 3)
    assert "b.png: smaller than 10 pixels" in skipped[0]


def test_validation_spreads_the_strength_of_what_spoils_images_evenly(tmp_path):
    """Noise of 0 to 40 over four images has 5, 15, 25 and 35, and is the same in every run."""
    files = [save(tmp_path, f"{i}.png", np.full((96, 96, 3), 128, np.uint8)) for i in range(4)]
    pairs, _ = validation_pairs(files, 1, Noise((0, 40)), 3)
    again, _ = validation_pairs(files, 1, Noise((0, 40)), 3)
    errors = [pair.low * 255 - pair.high for pair in pairs]
    assert [e.std() for e in errors] == pytest.approx([5, 15, 25, 35], rel=0.03)
    assert all(np.array_equal(a.low, b.low) for a, b in zip(pairs, again, strict=True))
    assert not np.allclose(errors[0] / 5, errors[1] / 15, atol=0.1)
    with_range, _ = validation_pairs(files, 1, Jpeg((10, 90)), 3)
    assert len(with_range) == 4  # whole numbers stay whole


# Batches


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noise")
    for i, (height, width) in enumerate([(30, 37), (24, 25), (41, 28)]):
        save(folder, f"{i}.png", noise(height, width, i))
    return folder


@pytest.mark.parametrize("scale", [2, 3])
def test_a_batch_depends_on_seed_and_iteration_alone(folder, scale):
    files = list_images(folder)
    pairs, again = training_pairs(files, scale, 6, seed=5), training_pairs(files, scale, 6, seed=5)
    expected = [pairs.batch(i, 4) for i in range(3)]
    for i in (2, 0, 1):  # in another order
        for a, b in zip(again.batch(i, 4), expected[i], strict=True):
            assert torch.equal(a, b)
    for low, high in expected:
        assert (low.shape, high.shape) == ((4, 3, 6, 6), (4, 3, 6 * scale, 6 * scale))
        assert low.dtype == high.dtype == torch.float32
    assert not torch.equal(expected[0][0], expected[1][0])
    assert not torch.equal(training_pairs(files, scale, 6, seed=6).batch(0, 4)[0], expected[0][0])


def test_a_batch_leaves_the_global_generators_alone(folder):
    pairs = training_pairs(list_images(folder), 2, 6, seed=5)
    np.random.seed(3)
    torch.manual_seed(3)
    before = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    pairs.batch(0, 4)
    assert (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before


@pytest.mark.parametrize("scale", [2, 3])
def test_patches_are_crops_of_the_whole_image_shrunk(folder, scale):
    """Not crops that are shrunk: those would have other pixels near their edges."""
    files = list_images(folder)
    pairs = training_pairs(files, scale, 6, seed=1)
    wholes = [read_rgb(path) for path in files]
    lows = [downscale(whole, scale) for whole in wholes]
    used = set()
    for low, high in zip(*map(pixels, pairs.batch(0, 30)), strict=True):
        places = [(i, *place) for i, image in enumerate(lows) for place in find(low, image)]
        assert len(places) == 1
        i, top, left, flip = places[0]
        crop = wholes[i][top * scale : (top + 6) * scale, left * scale : (left + 6) * scale]
        assert np.array_equal(high, flipped(crop, flip))
        used.add(i)
    assert used == {0, 1, 2}


def test_all_places_and_all_eight_flips_occur(tmp_path):
    image = noise(16, 20)
    pairs = training_pairs([save(tmp_path, "a.png", image)], 2, 7, seed=2)
    low = downscale(image, 2)  # 8 x 10
    counts: dict = {}
    for patch in pixels(pairs.batch(0, 800)[0]):
        (place,) = find(patch, low)
        counts[place] = counts.get(place, 0) + 1
    assert set(counts) == {(top, left, flip) for top in range(2) for left in range(4) for flip in FLIPS}
    assert max(counts.values()) < 35  # 12.5 are expected


def test_a_patch_may_be_the_whole_image(tmp_path):
    image = noise(17, 16)
    pairs = training_pairs([save(tmp_path, "a.png", image)], 2, 8, seed=0)
    (low,), (high,) = map(pixels, pairs.batch(0, 1))
    (place,) = find(low, downscale(image, 2))
    assert np.array_equal(high, flipped(image[:16], place[2]))
    with pytest.raises(CallError, match="smaller than 18 pixels"):
        training_pairs([tmp_path / "a.png"], 2, 9, seed=0)


def test_images_are_drawn_by_area(tmp_path):
    black = save(tmp_path, "black.png", np.zeros((16, 16, 3), np.uint8))
    white = save(tmp_path, "white.png", np.full((32, 24, 3), 255, np.uint8))
    pairs = training_pairs([black, white], 2, 4, seed=0)
    assert pairs.batch(0, 4000)[0].mean().item() == pytest.approx(3 / 4, abs=0.03)


def test_skipped_images_take_no_part(tmp_path):
    white = save(tmp_path, "white.png", np.full((16, 16, 3), 255, np.uint8))
    black = save(tmp_path, "black.png", np.zeros((6, 90, 3), np.uint8))
    pairs = training_pairs([black, white], 2, 4, seed=0)
    assert pairs.batch(0, 50)[1].min().item() == 1
    assert [str(black) in reason for reason in pairs.skipped] == [True]


def test_jpeg_is_read_too(tmp_path):
    cv2.imwrite(str(tmp_path / "a.JPG"), noise(20, 20))
    assert training_pairs(list_images(tmp_path), 2, 8).batch(0, 2)[0].shape == (2, 3, 8, 8)


# Degradations


def test_patches_are_spoilt_after_they_are_cropped(folder):
    """Noise on the patch alone: the truth is a crop, the rest is Gaussian, drawn anew for each sample."""
    files = list_images(folder)
    pairs = training_pairs(files, 1, 12, seed=5, degradation=Noise((25, 25)))
    low, high = pairs.batch(3, 60)
    assert (low.shape, high.shape) == ((60, 3, 12, 12), (60, 3, 12, 12))
    assert low.dtype == high.dtype == torch.float32
    wholes = [read_rgb(path) for path in files]
    assert all(any(find(patch, whole) for whole in wholes) for patch in pixels(high[:6]))
    noise_of = (low - high) * 255
    assert noise_of.std().item() == pytest.approx(25, rel=0.03)
    assert abs(torch.corrcoef(noise_of[:2].flatten(1))[0, 1].item()) < 0.2
    other = training_pairs(files, 1, 12, seed=5, degradation=Noise((25, 25)))
    assert torch.equal(other.batch(3, 60)[0], low)
    assert not torch.equal(other.batch(4, 60)[0], low)


def test_the_truth_does_not_depend_on_what_spoils_it(folder):
    files = list_images(folder)
    clean = training_pairs(files, 1, 12, seed=5, degradation=Noise((0, 0))).batch(3, 9)
    noisy = training_pairs(files, 1, 12, seed=5, degradation=Jpeg((20, 20))).batch(3, 9)
    assert torch.equal(clean[0], clean[1])
    assert torch.equal(clean[1], noisy[1])
    assert not torch.equal(noisy[0], noisy[1])


def test_a_sample_does_not_depend_on_the_size_of_its_batch(folder):
    pairs = training_pairs(list_images(folder), 1, 12, seed=5, degradation=Noise())
    for few, many in zip(pairs.batch(3, 2), pairs.batch(3, 5), strict=True):
        assert torch.equal(few, many[:2])


def test_gray_patches_are_spoilt_as_gray(folder):
    pairs = training_pairs(list_images(folder), 1, 16, seed=5, degradation=Jpeg((10, 10)), channels=1)
    low, high = pairs.batch(0, 3)
    assert low.shape == high.shape == (3, 1, 16, 16)
    assert 5 < (low - high).abs().mean().item() * 255 < 80

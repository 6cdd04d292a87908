from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mambair_cli.datasets import TrainingPairs, list_images, make_pair, read_pairs, read_rgb
from mambair_cli.errors import CallError
from mambair_cli.image_io import Image, write_image
from mambair_cli.resize import downscale

DATA = Path(__file__).parent / "data"
FLIPS = [(up, left, turn) for up in (1, -1) for left in (1, -1) for turn in (False, True)]


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


def save(folder, name, pixels):
    folder.mkdir(exist_ok=True)
    write_image(folder / name, Image(pixels))
    return folder / name


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


def test_list_images_is_recursive_and_sorted(tmp_path):
    for name in ("b.PNG", "a.png", "sub/c.jpg", "notes.txt", "noextension"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    assert list_images(tmp_path) == [tmp_path / "a.png", tmp_path / "b.PNG", tmp_path / "sub" / "c.jpg"]


def test_list_images_needs_a_folder_with_images(tmp_path):
    with pytest.raises(CallError, match="holds no image"):
        list_images(tmp_path)
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(CallError, match="holds no image"):
        list_images(tmp_path)
    with pytest.raises(CallError, match="is not a folder"):
        list_images(tmp_path / "notes.txt")
    with pytest.raises(CallError, match="is not a folder"):
        list_images(tmp_path / "absent")


def test_read_rgb_brings_every_kind_to_8_bit_rgb(tmp_path):
    rgb = noise(5, 7)
    assert np.array_equal(read_rgb(save(tmp_path, "8.png", rgb)), rgb)
    gray = read_rgb(save(tmp_path, "gray.png", rgb[..., 0]))
    assert np.array_equal(gray, rgb[..., [0, 0, 0]])
    assert np.array_equal(read_rgb(save(tmp_path, "16.png", rgb.astype(np.uint16) * 257)), rgb)
    nearly = np.array([[0, 128, 129, 65535 - 129, 65535 - 128, 65535]], np.uint16)
    assert read_rgb(save(tmp_path, "round.png", nearly))[0, :, 0].tolist() == [0, 0, 1, 254, 255, 255]
    assert np.array_equal(read_rgb(save(tmp_path, "f.tif", (rgb / 255).astype(np.float32))), rgb)
    rgba = Image(rgb, alpha=np.zeros((5, 7), np.uint8))
    write_image(tmp_path / "alpha.png", rgba)
    assert np.array_equal(read_rgb(tmp_path / "alpha.png"), rgb)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_make_pair_crops_and_shrinks_as_the_benchmarks_do(scale):
    image = read_rgb(DATA / "photo.png")[:101, :94]
    pair = make_pair("photo", image, scale)
    height, width = 101 // scale, 94 // scale
    assert pair.low.shape == (height, width, 3)
    assert np.array_equal(pair.high, image[: height * scale, : width * scale])
    assert np.array_equal(pair.low, downscale(image, scale))


def test_read_pairs_says_why_images_are_left_out(tmp_path):
    good = save(tmp_path, "good.png", noise(16, 17))
    small = save(tmp_path, "small.png", noise(15, 40))
    dot = save(tmp_path, "dot.png", noise(1, 1))
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(good.read_bytes()[:200])
    text = tmp_path / "text.png"
    text.write_text("no image")
    empty = tmp_path / "empty.png"
    empty.write_bytes(b"")
    pairs, skipped = read_pairs([small, good, dot, damaged, text, empty], 2, 8)
    assert [pair.name for pair in pairs] == ["good.png"]
    assert [Path(reason.split(": ")[0]) for reason in skipped] == [small, dot, damaged, text, empty]
    assert "smaller than 16 pixels" in skipped[0]
    assert "not an image" in skipped[3]
    with pytest.raises(CallError, match=r"none of 2 images .* first: .*small\.png: smaller than 16"):
        read_pairs([small, text], 2, 8)
    with pytest.raises(CallError, match="none of 0 images"):
        TrainingPairs([], 2, 8, 0)


def test_read_pairs_crops_the_centre(tmp_path):
    image = noise(21, 10)
    (pair,), _ = read_pairs([save(tmp_path, "a.png", image)], 2, 4, crop=12)
    assert np.array_equal(pair.high, image[4:16])  # wide enough by less than a crop: the width stays
    assert np.array_equal(pair.low, downscale(image[4:16], 2))


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
    pairs, again = TrainingPairs(files, scale, 6, seed=5), TrainingPairs(files, scale, 6, seed=5)
    expected = [pairs.batch(i, 4) for i in range(3)]
    for i in (2, 0, 1):  # in another order
        for a, b in zip(again.batch(i, 4), expected[i], strict=True):
            assert torch.equal(a, b)
    for low, high in expected:
        assert (low.shape, high.shape) == ((4, 3, 6, 6), (4, 3, 6 * scale, 6 * scale))
        assert low.dtype == high.dtype == torch.float32
    assert not torch.equal(expected[0][0], expected[1][0])
    assert not torch.equal(TrainingPairs(files, scale, 6, seed=6).batch(0, 4)[0], expected[0][0])


def test_a_batch_leaves_the_global_generators_alone(folder):
    pairs = TrainingPairs(list_images(folder), 2, 6, seed=5)
    np.random.seed(3)
    torch.manual_seed(3)
    before = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    pairs.batch(0, 4)
    assert (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before


@pytest.mark.parametrize("scale", [2, 3])
def test_patches_are_crops_of_the_whole_image_shrunk(folder, scale):
    """Not crops that are shrunk: those would have other pixels near their edges."""
    files = list_images(folder)
    pairs = TrainingPairs(files, scale, 6, seed=1)
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
    pairs = TrainingPairs([save(tmp_path, "a.png", image)], 2, 7, seed=2)
    low = downscale(image, 2)  # 8 x 10
    counts: dict = {}
    for patch in pixels(pairs.batch(0, 800)[0]):
        (place,) = find(patch, low)
        counts[place] = counts.get(place, 0) + 1
    assert set(counts) == {(top, left, flip) for top in range(2) for left in range(4) for flip in FLIPS}
    assert max(counts.values()) < 35  # 12.5 are expected


def test_a_patch_may_be_the_whole_image(tmp_path):
    image = noise(17, 16)
    pairs = TrainingPairs([save(tmp_path, "a.png", image)], 2, 8, seed=0)
    (low,), (high,) = map(pixels, pairs.batch(0, 1))
    (place,) = find(low, downscale(image, 2))
    assert np.array_equal(high, flipped(image[:16], place[2]))
    with pytest.raises(CallError, match="smaller than 18 pixels"):
        TrainingPairs([tmp_path / "a.png"], 2, 9, seed=0)


def test_images_are_drawn_by_area(tmp_path):
    black = save(tmp_path, "black.png", np.zeros((16, 16, 3), np.uint8))
    white = save(tmp_path, "white.png", np.full((32, 24, 3), 255, np.uint8))
    pairs = TrainingPairs([black, white], 2, 4, seed=0)
    assert pairs.batch(0, 4000)[0].mean().item() == pytest.approx(3 / 4, abs=0.03)


def test_skipped_images_take_no_part(tmp_path):
    white = save(tmp_path, "white.png", np.full((16, 16, 3), 255, np.uint8))
    black = save(tmp_path, "black.png", np.zeros((6, 90, 3), np.uint8))
    pairs = TrainingPairs([black, white], 2, 4, seed=0)
    assert pairs.batch(0, 50)[1].min().item() == 1
    assert [str(black) in reason for reason in pairs.skipped] == [True]


def test_jpeg_is_read_too(tmp_path):
    cv2.imwrite(str(tmp_path / "a.JPG"), noise(20, 20))
    assert TrainingPairs(list_images(tmp_path), 2, 8, 0).batch(0, 2)[0].shape == (2, 3, 8, 8)

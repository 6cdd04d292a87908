import time

import cv2
import numpy as np
import pytest
import torch
from training import noise, save, sources

from mambair_cli.degradations.jpeg import Jpeg
from mambair_cli.degradations.noise import Noise
from mambair_cli.errors import CallError
from mambair_cli.images.folders import read_rgb
from mambair_cli.images.resize import downscale
from mambair_cli.training.data import Loader, Part, TrainingPairs
from mambair_cli.training.photos import Photos, Source

FLIPS = [(up, left, turn) for up in (1, -1) for left in (1, -1) for turn in (False, True)]


def training_pairs(files, scale, patch, seed=0, degradation=None, channels=3, mixup=0.0):
    photos = Photos(files, scale, channels, shrink=degradation is None, smallest=patch, memory=1e9)
    return TrainingPairs(photos, degradation, seed, mixup)


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


# Batches


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noise")
    for i, (height, width) in enumerate([(30, 37), (24, 25), (41, 28)]):
        save(folder, f"{i}.png", noise(height, width, i))
    return folder


@pytest.mark.parametrize("scale", [2, 3])
def test_a_batch_depends_on_seed_and_iteration_alone(folder, scale):
    files = sources(folder)
    pairs, again = training_pairs(files, scale, 6, seed=5), training_pairs(files, scale, 6, seed=5)
    expected = [pairs.batch(i, range(4), 6, 4) for i in range(3)]
    # in another order
    for i in (2, 0, 1):
        for a, b in zip(again.batch(i, range(4), 6, 4), expected[i], strict=True):
            assert torch.equal(a, b)
    for low, high in expected:
        assert (low.shape, high.shape) == ((4, 3, 6, 6), (4, 3, 6 * scale, 6 * scale))
        assert low.dtype == high.dtype == torch.float32
    assert not torch.equal(expected[0][0], expected[1][0])
    assert not torch.equal(
        training_pairs(files, scale, 6, seed=6).batch(0, range(4), 6, 4)[0], expected[0][0]
    )


def test_a_batch_leaves_the_global_generators_alone(folder):
    pairs = training_pairs(sources(folder), 2, 6, seed=5)
    np.random.seed(3)
    torch.manual_seed(3)
    before = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    pairs.batch(0, range(4), 6, 4)
    assert (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before


def test_batches_have_one_layout(folder):
    """However their samples are flipped."""
    pairs = training_pairs(sources(folder), 2, 8)
    for i in range(30):
        assert all(
            x.is_contiguous(memory_format=torch.channels_last)
            for x in pairs.batch(i, range(1 + i % 2), 8, 2)
        )


@pytest.mark.parametrize("scale", [2, 3])
def test_patches_are_crops_of_the_whole_image_shrunk(folder, scale):
    """Not crops that are shrunk: those would have other pixels near their edges."""
    files = sources(folder)
    pairs = training_pairs(files, scale, 6, seed=1)
    wholes = [read_rgb(source.high) for source in files]
    lows = [downscale(whole, scale) for whole in wholes]
    used = set()
    for low, high in zip(*map(pixels, pairs.batch(0, range(30), 6, 30)), strict=True):
        places = [(i, *place) for i, image in enumerate(lows) for place in find(low, image)]
        assert len(places) == 1
        i, top, left, flip = places[0]
        crop = wholes[i][top * scale : (top + 6) * scale, left * scale : (left + 6) * scale]
        assert np.array_equal(high, flipped(crop, flip))
        used.add(i)
    assert used == {0, 1, 2}


def test_all_places_and_all_eight_flips_occur(tmp_path):
    image = noise(16, 20)
    pairs = training_pairs([Source(p) for p in (save(tmp_path, "a.png", image),)], 2, 7, seed=2)
    # 8 x 10
    low = downscale(image, 2)
    counts: dict = {}
    for patch in pixels(pairs.batch(0, range(800), 7, 800)[0]):
        (place,) = find(patch, low)
        counts[place] = counts.get(place, 0) + 1
    assert set(counts) == {
        (top, left, flip) for top in range(2) for left in range(4) for flip in FLIPS
    }
    # 12.5 are expected
    assert max(counts.values()) < 35


def test_a_patch_may_be_the_whole_image(tmp_path):
    image = noise(17, 16)
    pairs = training_pairs([Source(p) for p in (save(tmp_path, "a.png", image),)], 2, 8, seed=0)
    (low,), (high,) = map(pixels, pairs.batch(0, range(1), 8, 1))
    (place,) = find(low, downscale(image, 2))
    assert np.array_equal(high, flipped(image[:16], place[2]))
    with pytest.raises(CallError, match="smaller than 18 pixels"):
        training_pairs([Source(p) for p in (tmp_path / "a.png",)], 2, 9, seed=0)


def test_images_are_drawn_by_area(tmp_path):
    black = save(tmp_path, "black.png", np.zeros((16, 16, 3), np.uint8))
    white = save(tmp_path, "white.png", np.full((32, 24, 3), 255, np.uint8))
    pairs = training_pairs(
        [
            Source(p)
            for p in (
                black,
                white,
            )
        ],
        2,
        4,
        seed=0,
    )
    assert pairs.batch(0, range(4000), 4, 4000)[0].mean().item() == pytest.approx(3 / 4, abs=0.03)


def test_skipped_images_take_no_part(tmp_path):
    white = save(tmp_path, "white.png", np.full((16, 16, 3), 255, np.uint8))
    black = save(tmp_path, "black.png", np.zeros((6, 90, 3), np.uint8))
    pairs = training_pairs(
        [
            Source(p)
            for p in (
                black,
                white,
            )
        ],
        2,
        4,
        seed=0,
    )
    assert pairs.batch(0, range(50), 4, 50)[1].min().item() == 1
    assert [str(black) in reason for reason in pairs.photos.skipped] == [True]


def test_jpeg_is_read_too(tmp_path):
    cv2.imwrite(str(tmp_path / "a.JPG"), noise(20, 20))
    assert training_pairs(sources(tmp_path), 2, 8).batch(0, range(2), 8, 2)[0].shape == (2, 3, 8, 8)


# Degradations


def test_patches_are_spoilt_after_they_are_cropped(folder):
    """Noise on the patch alone: the truth is a crop, the rest Gaussian and new for each sample."""
    files = sources(folder)
    pairs = training_pairs(files, 1, 12, seed=5, degradation=Noise((25, 25)))
    low, high = pairs.batch(3, range(60), 12, 60)
    assert (low.shape, high.shape) == ((60, 3, 12, 12), (60, 3, 12, 12))
    assert low.dtype == high.dtype == torch.float32
    wholes = [read_rgb(source.high) for source in files]
    assert all(any(find(patch, whole) for whole in wholes) for patch in pixels(high[:6]))
    noise_of = (low - high) * 255
    assert noise_of.std().item() == pytest.approx(25, rel=0.03)
    assert abs(torch.corrcoef(noise_of[:2].flatten(1))[0, 1].item()) < 0.2
    other = training_pairs(files, 1, 12, seed=5, degradation=Noise((25, 25)))
    assert torch.equal(other.batch(3, range(60), 12, 60)[0], low)
    assert not torch.equal(other.batch(4, range(60), 12, 60)[0], low)


def test_the_truth_does_not_depend_on_what_spoils_it(folder):
    files = sources(folder)
    clean = training_pairs(files, 1, 12, seed=5, degradation=Noise((0, 0))).batch(
        3, range(9), 12, 9
    )
    noisy = training_pairs(files, 1, 12, seed=5, degradation=Jpeg((20, 20))).batch(
        3, range(9), 12, 9
    )
    assert torch.equal(clean[0], clean[1])
    assert torch.equal(clean[1], noisy[1])
    assert not torch.equal(noisy[0], noisy[1])


def test_a_sample_does_not_depend_on_the_size_of_its_batch(folder):
    pairs = training_pairs(sources(folder), 1, 12, seed=5, degradation=Noise())
    for few, many in zip(
        pairs.batch(3, range(1, 3), 12, 5), pairs.batch(3, range(5), 12, 5), strict=True
    ):
        assert torch.equal(few, many[1:3])


def test_gray_patches_are_spoilt_as_gray(folder):
    pairs = training_pairs(sources(folder), 1, 16, seed=5, degradation=Jpeg((10, 10)), channels=1)
    low, high = pairs.batch(0, range(3), 16, 3)
    assert low.shape == high.shape == (3, 1, 16, 16)
    assert 5 < (low - high).abs().mean().item() * 255 < 80


def test_mixup(folder):
    """Half of the batches are mixed, samples with neighbours, both images in the same share."""
    files, mixed = sources(folder), 0
    plain, mixing = (training_pairs(files, 2, 6, seed=5, mixup=m) for m in (0.0, 1.2))
    for i in range(40):
        before, after = plain.batch(i, range(3), 6, 3), mixing.batch(i, range(3), 6, 3)
        if torch.equal(before[0], after[0]):
            assert torch.equal(before[1], after[1])
            continue
        mixed += 1
        low, high = (
            ((a - n.roll(1, 0)) / (n - n.roll(1, 0))).nanmedian()
            for a, n in zip(after, before, strict=True)
        )
        assert 0 < low < 1
        assert low.item() == pytest.approx(high.item(), abs=1e-4)
    assert 10 <= mixed <= 30


@pytest.mark.parametrize("size", [1, 2, 3])
def test_mixup_does_not_depend_on_what_a_device_takes_at_once(folder, size):
    plain, mixed = (training_pairs(sources(folder), 1, 6, 5, Noise(), mixup=m) for m in (0.0, 1.2))
    for i in range(6):
        whole = mixed.batch(i, range(6), 6, 6)
        parts = [mixed.batch(i, range(start, start + size), 6, 6) for start in range(0, 6, size)]
        for a, b in zip(whole, zip(*parts, strict=True), strict=True):
            assert torch.equal(a, torch.cat(b))
    assert not torch.equal(mixed.batch(2, range(6), 6, 6)[0], plain.batch(2, range(6), 6, 6)[0])


def test_images_that_turn_out_damaged_are_drawn_anew(tmp_path):
    """Their heads are whole; what is drawn instead depends on the sample alone."""
    black = save(tmp_path, "black.png", np.zeros((24, 24, 3), np.uint8))
    data = save(tmp_path, "noise.png", noise(24, 24)).read_bytes()
    (tmp_path / "noise.png").write_bytes(data[:-500])
    for order in (range(20), reversed(range(20))):
        pairs = training_pairs(sources(tmp_path), 2, 4)
        assert pairs.photos.skipped == []
        assert all(pairs.sample(0, i, 4)[1].max() == 0 for i in order)
        (reason,) = pairs.photos.skipped
        assert reason.startswith(str(tmp_path / "noise.png"))
    black.unlink()
    pairs = training_pairs(sources(tmp_path), 2, 4)
    with pytest.raises(CallError, match=r"can hardly be used; the last: .*noise\.png"):
        pairs.sample(0, 0, 4)


# Loader


def test_the_loader_keeps_the_order_whatever_the_workers():
    def make(iteration, indices, patch, total):
        # some take longer
        time.sleep(0.01 * (iteration % 3 == 0))
        return iteration, patch

    for workers in (1, 4):
        loader = Loader(make, (Part(i, range(1), 10 * i, 1) for i in range(9)), workers)
        assert [loader.next() for _ in range(9)] == [(i, 10 * i) for i in range(9)]
        assert 0 < loader.waited < 1
        loader.close()


def test_the_loader_hands_errors_on():
    def make(iteration, indices, patch, total):
        raise CallError("no images")

    loader = Loader(make, iter([Part(0, range(1), 8, 1)]), 1)
    with pytest.raises(CallError, match="no images"):
        loader.next()
    loader.close()


def test_the_loader_works_ahead_of_the_loop():
    made = []
    loader = Loader(
        lambda iteration, *_: made.append(iteration), (Part(i, range(1), 8, 1) for i in range(9)), 2
    )
    for _ in range(500):
        if len(made) == 3:
            break
        time.sleep(0.01)
    time.sleep(0.05)
    # and no further
    assert sorted(made) == [0, 1, 2]
    loader.close()

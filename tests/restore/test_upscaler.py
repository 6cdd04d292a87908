import numpy as np
import pytest
from failing import fails
from networks import network
from restorers import SCENE, load

from mambair_cli.errors import CallError
from mambair_cli.images.io import Image
from mambair_cli.images.resize import bicubic
from mambair_cli.models.choice import Choice
from mambair_cli.models.weights import save_network
from mambair_cli.restore.options import Options
from mambair_cli.restore.size import Size
from mambair_cli.restore.upscaler import Upscaler

CHAINS = {
    1: ["tiny-x2"],
    1.5: ["tiny-x2"],
    2: ["tiny-x2"],
    3: ["tiny-x3"],
    8: ["tiny-x4", "tiny-x2"],
}


@pytest.mark.parametrize("scale", CHAINS)
def test_any_factor_with_the_bundled_networks(scale):
    upscaler, shares = Upscaler(Choice(), Options(device="cpu", tile="off")), []
    image = Image(SCENE[:7, :10], SCENE[:7, :10, 0])
    result = upscaler.restore_image(image, Size(scale), shares.append)
    assert result.pixels.shape == (round(7 * scale), round(10 * scale), 3)
    assert result.alpha.shape == result.pixels.shape[:2]
    assert [r.name for r in upscaler.chain(scale)] == CHAINS[scale] == list(upscaler.restorers)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    expected = image
    for name in CHAINS[scale]:
        expected = load(name, tile="off").restore_image(expected)
    size = result.pixels.shape[:2]
    np.testing.assert_array_equal(result.pixels, bicubic(expected.pixels, *size))
    np.testing.assert_array_equal(result.alpha, bicubic(expected.alpha, *size))


@pytest.mark.parametrize(("scale", "runs"), [(1, 1), (2, 1), (2.5, 2), (4, 2), (8, 3), (16, 4)])
def test_a_named_network_repeats(scale, runs):
    upscaler = Upscaler(Choice(model="tiny-x2"), Options(device="cpu", tile="off"))
    assert [r.name for r in upscaler.chain(scale)] == ["tiny-x2"] * runs
    assert upscaler.tiles(Size(scale), 3, 4) == runs
    assert upscaler.restore_image(Image(SCENE[:3, :4, 0]), Size(scale)).pixels.shape == (
        round(3 * scale),
        round(4 * scale),
    )


def test_tiles_of_a_chain_are_counted():
    upscaler = Upscaler(Choice(), Options(device="cpu", tile=48, tile_overlap=16))
    assert upscaler.tiles(Size(2), 48, 80) == 2
    assert upscaler.tiles(Size(8), 48, 80) == 2 + 6 * 10
    assert upscaler.tiles(Size(width=160), 48, 80) == 2


def test_a_network_that_does_not_enlarge(tmp_path):
    model = network("denoise")
    save_network(tmp_path / "denoise.safetensors", model, model.state_dict(), {})
    path, options = tmp_path / "denoise.safetensors", Options(device="cpu")
    fails(
        lambda: Upscaler(Choice(model=str(path)), options),
        CallError,
        f"{path} does not enlarge; use mambair denoise or",
    )
    for task in ("denoise", "derain", "dejpeg"):  # the tensors are the same
        upscaler = Upscaler(Choice(task, str(path)), options)
        assert len(upscaler.chain(1)) == 1
        fails(lambda u=upscaler: u.chain(1.5), CallError, "denoise.safetensors", "`model`")


def test_a_network_for_another_task(tmp_path):
    model = network("denoise")
    path, options = tmp_path / "rain.safetensors", Options(device="cpu")
    save_network(path, model, model.state_dict(), {"task": "derain"})
    assert len(Upscaler(Choice("derain", str(path)), options).chain(1)) == 1
    fails(
        lambda: Upscaler(Choice("denoise", str(path)), options),
        CallError,
        f"use mambair derain INPUT -m {path}",
    )
    fails(
        lambda: Upscaler(Choice("dejpeg", "tiny-x2"), options),
        CallError,
        "tiny-x2 is for upscale; use mambair upscale",
    )

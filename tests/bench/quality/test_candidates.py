import numpy as np
import pytest
import torch
from failing import fails
from networks import network
from restorers import PHOTO

from mambair_cli.archs.complexity import complexity
from mambair_cli.bench.quality.candidates import Candidate, open_candidates
from mambair_cli.bench.quality.protocols import denoising, jpeg, super_resolution
from mambair_cli.bench.quality.tilers import restore_split
from mambair_cli.errors import CallError, MemoryLimitError
from mambair_cli.images.resize import bicubic, downscale
from mambair_cli.models.fetch import find_checkpoint
from mambair_cli.models.weights import save_network
from mambair_cli.restore import restorer as engine
from mambair_cli.restore.restorer import load_restorer
from mambair_cli.restore.runner import Runner
from mambair_cli.system.files import sha256

LOW = downscale(PHOTO, 2)  # 64 x 48
X2, X3 = super_resolution(2), super_resolution(3)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Files of small networks, by their forms."""
    folder = tmp_path_factory.mktemp("networks")

    def store(form, name=None, **changes):
        path = folder / f"{name or form}.safetensors"
        model = network(form, **changes)
        save_network(path, model, model.state_dict(), {})
        return path

    return store


def candidate(model="tiny-x2", protocol=X2, **options):
    return Candidate(str(model), protocol, **{"device": "cpu"} | options)


@pytest.mark.parametrize("tiler", ["auto", "whole"])
def test_the_result_is_the_engines(tiler):
    expected = load_restorer("tiny-x2", device="cpu", tile="off").restore(LOW)
    found = candidate(tiler=tiler).restore(LOW, (128, 96))
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected)


def test_published_parts_are_restored_each_alone():
    low = np.tile(LOW, (4, 1, 1))[:230]
    one = candidate(tiler="published")
    shares = []
    found = one.restore(low, (460, 96), shares.append)
    restorer = load_restorer("tiny-x2", device="cpu", tile="off")
    expected = restore_split(
        low, 2, lambda part, share: restorer.restore(np.ascontiguousarray(part))
    )
    assert np.array_equal(found, expected)
    assert not np.array_equal(found, restorer.restore(low))
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)


def test_the_ensemble_has_a_name_of_its_own():
    plus = candidate(ensemble=True)
    assert plus.name == "tiny-x2+"
    expected = load_restorer("tiny-x2", device="cpu", tile="off", ensemble=True).restore(LOW)
    assert np.array_equal(plus.restore(LOW, (128, 96)), expected)


def test_a_larger_scale_is_followed_by_bicubic():
    low = downscale(PHOTO, 3)  # 42 x 32
    found = candidate("tiny-x4", X3).restore(low, (126, 96))
    expected = bicubic(load_restorer("tiny-x4", device="cpu", tile="off").restore(low), 126, 96)
    assert np.array_equal(found, expected)


def test_noise_reaches_the_network_unclipped(stored):
    one = candidate(stored("denoise"), denoising(50))
    noisy = denoising(50).make(PHOTO)
    with torch.inference_mode():
        image = torch.from_numpy(noisy.transpose(2, 0, 1).copy())[None]
        out = one.restorer.model(image)[0].permute(1, 2, 0).numpy()
    assert noisy.min() < 0
    assert noisy.max() > 1
    expected = np.floor(out.clip(0, 1) * 255 + 0.5)
    found = one.restore(noisy, PHOTO.shape[:2])
    assert (found != expected).mean() < 1e-3
    assert np.abs(found - expected).max() <= 1


def test_gray_goes_through_networks_of_one_and_three_channels(stored):
    gray = PHOTO[..., 0]
    for form in ("jpeg", "denoise"):
        found = candidate(stored(form), jpeg(10)).restore(gray, gray.shape)
        assert found.shape == gray.shape


def test_what_it_is_and_costs(stored):
    path = stored("light_c", "mine")
    one = candidate(path, super_resolution(4))
    assert one.name == "mine"
    assert one.network.sha256 == sha256(path)
    assert (one.network.device, one.network.backend, one.network.dtype) == (
        "cpu",
        one.restorer.backend,
        "float32",
    )
    assert one.network.parameters == sum(p.numel() for p in one.restorer.model.parameters())
    cost = complexity(one.restorer.model)
    assert (one.network.macs, one.network.leaf_macs) == (cost.macs, cost.leaf_macs)
    assert one.network.leaf_parameters == cost.leaf_parameters
    assert candidate().network.sha256 == sha256(find_checkpoint("tiny-x2"))


def test_settings_tell_results_apart():
    settings = [
        candidate().settings(LOW),
        candidate(tiler="whole").settings(LOW),
        candidate(tiler="published").settings(LOW),
        candidate(ensemble=True).settings(LOW),
        candidate(backend="reference").settings(LOW),
        candidate("tiny-x4").settings(LOW),
        candidate(dtype="bf16").settings(LOW),
    ]
    assert settings[0] == settings[1]  # as it fits into memory
    assert all(a != b for i, a in enumerate(settings[1:]) for b in settings[i + 2 :])


def test_measuring_tells_seconds_and_memory():
    one = candidate()
    result, seconds, peak = one.measure(LOW, (128, 96), lambda share: None)
    assert np.array_equal(result, one.restore(LOW, (128, 96)))
    assert 0 < seconds < 60
    assert 50 * 2**20 < peak < 64 * 2**30


def test_a_tiler_that_does_not_fit_is_no_silent_tile(monkeypatch):
    limit = 40

    def scarce(self, crops, dtype):
        if max(crops.shape[1:3]) > limit:
            raise MemoryError
        return lambda: crops.repeat(2, axis=1).repeat(2, axis=2)

    monkeypatch.setattr(Runner, "start", scarce)
    monkeypatch.setattr(engine, "MIN_TILE", 20)
    for tiler in ("whole", "published"):
        one = candidate(tiler=tiler)
        one._warm = True
        fails(
            lambda one=one: one.measure(LOW, (128, 96), lambda share: None),
            MemoryLimitError,
            tiler,
            "change the result",
        )
    one = candidate()
    one._warm = True
    assert one.measure(LOW, (128, 96), lambda share: None)[0].shape == (128, 96, 3)


def test_models_that_do_not_fit(stored):
    fails(
        lambda: candidate("tiny-x2", X3), CallError, "tiny-x2", "2 times, not 3", "another `model`"
    )
    fails(lambda: candidate("tiny-x2", denoising(25)), CallError, "2 times, not 1")
    fails(lambda: candidate(stored("denoise"), X2), CallError, "1 times, not 2")
    fails(lambda: candidate("tiny-x9"), CallError, "tiny-x9")


def test_networks_that_draw_are_measured_for_each_seed(stored):
    drawing, still = stored("v2_light", depths=(1,)), stored("light_b")
    names = [str(drawing), str(still)]
    candidates = open_candidates(names, 2, X3, "auto", False, "cpu")
    assert [(one.name, one.network.seed) for one in candidates] == [
        ("v2_light", None), ("v2_light seed 0", 0), ("v2_light seed 1", 1), ("light_b", None)
    ]  # fmt: skip
    plain, *drawn, _ = (one.restore(LOW, (144, 192)).astype(int) for one in candidates)
    assert all((one != plain).any() for one in drawn)
    assert (drawn[0] != drawn[1]).any()
    settings = [one.settings(LOW) for one in candidates]
    assert [one.get("seed") for one in settings] == [None, 0, 1, None]
    assert len(open_candidates(names, 0, X3, "auto", False, "cpu")) == 2
    fails(lambda: open_candidates(["tiny-x3"], 2, X3, "auto", False, "cpu"), CallError, "`seeds`")

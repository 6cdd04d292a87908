import importlib
import sys
import types

import numpy as np
import pytest
import torch
from failing import fails
from networks import FORMS, network, picture, saved

from mambair_cli.errors import CheckpointError
from mambair_cli.models.catalog import list_models
from mambair_cli.models.weights import bundled_folder


@pytest.fixture(scope="module")
def spandrel():
    """The real one. It imports two functions of torchvision for other networks, which may lack."""
    names = "torchvision", "torchvision.transforms", "torchvision.transforms.functional"
    modules = {name: types.ModuleType(name) for name in names}
    modules[names[-1]].__getattr__ = lambda name: None
    with pytest.MonkeyPatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        # This folder would pass for a package of that name, but not for one with this in it.
        pytest.importorskip("spandrel.architectures")
        yield importlib.import_module("spandrel")


@pytest.fixture
def loader(spandrel):
    """Of a registry of its own, with all that spandrel knows and our networks."""
    from mambair_cli.spandrel import install

    registry = spandrel.MAIN_REGISTRY.copy()
    assert install(registry) == ["mambair", "mambairv2", "mambair_unet", "vmambair"]
    assert install(registry) == []
    return spandrel.ModelLoader(registry=registry)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_loaded_and_computes_the_same(loader, spandrel, tmp_path, form):
    model, config = network(form), FORMS[form]
    (tmp_path / "net.pth").write_bytes(saved({"params": model.state_dict()}))
    found = loader.load_from_file(tmp_path / "net.pth")
    assert isinstance(found, spandrel.ImageModelDescriptor)
    assert type(found.model) is type(model)
    assert found.scale == config.upscale
    assert found.input_channels == found.output_channels == config.in_chans
    assert found.purpose == ("SR" if config.upscale > 1 else "Restoration")
    assert found.size_requirements.multiple_of == config.multiple
    assert found.tiling == spandrel.ModelTiling.SUPPORTED
    image = picture(16, 24, channels=config.in_chans)
    with torch.inference_mode():
        expected = model(image).clamp(0, 1)
    torch.testing.assert_close(found(image), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", ["light_c", "v2_light", "unet"])
def test_sides_that_are_no_multiples(loader, form):
    config = FORMS[form]
    found = loader.load_from_state_dict(network(form).state_dict())
    result = found(picture(13, 21, channels=config.in_chans))
    assert result.shape == (1, config.in_chans, 13 * config.upscale, 21 * config.upscale)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("row", [m for m in list_models() if m.bundled], ids=lambda row: row.name)
def test_bundled_models_in_half_precision(loader, row, dtype):
    found = loader.load_from_file(bundled_folder() / row.file)
    assert found.scale == row.scale
    side = torch.linspace(0, 1, 24)
    image = torch.stack(
        [side.expand(16, 24), side[:16, None].expand(16, 24), 0 * side.expand(16, 24)]
    )
    expected = found(image[None])
    assert expected.dtype == torch.float32
    result = found.to(dtype)(image[None].to(dtype))
    assert result.dtype == dtype
    limit = 0.01 if dtype == torch.float16 else 0.06
    assert (result.float() - expected).abs().max() < limit


@pytest.mark.parametrize("prefix", ["module.", "net_g.", "generator."])
def test_names_with_a_prefix(loader, prefix):
    state = {prefix + key: value for key, value in network().state_dict().items()}
    assert loader.load_from_state_dict(state).architecture.id == "mambair"


def test_damaged_files_are_refused_with_the_reason(loader):
    state = network().state_dict()
    del state["norm.weight"]
    fails(lambda: loader.load_from_state_dict(state), CheckpointError, "norm.weight")


def test_other_networks_are_left_to_spandrel(loader, spandrel):
    state = {"conv_first.weight": torch.zeros(4, 3, 3, 3), "layers.0.weight": torch.zeros(1)}
    with pytest.raises(spandrel.UnsupportedModelError):
        loader.load_from_state_dict(state)


def test_the_registry_of_spandrel_is_the_default(spandrel, monkeypatch):
    from mambair_cli.spandrel import install

    for name in ("_architectures", "_ordered", "_by_id"):
        monkeypatch.setattr(spandrel.MAIN_REGISTRY, name, getattr(spandrel.MAIN_REGISTRY, name))
    install()
    found = spandrel.ModelLoader().load_from_state_dict(network("v2").state_dict())
    assert found.architecture.name == "MambaIRv2"
    assert np.isfinite(found(picture(8, 8)).numpy()).all()

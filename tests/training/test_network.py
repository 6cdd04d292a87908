import pytest
import torch
from networks import network
from safetensors.torch import save_file
from training import DENOISE, recipe

from mambair_cli.archs import ARCHITECTURES
from mambair_cli.archs.mambair_unet import MambaIRUNet, MambaIRUNetConfig
from mambair_cli.archs.vmambair import VmambaIR, VmambaIRConfig
from mambair_cli.errors import CallError, CheckpointError
from mambair_cli.training.network import build_optimiser, decays, recompute_blocks, start_weights
from mambair_cli.training.recipe import build_network

UPSAMPLER = "upsample.0.bias, upsample.0.weight"


@pytest.fixture
def given(tmp_path):
    """A checkpoint of the recipe's network, and its tensors."""
    torch.manual_seed(5)
    state = build_network(recipe()).state_dict()
    save_file(state, tmp_path / "given.safetensors")
    return tmp_path / "given.safetensors", state


def test_what_fits_is_taken_and_the_rest_named(given):
    path, state = given
    model = build_network(recipe(scale=3))
    fresh = build_network(recipe(scale=3))
    fresh.start_simply()
    note = start_weights(model, recipe(scale=3), str(path))
    count = len(state)
    assert (
        note
        == f"from {path}: {count - 2} of {count} tensors; new: {UPSAMPLER}; not taken: {UPSAMPLER}"
    )
    for key in state.keys() - set(UPSAMPLER.split(", ")):
        assert torch.equal(model.state_dict()[key], state[key])
    assert torch.equal(model.upsample[0].weight, fresh.upsample[0].weight)


def test_what_fits_wholly(given, tmp_path):
    _, state = given
    torch.save(
        {"params_ema": {f"module.{k}": v.half() for k, v in state.items()}}, tmp_path / "foreign.pt"
    )
    model = build_network(recipe())
    assert start_weights(model, recipe(), str(tmp_path / "foreign.pt")).endswith(
        "new: nothing; not taken: nothing"
    )
    for key, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, state[key].half().float())


def test_the_body_of_a_net_that_enlarges_can_learn_to_denoise(given):
    """And starts as the identity."""
    path, state = given
    config = recipe(**DENOISE)
    model = build_network(config)
    note = start_weights(model, config, str(path))
    assert note.endswith(f"new: conv_last.bias, conv_last.weight; not taken: {UPSAMPLER}")
    assert torch.equal(model.norm.weight, state["norm.weight"])
    image = torch.rand(1, 3, 9, 10)
    torch.testing.assert_close(model(image), image, rtol=0, atol=1e-6)


@pytest.mark.parametrize("form", ["light_c", "light_a", "classic", "mlp", "none"])
def test_blocks_that_are_added_change_nothing_at_first(tmp_path, form):
    small, large = (
        recipe(network={"conv_block": form, "depths": depths}) for depths in ((1, 2), (3, 2, 1))
    )
    torch.manual_seed(5)
    given, grown = build_network(small).eval(), build_network(large).eval()
    save_file(given.state_dict(), tmp_path / "given.safetensors")
    start_weights(grown, large, str(tmp_path / "given.safetensors"))
    tokens = torch.rand(1, 6, 5, given.config.embed_dim)
    for group, (old, new) in enumerate(zip(given.layers, grown.layers, strict=False)):
        assert torch.equal(old.residual_group(tokens), new.residual_group(tokens)), group
    assert torch.equal(grown.layers[2].residual_group(tokens), tokens)


def test_what_fits_nothing(tmp_path):
    save_file({"conv_first.weight": torch.zeros(7, 3, 3, 3)}, tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_text("no weights")
    model = build_network(recipe())
    for name, error, words in (
        ("a.safetensors", CallError, r"no tensor of .*a\.safetensors fits"),
        ("b.safetensors", CheckpointError, r"b\.safetensors is no readable"),
        ("c.safetensors", CallError, r"c\.safetensors is missing"),
    ):
        with pytest.raises(error, match=words):
            start_weights(model, recipe(), str(tmp_path / name))


def test_a_recipe_may_name_what_it_starts_from():
    tiny = recipe(init="tiny-x2", network={"embed_dim": 48, "depths": [3, 3], "d_state": 4})
    assert start_weights(build_network(tiny), tiny, "").startswith("from tiny-x2: ")
    assert start_weights(build_network(tiny), tiny, "none") == "from scratch"
    classic = recipe(init="classic-x2")
    with pytest.raises(
        CallError, match="'classic-x2' makes: give their file as `init`, or `init=none`"
    ):
        start_weights(build_network(classic), classic, "")
    assert start_weights(build_network(classic), classic, "none") == "from scratch"


UNETS = (
    MambaIRUNet(MambaIRUNetConfig(8, (1, 1, 1, 1), 1, 2)),
    VmambaIR(VmambaIRConfig(8, (1, 1, 1, 1), 1, 2, 1.0)),
    VmambaIR(VmambaIRConfig(8, (1, 1, 1, 1), 1, 2, 1.0, upscale=4)),
)


@pytest.mark.parametrize(
    "model", UNETS, ids=lambda model: f"{type(model).__name__}-x{model.config.upscale}"
)
def test_u_nets_start_as_the_identity_or_nearest_neighbour(model):
    model.start_simply()
    image, s = torch.rand(1, 3, 8, 16), model.config.upscale
    expected = image.repeat_interleave(s, 2).repeat_interleave(s, 3)
    torch.testing.assert_close(model(image), expected, rtol=0, atol=1e-6)


def test_weight_decay_is_for_matrices_only():
    """Steps without gradient: what shrinks is decayed."""
    model = build_network(recipe())
    optimiser = build_optimiser(model, recipe(lr=0.1, weight_decay=0.5).optimiser)
    before = {k: v.detach().clone() for k, v in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    kinds = set()
    for name, parameter in model.named_parameters():
        decayed = not torch.equal(parameter.detach(), before[name])
        if decayed:
            torch.testing.assert_close(parameter.detach(), before[name] * 0.95)
        kinds.add((decayed, name.rsplit(".", 1)[-1] + str(parameter.ndim)))
    decayed = {"weight4", "weight2", "x_proj_weight3", "dt_projs_weight3"}
    never = {"bias1", "weight1", "A_logs2", "Ds1", "skip_scale1", "skip_scale21", "dt_projs_bias2"}
    assert kinds == {(True, kind) for kind in decayed} | {(False, kind) for kind in never}


def test_the_channel_scan_has_no_weight_decay_either():
    free = {
        name.rsplit(".", 1)[-1]
        for name, p in UNETS[1].named_parameters()
        if p.ndim > 1 and not decays(name, p, ARCHITECTURES["vmambair"].undecayed)
    }
    assert free == {"A_logs", "Ac_logs", "dt_projs_bias", "dtc_projs_bias"}


def gradients(model, image):
    model.zero_grad()
    (model(image) * torch.cos(torch.arange(image.numel())).view_as(image)).sum().backward()
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize(
    "model", [network("denoise"), UNETS[1]], ids=lambda model: type(model).__name__
)
def test_recomputed_blocks_have_the_same_gradients(model):
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = gradients(model, image)
    recompute_blocks(model)
    for a, b in zip(gradients(model, image), expected, strict=True):
        assert torch.equal(a, b)

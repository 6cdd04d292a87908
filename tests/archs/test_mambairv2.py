import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from failing import fails
from golden.fill import fill_state
from networks import FORMS, GOLDEN, assert_golden, network, picture, published, saved

from mambair_cli.archs.complexity import complexity
from mambair_cli.archs.mambairv2 import AttentiveScan, MambaIRv2, MambaIRv2Config, detect
from mambair_cli.archs.ss2d import use_backend
from mambair_cli.errors import CheckpointError
from mambair_cli.models.recognise import load_network
from mambair_cli.ops import scan_numba
from mambair_cli.training.network import recompute_blocks

PATHS = sorted(GOLDEN.glob("mambairv2_*.npz"))
SMALL = [form for form, config in FORMS.items() if isinstance(config, MambaIRv2Config)]
INDEX = "relative_position_index_SA"

BASE = MambaIRv2Config()
SHAPES = {
    "light": MambaIRv2Config(
        48, (5,) * 4, 4, 8, 1.0, 32, 64, "gated", upsampler="pixelshuffledirect"
    ),
    "small": replace(BASE, embed_dim=132, depths=(4,) * 6, heads=4),
    "base": BASE,
    "large": replace(BASE, depths=(6,) * 9),
    "denoise": replace(BASE, upsampler=""),
    "jpeg": replace(BASE, upsampler="", in_chans=1),
}
# Form and scale: parameters and tensors in the file.
PUBLISHED = {
    ("light", 2): (774_092, 1019),
    ("light", 3): (780_587, 1019),
    ("light", 4): (789_680, 1019),
    ("small", 2): (9_621_935, 1131),
    ("small", 3): (9_806_575, 1131),
    ("small", 4): (9_769_647, 1133),
    ("base", 2): (22_903_001, 1683),
    ("base", 3): (23_087_641, 1683),
    ("base", 4): (23_050_713, 1685),
    ("large", 2): (34_090_523, 2517),
    ("large", 3): (34_275_163, 2517),
    ("large", 4): (34_238_235, 2519),
    ("denoise", 1): (22_657_971, 1679),
    ("jpeg", 1): (22_651_705, 1679),
}


def golden_config(path):
    words = json.loads(str(np.load(path)["config"]))
    return MambaIRv2Config(
        embed_dim=words["embed_dim"],
        depths=tuple(words["depths"]),
        heads=words["num_heads"][0],
        d_state=words["d_state"],
        expand=words["mlp_ratio"],
        inner_rank=words["inner_rank"],
        tokens=words["num_tokens"],
        ffn="gated" if words["class"] == "MambaIRv2Light" else "conv",
        window=words["window_size"],
        kernel=words["convffn_kernel_size"],
        upsampler=words["upsampler"],
        upscale=words["upscale"],
        in_chans=words["in_chans"],
    )


@pytest.fixture
def labels(monkeypatch):
    """The labels that layers give, in order."""
    found, routed = [], AttentiveScan.routed

    def record(*inputs):
        result = routed(*inputs)
        found.append(result[0])
        return result

    monkeypatch.setattr(AttentiveScan, "routed", record)
    return found


# The published net


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_golden(path):
    assert_golden(golden_config(path), path, single=1e-4)


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_golden_labels(labels, path, backend):
    stored, model = np.load(path), MambaIRv2(golden_config(path)).eval()
    fill_state(model.state_dict())
    use_backend(model, backend)
    with torch.no_grad():
        model(torch.from_numpy(stored["input"]).float())
    assert np.array_equal(torch.stack(labels), stored["labels"])
    assert np.array_equal(model.relative_position_index_SA, stored[INDEX])


@pytest.mark.parametrize(("form", "scale"), PUBLISHED)
def test_the_published_nets(form, scale):
    config = replace(SHAPES[form], upscale=scale)
    model = published(config)
    state = model.state_dict()
    count = sum(parameter.numel() for parameter in model.parameters())
    assert (count, len(state)) == PUBLISHED[form, scale]
    assert detect(state) == config


@pytest.mark.parametrize(("scale", "gmacs"), [(2, 286.3), (3, 126.7), (4, 75.6)])
def test_the_printed_count(scale, gmacs):
    found = complexity(published(replace(SHAPES["light"], upscale=scale)))
    assert round(found.macs / 1e9, 1) == gmacs


# Files


@pytest.mark.parametrize("form", SMALL)
def test_files_with_and_without_the_index(load, form):
    expected, image = network(form), picture(9, 6, channels=FORMS[form].in_chans)
    state = expected.state_dict()
    assert state[INDEX].dtype == torch.int64
    half = {INDEX: state[INDEX].bfloat16()}
    for content in (state, state | half, {k: v for k, v in state.items() if k != INDEX}):
        found = load(saved({"params": content}))
        assert found.config == expected.config
        assert torch.equal(found.relative_position_index_SA, state[INDEX])
        with torch.inference_mode():
            assert torch.equal(found(image), expected(image))


@pytest.mark.parametrize(
    "index", [lambda index: index.flip(0), lambda index: index[1:], lambda index: index * 1.001]
)
def test_another_index_is_refused(tmp_path, index):
    state = network("v2_light").state_dict()
    (tmp_path / "file.pth").write_bytes(saved(state | {INDEX: index(state[INDEX])}))
    fails(lambda: load_network(tmp_path / "file.pth"), CheckpointError, INDEX, "mambairv2")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"heads": 5}, ("5 heads do not divide 12 channels",)),
        ({"window": 5}, ("window must be an even number", 5)),
        ({"window": 1000}, ("window must be an even number from 2 to 64", 1000)),
        ({"depths": ()}, ("depths",)),
        ({"expand": 1.25, "ffn": "gated"}, ("two halves, not 15 channels",)),
    ],
    ids=str,
)
def test_shapes_of_no_net(changes, words):
    fails(lambda: MambaIRv2(replace(FORMS["v2"], **changes)), ValueError, *words)


def test_detect_refuses_other_networks():
    assert all(detect(network(form).state_dict()) is None for form in ("light_c", "unet", "sisr"))
    assert detect({}) is None


# What the net does


@pytest.mark.parametrize("form", SMALL)
@pytest.mark.parametrize("size", [(1, 1), (3, 20), (8, 8), (17, 7)], ids=str)
def test_sides_are_padded_symmetrically(form, size):
    model = network(form)
    s, channels = model.config.upscale, model.config.in_chans
    image = picture(*size, channels=channels, batch=2)
    pad = [(0, 0), (0, 0), *((0, -side % model.config.window) for side in size)]
    aligned = torch.from_numpy(np.pad(image.numpy(), pad, mode="symmetric"))
    with torch.no_grad():
        found, expected = model(image), model(aligned)
    assert found.shape == (2, channels, s * size[0], s * size[1])
    assert torch.equal(found, expected[:, :, : s * size[0], : s * size[1]])


@pytest.mark.parametrize("form", SMALL)
def test_images_of_a_batch_do_not_mix(form):
    model, images = network(form), picture(8, 10, channels=FORMS[form].in_chans, batch=2)
    with torch.no_grad():
        torch.testing.assert_close(model(images)[1:], model(images[1:]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", SMALL)
def test_back_ends_agree(form):
    model, image = network(form), picture(16, 24, channels=FORMS[form].in_chans)
    outputs = []
    for backend in ("numba", "reference"):
        use_backend(model, backend)
        with torch.inference_mode():
            outputs.append(model(image))
    assert (outputs[0] - outputs[1]).abs().max() < 1e-4 * outputs[1].abs().max()


def test_one_scan_a_layer(monkeypatch):
    made, forward = [], scan_numba.forward
    monkeypatch.setattr(
        scan_numba, "forward", lambda *inputs: made.append(inputs[0].shape) or forward(*inputs)
    )
    with torch.inference_mode():
        network("v2_light")(picture(8, 16, batch=2))
    assert made == [(2, 1, 128, 18)] * 3


def test_tokens_of_a_label_are_neighbours_in_image_order():
    module = network("v2").layers[0].residual_group.layers[0].assm
    seen = []
    module.selectiveScan.register_forward_hook(lambda _, inputs, out: seen.extend(inputs))
    tokens = torch.randn(1, 8, 8, 12)
    prompts = torch.randn(3, 2)
    with torch.no_grad():
        found, _ = module.routed(tokens, prompts, None)
        module(tokens, prompts, None)
        image = tokens.permute(0, 3, 1, 2)
        x = module.in_proj(image)
        x = (x * module.CPE(x).sigmoid()).flatten(2)[0].t()
    assert len(found.unique()) > 1
    places = [int(t) for label in range(5) for t in (found[0] == label).nonzero()]
    torch.testing.assert_close(seen[0][0, 0], x[places])
    torch.testing.assert_close(seen[1][0, 0], (module.embeddingB.weight @ prompts)[found[0]])


# Randomness


def sampled(self, tokens, factor, noise):
    """As the published net: Gumbel-softmax from the global generator, also at evaluation."""
    policy = F.gumbel_softmax(F.log_softmax(self.route(tokens).flatten(1, 2), -1), hard=True)
    return policy.argmax(-1), policy @ (self.embeddingB.weight @ factor)


@pytest.mark.parametrize("form", SMALL)
@pytest.mark.parametrize("seed", [0, 7, 2**40])
def test_a_seed_draws_as_the_published_net(monkeypatch, form, seed):
    model, image = network(form), picture(9, 17, channels=FORMS[form].in_chans, batch=2)
    with torch.no_grad():
        calm = model(image)
        model.seed = seed
        torch.manual_seed(3)
        found = model(image)
        assert torch.equal(model(image), found)
        assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(3))
        model.seed = None
        assert torch.equal(model(image), calm)
        monkeypatch.setattr(AttentiveScan, "routed", sampled)
        torch.manual_seed(seed)
        expected = model(image)
    assert (found - calm).abs().max() > 1e-3 * calm.abs().max()
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_without_noise_the_most_probable_label_is_taken():
    module = network("v2").layers[0].residual_group.layers[0].assm
    tokens, factor = torch.randn(1, 8, 8, 12), torch.randn(3, 2)
    with torch.no_grad():
        counts = torch.zeros(64, 5)
        generator = torch.Generator().manual_seed(0)
        for _ in range(400):
            counts += F.one_hot(module.routed(tokens, factor, generator)[0][0], 5)
        shares = module.route(tokens).flatten(1, 2)[0].softmax(-1)
        found = module.routed(tokens, factor, None)[0][0]
    assert (counts / 400 - shares).abs().max() < 0.12
    assert torch.equal(found, shares.argmax(-1))


# Training


def test_gradients_go_straight_through_to_the_route():
    module = network("v2").layers[0].residual_group.layers[0].assm.double().train()
    tokens, factor = torch.randn(1, 4, 4, 12).double(), torch.randn(3, 2).double()
    weight = torch.randn(1, 16, 2).double()
    torch.manual_seed(1)
    labels, prompts = module.routed(tokens, factor, None)
    pool = module.embeddingB.weight @ factor
    torch.testing.assert_close(prompts, pool[labels])
    found = torch.autograd.grad((prompts * weight).sum(), list(module.route.parameters()))
    torch.manual_seed(1)
    logits = module.route(tokens).flatten(1, 2).log_softmax(-1)
    noise = -torch.empty_like(logits).exponential_().log()
    soft = (logits + noise).softmax(-1) @ pool
    expected = torch.autograd.grad((soft * weight).sum(), list(module.route.parameters()))
    for a, b in zip(found, expected, strict=True):
        assert b.abs().max() > 1e-6
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("form", SMALL)
def test_layers_that_are_computed_twice_draw_the_same_labels(form):
    model = network(form).train()
    image = picture(9, 14, channels=model.config.in_chans)
    found = []
    for twice in (False, True):
        if twice:
            recompute_blocks(model)
        torch.manual_seed(4)
        model(image).square().sum().backward()
        found.append([value.grad.clone() for value in model.parameters()])
        model.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("form", SMALL)
def test_a_new_layer_can_change_nothing(form):
    model = network(form)
    layer = model.layers[1].residual_group.layers[1]
    layer.start_as_identity()
    tokens = torch.rand(1, 16, 8, 12)
    with torch.inference_mode():
        assert torch.equal(layer(tokens, model.relative_position_index_SA, None), tokens)


@pytest.mark.parametrize("form", SMALL)
@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_gradients_are_right(form, backend):
    """At evaluation, where labels do not depend on the precision."""
    model = network(form)
    image = picture(9, 14, channels=model.config.in_chans, batch=2)

    def gradients(model, image):
        output = model(image)
        weight = picture(*output.shape[2:], channels=output.shape[1], batch=2).to(output.dtype)
        names, values = zip(*model.named_parameters(), strict=True)
        loss = (output * (weight - 0.5)).sum()
        return dict(zip(names, torch.autograd.grad(loss, values, allow_unused=True), strict=True))

    use_backend(model, backend)
    found = gradients(model, image)
    use_backend(model, "auto")
    expected = gradients(model.double(), image.double())
    largest = max(value.abs().max() for value in expected.values() if value is not None)
    for name, value in expected.items():
        if ".route." in name:
            assert value is None
            assert found[name] is None
        else:
            assert value.abs().max() > 0, name
            assert (found[name] - value).abs().max() < 1e-3 * largest, name


@pytest.mark.parametrize("form", SMALL)
def test_a_fresh_net_can_be_trained(form):
    torch.manual_seed(0)
    model = MambaIRv2(FORMS[form])
    assert all(value.isfinite().all() for value in model.parameters())
    image = torch.rand(1, model.config.in_chans, 16, 16)
    s = model.config.upscale
    target = (1 - image).repeat_interleave(s, 2).repeat_interleave(s, 3)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(25):
        loss = (model(image) - target).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    for name, value in model.named_parameters():
        assert value.grad.abs().max() > 0, name


# Half precision


@pytest.mark.parametrize("form", SMALL)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float16, 0.02), (torch.bfloat16, 0.1)])
def test_half_precision_routes_in_full(labels, form, dtype, limit):
    model, image = network(form), picture(16, 24, channels=FORMS[form].in_chans)
    seen = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _, i, out, name=name: seen.update({name: out}))
    with torch.no_grad():
        expected = model(image)
        single = torch.stack(labels)
        labels.clear()
        with torch.autocast("cpu", dtype):
            found = model(image)
    assert found.dtype == torch.float32
    layer = "layers.0.residual_group.layers.0"
    assert seen[f"{layer}.assm.route"].dtype == torch.float32
    assert {
        seen[f"{layer}.{name}"].dtype for name in ("wqkv", "assm.out_proj", "convffn1.fc2")
    } == {dtype}
    assert all(out.isfinite().all() for out in seen.values())
    same = (torch.stack(labels) == single).float().mean()
    print(f"{same:.4f} of labels, {(found - expected).abs().max() / expected.abs().max():.4f}")
    assert same > 1 - limit

import math

import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.utils import counters
from training import (
    STOPPABLE,
    assert_equal,
    load_checkpoint,
    read_log,
    recipe,
    start_of,
    train,
    write_photos,
)

from mambair_cli.archs import layers
from mambair_cli.errors import BackendError
from mambair_cli.models.recognise import load_network
from mambair_cli.training import checkpoints, loop
from mambair_cli.training import state as module
from mambair_cli.training.inputs import Settings


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.mark.parametrize(
    ("ema", "decays"), [(0.999, (1 / 11, 2 / 12)), (0.1, (1 / 11, 0.1)), (0.0, (0, 0))]
)
def test_averaged_weights(photos, tmp_path, monkeypatch, ema, decays):
    """avg <- decay avg + (1 - decay) weights after each step; the decay grows up to `ema`."""
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1)
    config = recipe(iterations=2, ema=ema)
    train(config, photos, tmp_path)
    saved = [torch.load(path, weights_only=True) for path in checkpoints.paths(tmp_path)[::-1]]
    average = {k: v.detach().double() for k, v in start_of(config).state_dict().items()}
    for decay, state in zip(decays, saved, strict=True):
        average = {
            k: decay * v + (1 - decay) * state["model"][k].double() for k, v in average.items()
        }
        for key, value in average.items():
            torch.testing.assert_close(state["ema"][key].double(), value, rtol=1e-5, atol=1e-6)
    assert any((v - saved[0]["model"][k]).abs().max() > 1e-4 for k, v in saved[1]["model"].items())


def test_the_gradient_is_clipped(photos, tmp_path, monkeypatch):
    """Adam hides the size of a gradient, but its first moment after one step shows it."""
    train(recipe(iterations=1, clip=1e-3), photos, tmp_path / "clipped")
    train(recipe(iterations=1, clip=0.0), photos, tmp_path / "free")
    norms = []
    for name in ("clipped", "free"):
        state = load_checkpoint(tmp_path / name)["optimiser"]["state"]
        norms.append(
            math.sqrt(sum((s["exp_avg"] / 0.1).square().sum().item() for s in state.values()))
        )
    assert norms[0] == pytest.approx(1e-3, rel=1e-2)
    assert norms[1] > 2e-3


@pytest.mark.parametrize("size", [1, 3])
def test_accumulated_parts_make_the_same_step(photos, tmp_path, size):
    """In double precision: six samples at once, or in parts; some of the batches are mixed."""
    config, results = recipe(iterations=3, batch=6, loss={"pixel": "charbonnier"}, mixup=1.2), []
    for name, settings in (("whole", 6), ("parts", size)):
        train(
            config, photos, tmp_path / name, settings=Settings("cpu", "fp64", device_batch=settings)
        )
        results.append([entry["loss"] for entry in read_log(tmp_path / name)])
    assert results[0] == pytest.approx(results[1], rel=1e-12)
    weights = [load_checkpoint(tmp_path / name)["model"] for name in ("whole", "parts")]
    for key, value in weights[0].items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(value, weights[1][key], rtol=1e-9, atol=1e-12)


def test_stages_have_their_own_patches_and_batches(photos, tmp_path, monkeypatch):
    shapes, original = [], module.add_gradients

    def add_gradients(model, low, *rest):
        shapes.append(low.shape)
        return original(model, low, *rest)

    monkeypatch.setattr(module, "add_gradients", add_gradients)
    config = recipe(iterations=[2, 1], patch=[8, 12], batch=[3, 2], mixup=1.2, validation=1)
    train(config, photos, tmp_path)
    assert [tuple(shape) for shape in shapes] == [(3, 3, 8, 8), (3, 3, 8, 8), (2, 3, 12, 12)]


def test_recomputing_blocks_changes_nothing_but_memory(photos, tmp_path):
    config = recipe(**STOPPABLE | {"iterations": 2})
    train(config, photos, tmp_path / "kept")
    train(config, photos, tmp_path / "again", settings=Settings("cpu", recompute=True))
    assert_equal(
        load_checkpoint(tmp_path / "kept")["model"], load_checkpoint(tmp_path / "again")["model"]
    )


# torch's own
@pytest.mark.filterwarnings("ignore:.*autograd:DeprecationWarning")
def test_a_compiled_network_learns_the_same(photos, tmp_path, monkeypatch):
    """Traced as on a GPU, in one graph for each shape, and run by the same kernels as without."""
    monkeypatch.setattr(layers, "_ONEDNN", False)
    monkeypatch.setattr(
        module, "compile_network", lambda model, device: model.compile(backend="aot_eager")
    )
    counters.clear()
    config = recipe(iterations=3)
    for name, compiled in (("plain", False), ("compiled", True)):
        train(config, photos, tmp_path / name, settings=Settings("cpu", compile=compiled))
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    losses = [
        [entry["loss"] for entry in read_log(tmp_path / name)] for name in ("plain", "compiled")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert load_network(tmp_path / "compiled" / "model.safetensors")[0].config.depths == (1,)


def test_compiling_is_for_gpus(photos, tmp_path):
    with pytest.raises(
        BackendError, match="`compile` is for NVIDIA and AMD GPUs, not for cpu; leave it out"
    ):
        train(recipe(), photos, tmp_path / "out", settings=Settings("cpu", compile=True))
    assert not (tmp_path / "out").exists()


def test_bf16_is_close(photos, tmp_path):
    for precision in ("fp32", "bf16"):
        train(
            recipe(iterations=2), photos, tmp_path / precision, settings=Settings("cpu", precision)
        )
    # the first loss is before any step
    fp32, bf16 = (read_log(tmp_path / name)[-1]["loss"] for name in ("fp32", "bf16"))
    assert fp32 != bf16
    assert fp32 == pytest.approx(bf16, rel=0.01)
    assert load_file(tmp_path / "bf16" / "model.safetensors")["norm.weight"].dtype == torch.float32

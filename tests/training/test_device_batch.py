import pytest
import torch
from torch import nn
from training import recipe

from mambair_cli.errors import CallError
from mambair_cli.training import device_batch as memory
from mambair_cli.training.device_batch import device_batches, kept_bytes, step_bytes
from mambair_cli.training.network import recompute_blocks
from mambair_cli.training.parallel import SingleProcess
from mambair_cli.training.recipe import build_network

CPU = SingleProcess(torch.device("cpu"), False)


def test_kept_bytes_are_those_of_the_inputs():
    """A linear layer keeps its input, ReLU its output, which is the input of the next one."""
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
    x = torch.zeros(10, 4)
    assert kept_bytes(lambda: model(x).sum(), model) == 4 * (10 * 4 + 10 * 16)


def loss_of(model):
    return lambda low, high: (model(low) - high).abs().mean()


def test_memory_grows_with_the_patch_and_shrinks_with_recomputing():
    config = recipe(network={"depths": [3]})
    model = build_network(config)
    small, large = (step_bytes(model, config, patch, loss_of(model)) for patch in (16, 32))
    assert 3.5 < large / small < 4.5
    recompute_blocks(model)
    assert step_bytes(model, config, 32, loss_of(model)) < large / 2


def test_as_many_samples_as_fit_and_divide_the_batch(monkeypatch):
    config = recipe(batch=[12, 10], patch=[8, 16], iterations=[3, 3])
    model = build_network(config)
    each = [step_bytes(model, config, patch, loss_of(model)) for patch in (8, 16)]
    state = memory.COPIES * sum(p.nbytes for p in model.parameters())

    def sizes(free, asked=None):
        monkeypatch.setattr(memory, "free_memory", lambda device: free / memory.MEMORY_SHARE)
        return device_batches(model, config, loss_of(model), CPU, asked)

    assert sizes(1e12) == {8: 12, 16: 10}
    assert sizes(state + 5.5 * each[0]) == {8: 4, 16: 1}
    assert sizes(state + 5.5 * each[1]) == {8: 12, 16: 5}
    assert sizes(0) == {8: 1, 16: 1}
    assert sizes(0, asked=2) == {8: 2, 16: 2}
    with pytest.raises(CallError, match="`device_batch=4` does not divide the 10 samples"):
        sizes(0, asked=4)


def test_processes_must_share_the_batch(monkeypatch):
    config, three = recipe(batch=8), SingleProcess(torch.device("cpu"), False)
    monkeypatch.setattr(three, "num_processes", 3, raising=False)
    model = build_network(config)
    with pytest.raises(CallError, match="a batch of 8 cannot be shared by 3 processes"):
        device_batches(model, config, loss_of(model), three, None)

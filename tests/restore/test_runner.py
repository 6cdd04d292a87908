"""How batches go through a network; that of a GPU with stand-ins for its streams."""

import contextlib

import numpy as np
import pytest
import torch
from networks import network
from restorers import SCENE, Local, as_type

from mambair_cli.restore.runner import Counter, Runner

CPU = torch.device("cpu")
CROPS = np.stack(
    [as_type(SCENE, "float32"), as_type(SCENE[::-1], "float32"), as_type(SCENE[:, ::-1], "float32")]
)


@pytest.mark.parametrize("ensemble", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("form", ["light_c", "jpeg"])
def test_tiles_of_a_batch_do_not_mix(form, channels, ensemble):
    runner, crops = Runner(network(form), CPU, ensemble), CROPS[..., :channels]
    together = runner.start(crops, torch.float32)()
    scale = runner.model.config.upscale
    assert together.shape == (3, scale * SCENE.shape[0], scale * SCENE.shape[1], channels)
    for crop, result in zip(crops, together, strict=True):
        np.testing.assert_allclose(
            result, runner.start(crop[None], torch.float32)()[0], rtol=0, atol=2e-6
        )


class Streams:
    """What `Runner` needs of torch.cuda; `log` tells what happened in which order."""

    def __init__(self, monkeypatch):
        self.log, empty = [], torch.empty
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda v: self.log.append("pinned") or v)
        monkeypatch.setattr(
            torch.Tensor, "record_stream", lambda v, stream: self.log.append("kept")
        )
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "computing")
        monkeypatch.setattr(torch.cuda, "stream", self.within)
        monkeypatch.setattr(
            torch, "empty", lambda *v, pin_memory=False, **k: empty(*v, **k).fill_(torch.nan)
        )

    @contextlib.contextmanager
    def within(self, stream):
        assert stream is self
        yield
        self.log.append("copied")

    def wait_stream(self, other):
        self.log.append(f"after {other}")

    def record_event(self):
        return self

    def synchronize(self):
        self.log.append("arrived")


@pytest.mark.parametrize("form", ["light_c", "jpeg"])
def test_transfers_of_a_gpu(monkeypatch, form):
    runner = Runner(network(form), CPU)
    expected = runner.start(CROPS, torch.float32)()
    runner.copies = streams = Streams(monkeypatch)
    wait = runner.start(CROPS, torch.float32)
    assert streams.log == ["pinned", "after computing", "kept", "copied"]
    np.testing.assert_array_equal(wait(), expected)
    assert streams.log[-1] == "arrived"


def test_a_call_may_be_recorded(monkeypatch):
    runner = Runner(network("light_c"), CPU, ensemble=True)
    seen, compute = [], runner.graphs.function

    def function(images, dtype):
        seen.append((tuple(images.shape), dtype, torch.is_autocast_enabled("cpu")))
        return compute(images, dtype)

    monkeypatch.setattr(runner.graphs, "function", function)
    runner.start(CROPS[:, :, :30], torch.bfloat16)()
    assert (
        seen
        == [((3, 3, 24, 30), torch.bfloat16, False), ((3, 3, 30, 24), torch.bfloat16, False)] * 4
    )


@pytest.mark.parametrize("form", ["light_c", "classic", "derain"])
def test_weights_in_channels_last_change_nothing(form):
    model = network(form)
    expected = Runner(model, CPU).start(CROPS, torch.float32)()
    model.to(memory_format=torch.channels_last)
    found = Runner(model, CPU).start(CROPS, torch.float32)()
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def test_progress_of_runs_that_no_block_tells_of():
    shares = []
    counter = Counter(network("light_c"), shares.append)
    assert counter.begin(0.25) == 0
    counter.end()
    assert counter.begin(0.75) == 0.25
    counter.end()
    assert shares == [0.25, 1.0]


def test_progress_of_runs_that_warm_up_before():
    shares, model = [], network("light_c")
    counter = Counter(model, shares.append)
    with counter, torch.inference_mode():
        counter.begin(0.5)
        for _ in range(3):
            model(torch.zeros(1, 3, 8, 8))
        counter.end()
    assert shares == sorted(shares)
    assert shares[-1] == 0.5


def test_a_model_stays_as_it_is_on_a_cpu():
    runner = Runner(Local(), CPU)
    assert (runner.copies, runner.ahead, runner.graphs.limit) == (None, 0, 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("graphs", [0, 2])
@pytest.mark.parametrize("form", ["light_c", "classic", "jpeg", "derain"])
def test_on_a_gpu(form, graphs):
    expected = Runner(network(form), CPU, ensemble=True).start(CROPS, torch.float32)()
    runner = Runner(network(form), torch.device("cuda"), ensemble=True)
    runner.graphs.limit = graphs
    begun = [runner.start(CROPS, torch.float32) for _ in range(4)]
    for wait in begun:
        np.testing.assert_allclose(wait(), expected, rtol=0, atol=1e-3 * np.abs(expected).max())

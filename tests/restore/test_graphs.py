"""CUDA graphs without a GPU: a stand-in for them replays what a function noted while it was
recorded.
"""

import contextlib

import pytest
import torch

from mambair_cli.restore.graphs import GRAPHS, WARM_UP, Graphs


class Cuda:
    """What `Graphs` needs of torch.cuda. `fail` is raised where a recording ends."""

    def __init__(self, monkeypatch):
        self.recording, self.fail, self.waits = None, None, []
        monkeypatch.setattr(torch.cuda, "CUDAGraph", self.Graph)
        monkeypatch.setattr(torch.cuda, "graph", self.graph)
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: self.Stream(self, "aside"))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.Stream(self, "here"))
        monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)

    class Stream:
        def __init__(self, cuda, name):
            self.cuda, self.name = cuda, name

        def wait_stream(self, other):
            self.cuda.waits.append(f"{self.name} for {other.name}")

    class Graph:
        def __init__(self):
            self.steps, self.replays = [], 0

        def replay(self):
            self.replays += 1
            for step in self.steps:
                step()

    @contextlib.contextmanager
    def graph(self, graph, stream):
        assert stream.name == "aside"
        self.recording = graph
        yield
        self.recording = None
        if self.fail:
            raise self.fail


@pytest.fixture
def cuda(monkeypatch):
    return Cuda(monkeypatch)


def recordable(cuda):
    """A function that multiplies, and the shapes that it was called with. While it is recorded
    nothing is computed.
    """
    shapes = []

    def function(images, factor):
        shapes.append(tuple(images.shape))
        out = factor * images
        if cuda.recording:
            cuda.recording.steps.append(lambda: out.copy_(factor * images))
            out.fill_(torch.nan)
        return out

    return function, shapes


def test_off_by_default(cuda):
    function, shapes = recordable(cuda)
    graphs = Graphs(function)
    assert GRAPHS == 0
    for _ in range(3):
        assert torch.equal(graphs(torch.ones(2), 3.0), torch.full((2,), 3.0))
    assert len(shapes) == 3
    assert not cuda.waits


def test_a_shape_is_recorded_once_and_replayed(cuda):
    function, shapes = recordable(cuda)
    graphs = Graphs(function, 2)
    inputs = [torch.rand(2, 3) for _ in range(4)]
    # all are kept, as the engine keeps the last
    results = [graphs(v, 3.0) for v in inputs]
    for v, result in zip(inputs, results, strict=True):
        assert torch.equal(result, 3 * v)
    assert shapes == [(2, 3)] * (WARM_UP + 1)
    ((graph, source, _),) = graphs._recorded.values()
    assert graph.replays == 4
    assert source.data_ptr() not in {v.data_ptr() for v in inputs}
    assert cuda.waits == ["aside for here", "here for aside"]


def test_the_shapes_that_were_used_last_are_kept(cuda):
    function, shapes = recordable(cuda)
    graphs = Graphs(function, 2)
    for size in (1, 2, 1, 3, 1, 2):
        assert torch.equal(graphs(torch.ones(size), 2.0), torch.full((size,), 2.0))
    assert [key[0] for key in graphs._recorded] == [(1,), (2,)]
    # 1 was in use when 3 came, so that 2 had to go
    assert shapes[:: WARM_UP + 1] == [
        (1,),
        (2,),
        (3,),
        (2,),
    ]


def test_settings_and_types_are_told_apart(cuda):
    function, _ = recordable(cuda)
    graphs = Graphs(function, 4)
    assert graphs(torch.ones(2), 2.0).tolist() == [2, 2]
    assert graphs(torch.ones(2), 5.0).tolist() == [5, 5]
    assert graphs(torch.ones(2, dtype=torch.float64), 5.0).dtype == torch.float64
    assert len(graphs._recorded) == 3


def test_where_recording_fails_the_function_is_called(cuda, caplog):
    function, shapes = recordable(cuda)
    graphs = Graphs(function, 2)
    graphs(torch.ones(1), 2.0)
    cuda.fail = RuntimeError("operation not permitted when stream is capturing\nand more")
    shapes.clear()
    for _ in range(3):
        assert graphs(torch.ones(2), 2.0).tolist() == [2, 2]
    assert len(shapes) == WARM_UP + 1 + 3
    assert not graphs._recorded
    assert [r.getMessage() for r in caplog.records] == [
        "CUDA graphs are not used: operation not permitted when stream is capturing"
    ]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), ValueError("of the network")]
)
def test_other_errors_are_the_callers(cuda, error):
    function, _ = recordable(cuda)
    graphs = Graphs(function, 2)
    cuda.fail = error
    with pytest.raises(type(error)):
        graphs(torch.ones(2), 2.0)
    cuda.fail = None
    assert graphs(torch.ones(2), 2.0).tolist() == [2, 2]
    assert graphs.limit == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("form", ["light_c", "classic", "derain"])
def test_networks_on_a_gpu(form, caplog):
    from networks import network, picture

    model = network(form).cuda()
    graphs = Graphs(model, 2)
    with torch.inference_mode():
        for size in ((32, 24), (24, 32), (32, 24)):
            for seed in range(3):
                image = picture(*size).cuda().roll(seed, 3)
                torch.testing.assert_close(graphs(image), model(image), rtol=1e-4, atol=1e-5)
    assert len(graphs._recorded) == 2
    assert not caplog.records

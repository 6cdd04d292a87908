import json
import os
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
from failing import fails
from training import recipe, write_photos

from mambair_cli.errors import BackendError, CallError
from mambair_cli.training import parallel


def test_one_process_needs_no_accelerate(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    engine = parallel.start("cpu", "fp32")
    assert isinstance(engine, parallel.SingleProcess)
    assert (engine.device.type, engine.num_processes, engine.process_index) == ("cpu", 1, 0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    fails(lambda: parallel.start("cpu", "fp32"), BackendError, "accelerate", "mambair[train]")


def test_unknown_precisions():
    fails(lambda: parallel.start("cpu", "fp16"), CallError, "fp32, bf16, fp64", "'fp16'")


def test_bf16():
    layer = torch.nn.Linear(2, 2)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with parallel.start("cpu", precision).autocast():
            assert layer(torch.zeros(1, 2)).dtype == dtype


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_two_processes_learn_as_one_that_accumulates(tmp_path):
    """50 steps in fp64, with random depth: a batch of 4 as two parts, at once or in turn."""
    pytest.importorskip("accelerate")
    config = recipe(batch=4, iterations=50, network={"drop_path_rate": 0.3, "depths": [2]})
    (tmp_path / "recipe.json").write_text(json.dumps(asdict(config)))
    (tmp_path / "photos").mkdir()
    line = [
        "-m",
        "mambair_cli",
        "train",
        "--recipe",
        tmp_path / "recipe.json",
        "--data",
        write_photos(tmp_path / "photos"),
    ]
    line += ["--device", "cpu", "--precision", "fp64"]
    start = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--master-port=0",
        "--rdzv-backend=c10d",
    ]
    start += ["--rdzv-endpoint=localhost:0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name, words in (
        ("one", [sys.executable, *line, "--device-batch", 2]),
        ("two", [*start, *line]),
    ):
        done = subprocess.run(
            [*map(str, words), "--out", str(tmp_path / name)],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("model.safetensors") == 1
    assert "batch 4, that is 1 times 2 on each of 2 cpu" in done.stderr
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == 50
    assert one == pytest.approx(two, rel=1e-5)
    weights = [
        torch.load(tmp_path / name / "checkpoint-00000050.pt", weights_only=True)["model"]
        for name in ("one", "two")
    ]
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], rtol=1e-6, atol=1e-9)

import pytest
import torch
from training import recipe, write_photos

from mambair_cli.archs.complexity import multiply_adds
from mambair_cli.training.inputs import Folders, Settings
from mambair_cli.training.plan import plan
from mambair_cli.training.recipe import build_network


def test_a_plan_says_what_a_run_takes(tmp_path):
    config = recipe(iterations=[3000, 1000], patch=[8, 12], batch=[6, 4])
    threads = torch.get_num_threads()
    rows = plan(config, Folders(write_photos(tmp_path)), Settings("cpu", device_batch=2), "none")
    facts = [text for _, text in rows]
    assert [name for name, _ in rows].count("  time") == 2
    parameters = sum(p.numel() for p in build_network(config).parameters())
    assert f"{parameters:,}" in facts
    assert "4 to train on, 2 to validate, 0 skipped" in facts
    assert "1 cpu x 2 at once x 3 times" in facts
    assert "1 cpu x 2 at once x 2 times" in facts
    work = 6 * multiply_adds(build_network(config), 8, 8).full / 1e9
    assert f"{work:,.1f} G an iteration" in facts
    seconds = [float(text.split()[0]) for name, text in rows if name == "  time"]
    hours = float(facts[-1].split()[0]) * (24 if "days" in facts[-1] else 1)
    assert hours == pytest.approx((3000 * seconds[0] + 1000 * seconds[1]) / 3600, abs=0.06)
    assert torch.get_num_threads() == threads

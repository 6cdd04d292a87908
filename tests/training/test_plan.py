import pytest
import torch
from training import recipe, write_photos

from mambair_cli.training.inputs import Folders, Settings
from mambair_cli.training.plan import multiply_adds, plan
from mambair_cli.training.recipe import build_network, read_recipe


def test_multiply_adds_of_a_small_net_by_hand():
    """Each convolution and projection by its formula; C = D = 16, N = 2, R = 1, K = 4."""
    config = recipe()
    C = D = 16
    # conv_first, conv_after_body, upsample
    outer = 27 * C + 9 * C * C + 9 * C * 12
    group = 9 * C * C
    scan = 2 * C * D + 9 * D + 4 * (1 + 2 * 2) * D + 4 * D + 4 * (9 * D * 2 + D) + C * D
    # for all pixels together, C // 30 rounded up to 1
    attention = 2 * C / 32**2
    half = C * C // 2 + 9 * C // 2 + C // 2 * C + 9 * C + attention
    assert multiply_adds(build_network(config), 3) == pytest.approx(outer + group + scan + half)


@pytest.mark.parametrize(("name", "full"), [("light-a-x2", 417.8), ("light-x4", 84.6)])
def test_multiply_adds_of_published_nets(name, full):
    """The full counts, in G for an output of 1280x720, include 1 to 2 % of normalisations."""
    config = read_recipe(name)
    pixels = 1280 * 720 / config.scale**2
    assert 0.975 * full < multiply_adds(build_network(config), 3) * pixels / 1e9 < full


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
    seconds = [float(text.split()[0]) for name, text in rows if name == "  time"]
    hours = float(facts[-1].split()[0]) * (24 if "days" in facts[-1] else 1)
    assert hours == pytest.approx((3000 * seconds[0] + 1000 * seconds[1]) / 3600, abs=0.06)
    assert torch.get_num_threads() == threads

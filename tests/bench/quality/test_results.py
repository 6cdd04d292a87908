import json
import math

import pytest
from reports import NETWORK, report, result

from mambair_cli.bench.quality.results import ImageRow, Report, Result
from mambair_cli.models.published import Published

BASELINE = result("bicubic", {"a": 28.0, "b": 30.0})
TINY = result("tiny", {"a": 31.0, "b": 34.0}, seconds=2.0)
FIGURE = Published("light_sr", "CARN", 32.13, None, "Y", 1592.0, 90.9, "Table 3")
REPORT = report(BASELINE, TINY, published=(FIGURE,))


def test_a_result_sums_up_its_images():
    assert TINY.metrics == ["psnr", "ssim"]
    assert TINY.mean == pytest.approx({"psnr": 32.5, "ssim": 0.325})
    half = 12.7062 * 1.5  # the quantile of two values by their standard error
    assert TINY.interval["psnr"] == pytest.approx((32.5 - half, 32.5 + half), abs=1e-2)
    assert (TINY.seconds, TINY.peak_memory) == (2.0, 2**28)
    assert TINY.megapixels_per_second == pytest.approx(2 * 40 * 30 / 1e6 / 2.0)
    assert REPORT.baseline == BASELINE
    assert list(REPORT.networks) == [TINY]


def test_what_users_read_as_json():
    """These names are an interface: scripts read them."""
    facts = REPORT.to_json()
    names = "mambair threads dataset folder copy complete task setting channel border inputs seed"
    names += " tiler seconds network_seconds results published"
    assert facts.keys() == set(names.split())
    baseline, tiny = facts["results"]
    assert baseline.keys() == {"name", "mean", "interval", "images"}
    names = "sha256 device backend dtype parameters leaf_parameters macs leaf_macs"
    names += " seconds megapixels_per_second peak_memory"
    assert tiny.keys() == baseline.keys() | set(names.split())
    assert baseline["images"][0].keys() == {"image", "width", "height", "psnr", "ssim"}
    assert tiny["images"][0].keys() == baseline["images"][0].keys() | {"seconds", "peak_memory"}
    (printed,) = facts["published"]
    names = "table method psnr ssim channel parameters_k macs_g source"
    assert printed.keys() == set(names.split())


def test_json_gives_the_report_back():
    assert Report.from_json(json.loads(json.dumps(REPORT.to_json()))) == REPORT


def test_null_is_an_infinite_score():
    row = ImageRow("a", 4, 3, {"psnr": math.inf, "ssim": 1.0}, 0.5, 7)
    facts = row.to_json() | {"psnr": None}
    assert ImageRow.from_json(facts) == row
    assert Result("x", (row,), NETWORK).mean["psnr"] == math.inf
    assert Result("x", (row,), NETWORK).interval["psnr"] is None


@pytest.mark.parametrize("lost", ["name", "images", "mean", "interval", "seconds", "sha256"])
def test_what_is_not_whole_is_refused(lost):
    facts = TINY.to_json()
    del facts[lost]
    if lost == "sha256":
        # Without a network, what one costs is nobody's.
        assert Result.from_json(facts).network is None
        return
    with pytest.raises(KeyError):
        Result.from_json(facts)

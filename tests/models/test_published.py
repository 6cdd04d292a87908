import csv
from pathlib import Path

from mambair_cli.bench.quality.sets import set_named
from mambair_cli.models.published import (
    BASELINES,
    COMPLEXITY,
    PUBLISHED,
    Score,
    published,
    published_scores,
)


def rows(path: Path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_figures_of_the_paper():
    (found,) = (
        p for p in published(["light_sr"], "x2", "Urban100") if p.method == "MambaIR-light (v1)"
    )
    assert (found.psnr, found.ssim, found.channel) == (32.86, 0.9343, "Y")
    assert (found.parameters_k, found.macs_g) == (530, 122.1)
    assert "Table 3" in found.source
    (found,) = (p for p in published(["jpeg_gray"], "q10", "classic5") if p.method == "JPEG input")
    assert (found.psnr, found.ssim, found.parameters_k) == (27.82, 0.7595, None)


def test_tables_settings_and_sets_are_kept_apart():
    both = published(["classic_sr", "light_sr"], "x4", "Set5")
    assert {p.table for p in both} == {"classic_sr", "light_sr"}
    assert {p.table for p in published(["light_sr"], "x4", "Set5")} == {"light_sr"}
    assert len({(p.method, p.source) for p in both}) == len(both)  # bicubic stands in both tables
    assert published(["light_sr"], "x5", "Set5") == published(["light_sr"], "x4", "photos") == []
    assert published([], "x4", "Set5") == []


def test_the_misprint_is_marked():
    marked = [p for p in published(["classic_sr"], "x4", "Set5") if "misprint" in p.source]
    assert [(p.method, p.psnr) for p in marked] == [("MambaIR+", 31.13)]
    assert not any("misprint" in p.source for p in published(["classic_sr"], "x4", "Set14"))


def test_every_figure_has_its_source():
    for row in rows(PUBLISHED):
        assert row["source"], row
        assert 10 < float(row["psnr"]) < 60, row
        assert not row["ssim"] or 0 < float(row["ssim"]) < 1, row
        assert row["dataset"] == "DND" or set_named(row["dataset"]).name == row["dataset"], (
            row
        )  # DND hides its truths


def test_every_cost_belongs_to_a_figure():
    known = {(r["task"], r["setting"], r["method"]) for r in rows(PUBLISHED)}
    costs = rows(COMPLEXITY)
    assert {(r["task"], r["setting"], r["method"]) for r in costs} <= known
    assert all(r["source"] and float(r["params_k"]) > 0 and float(r["macs_g"]) > 0 for r in costs)


def test_scores_are_the_papers():
    assert published_scores("classic_sr", "x4", "MambaIR")[0] == Score("Set5", 33.03, 0.9046)
    assert published_scores("denoise_color", "sigma25", "MambaIR")[0] == Score(
        "CBSD68", 31.8, None, "RGB"
    )
    assert published_scores("classic_sr", "x2", "Nobody's") == ()


def test_baselines_have_scores():
    for task, (table, method, setting) in BASELINES.items():
        assert published_scores(table, setting.format({"upscale": 4, "dejpeg": 10}[task]), method)

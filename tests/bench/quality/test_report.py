import csv
import io
import json
import math
from dataclasses import replace

import pytest
from reports import NETWORK, result
from reports import report as build

from mambair_cli.bench.quality import report
from mambair_cli.bench.quality.results import Report
from mambair_cli.models.published import Published, published

BASELINE = result("bicubic", {"a": 28.0, "b": 30.0})
TINY = result("tiny|x4", {"a": 31.25, "b": 32.25}, seconds=2.0)
FIGURE = Published(
    table="light_sr",
    method="CARN",
    psnr=32.13,
    ssim=0.8937,
    channel="Y",
    parameters_k=1592.0,
    macs_g=90.9,
    source="Table 3",
)
MAMBAIR = replace(FIGURE, method="MambaIR+")
BARE = replace(FIGURE, method="IPT", ssim=None, parameters_k=None, macs_g=None)
REPORT = build(BASELINE, TINY, published=(FIGURE, BARE))


def test_the_headline_says_what_was_measured():
    assert (
        report.headline(REPORT)
        == "Set5 x4 (all 5 images, pixels as known); Y, border 4; inputs: read from files"
    )
    noisy = build(
        BASELINE, setting="sigma25", channel="rgb", border=0, inputs="noise, seed 7", seed=7
    )
    assert report.headline(noisy).endswith("RGB, border 0; inputs: noise, seed 7")
    assert report.headline(build(BASELINE, dataset="Rain100H", setting="-")).startswith(
        "Rain100H (all"
    )


def test_a_row_for_each_image_then_means_and_intervals():
    header, rows = report.images_table(REPORT)
    assert header == ("image", "bicubic PSNR", "bicubic SSIM", "tiny|x4 PSNR", "tiny|x4 SSIM")
    assert rows == [
        ("a", "28.000", "0.2800", "31.250", "0.3125"),
        ("b", "30.000", "0.3000", "32.250", "0.3225"),
        ("mean", "29.000", "0.2900", "31.750", "0.3175"),
    ]


def test_an_interval_takes_five_images():
    four, five = (
        build(result("bicubic", {str(i): 28.0 + i for i in range(count)})) for count in (4, 5)
    )
    assert [row[0] for row in report.images_table(four)[1]] == [*"0123", "mean"]
    *_, last = report.images_table(five)[1]
    # Mean 30, standard error sqrt(0.5); the quantile is 2.776.
    assert last == ("95 % of means", "28.037 to 31.963", "0.2804 to 0.3196")
    *_, last = report.images_table(build(result("bicubic", dict.fromkeys("abcde", math.inf))))[1]
    assert last == ("95 % of means", "", "")


def test_no_interval_of_ssim_ends_above_one():
    report_of = build(result("bicubic", dict(zip("abcde", (50, 70, 80, 99, 99.5), strict=True))))
    *_, last = report.images_table(report_of)[1]
    assert last[2].endswith(" to 1.0000")


def test_the_summary_stands_beside_what_is_published():
    header, rows = report.summary_table(REPORT, REPORT.published)
    assert all(len(row) == len(header) for row in rows)
    assert rows[0] == ("bicubic", "29.000", "0.2900", *[""] * 5, "this run")
    cost = ("174", "12.1", "2.0", "0.001", "256")
    assert rows[1] == ("tiny|x4", "31.750", "0.3175", *cost, "this run")
    assert rows[2] == ("CARN", "32.13", "0.8937", "1592", "90.9", "", "", "", "[1]")
    assert rows[3] == ("IPT", "32.13", *[""] * 6, "[1]")
    notes = report.footnotes(REPORT, REPORT.published)
    assert "[1] light_sr: Table 3" in notes
    (note,) = (note for note in notes if note.startswith("tiny|x4"))
    assert note.startswith("tiny|x4: numba on cpu, float32; 150 K and 8.6 G as the papers count")


CLASSIC = [
    replace(FIGURE, table="classic_sr", method=f"C{i}", psnr=32 + i / 10, source="HAT paper")
    for i in (1, 3, 2)
]
LARGE = replace(TINY, name="large", network=replace(NETWORK, parameters=20_000_000))


@pytest.mark.parametrize(
    ("networks", "shown"),
    [
        ((TINY,), ["CARN", "IPT", "C3"]),
        ((LARGE,), ["C1", "C3", "C2", "CARN"]),
        ((TINY, LARGE), ["C1", "C3", "C2", "CARN", "IPT"]),
        ((), ["C3", "CARN"]),
    ],
)
def test_published_rows_of_the_same_class_and_the_best_of_the_other(networks, shown):
    found = build(BASELINE, *networks, published=(*CLASSIC, FIGURE, BARE))
    rows = report.shown_published(found)
    assert [row.method for row in rows] == shown
    assert report.shown_published(found, everything=True) == [*CLASSIC, FIGURE, BARE]
    left_out = [note for note in report.footnotes(found, rows) if "left out" in note]
    assert len(left_out) == (0 if len(shown) == 5 else 1)


def test_tasks_of_one_table_show_it_whole():
    rows = tuple(replace(FIGURE, table="derain", method=name) for name in ("SPAIR", "MPRNet"))
    assert report.shown_published(build(BASELINE, TINY, published=rows)) == list(rows)
    assert report.shown_published(build(BASELINE, TINY)) == []


@pytest.mark.parametrize("dataset", ["Set5", "Set14", "B100", "Urban100", "Manga109"])
@pytest.mark.parametrize("setting", ["x2", "x3", "x4"])
def test_the_summary_fits_100_columns(dataset, setting):
    network = replace(NETWORK, parameters=1_999_999, macs=10**12)
    slow = result("tiny-denoise-real", {"a": 31.25}, seconds=12345.0)
    slow = replace(slow, network=network)
    rows = published(("classic_sr", "light_sr"), setting, dataset)
    found = build(BASELINE, slow, published=tuple(rows))
    for shown in (report.shown_published(found), found.published):
        header, cells = report.summary_table(found, shown)
        widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
        # Two spaces between columns.
        assert sum(widths) + 2 * len(widths) <= 100


def test_other_metrics_have_columns():
    def with_lpips(found):
        rows = (replace(r, scores={**r.scores, "lpips": 0.25}) for r in found.images)
        return replace(found, images=tuple(rows))

    more = build(with_lpips(BASELINE), with_lpips(TINY), published=(FIGURE,))
    header, rows = report.summary_table(more, more.published)
    assert header[:4] == ("method", "PSNR", "SSIM", "LPIPS")
    assert [row[3] for row in rows] == ["0.2500", "0.2500", ""]
    assert report.images_table(more)[1][-1][3] == "0.2500"


def footnotes(found):
    return report.footnotes(found, found.published)


def test_what_a_reader_has_to_know():
    printed = replace(REPORT, published=(FIGURE, MAMBAIR))
    notes = footnotes(printed)
    assert notes[0].startswith("4.0 s, of these 3.8 s (95 %) in networks; 2 thread(s), tiler auto")
    assert any("resized Y alone" in note for note in notes)
    assert any("`tiler=published`" in note for note in notes)
    assert not any("`tiler" in note for note in footnotes(replace(printed, tiler="published")))
    assert not any("`tiler" in note for note in footnotes(REPORT))
    assert not any("whole set" in note for note in notes)
    partial = replace(REPORT, complete=False)
    assert any("whole set" in note for note in footnotes(partial))
    assert len(footnotes(replace(partial, published=()))) == 3
    jpeg = replace(REPORT, setting="q10")
    assert not any("resized Y" in note for note in footnotes(jpeg))
    figure = replace(FIGURE, table="derain", method="VmambaIR")
    rain = replace(REPORT, setting="-", border=0, published=(figure,))
    assert any("`border=4`" in note for note in footnotes(rain))
    assert not any("`border" in note for note in footnotes(replace(rain, border=4)))


def test_markdown():
    text = report.markdown(REPORT)
    assert text.startswith("# Set5 x4")
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert tables[2] == "| bicubic | 29.000 | 0.2900 |  |  |  |  |  | this run |"
    assert r"tiny\|x4" in text
    widths = {line.replace(r"\|", "").count("|") for line in tables}
    assert widths == {10, 6}


def test_csv_has_full_precision():
    sharp = result("sharp", {"a": 1 / 3, "b,c": math.inf}, seconds=1.0)
    rows = list(csv.DictReader(io.StringIO(report.csv_rows(build(BASELINE, sharp)))))
    assert [(row["method"], row["image"]) for row in rows] == [
        ("bicubic", "a"),
        ("bicubic", "b"),
        ("sharp", "a"),
        ("sharp", "b,c"),
    ]
    assert float(rows[2]["psnr"]) == 1 / 3
    assert float(rows[3]["psnr"]) == math.inf
    assert rows[0]["seconds"] == ""
    assert float(rows[2]["seconds"]) == 0.5
    assert {row["setting"] for row in rows} == {"x4"}


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [("psnr", 28.0006, "28.001"), ("ssim", 0.81113, "0.8111"), ("psnr", None, "")],
)
def test_numbers(metric, value, text):
    assert report.number(metric, value) == text


def test_the_spread_over_seeds():
    drawn = [
        replace(
            result(f"v2+ seed {seed}", {"a": 31.0 + seed / 10, "b": 32.0}, seconds=2.0),
            network=replace(NETWORK, seed=seed),
        )
        for seed in (0, 1)
    ]
    found = build(BASELINE, TINY, *drawn)
    (note,) = (line for line in report.footnotes(found, []) if "over 2 seeds" in line)
    assert note.startswith("v2+ over 2 seeds: PSNR 31.52500 (sd 0.02500, 31.50000 to 31.55000)")
    assert Report.from_json(json.loads(json.dumps(found.to_json()))).networks == found.networks
    # Reports of before know no seeds.
    assert "seed" not in found.to_json()["results"][1]

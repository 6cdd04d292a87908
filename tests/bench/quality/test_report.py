import csv
import io
import math

import pytest
from reports import facts, result

from mambair_cli.bench.quality import report

BASELINE = result("bicubic", {"a": 28.0, "b": 30.0})
TINY = result("tiny|x4", {"a": 31.25, "b": 32.25}, seconds=2.0)
FIGURE = {
    "table": "light_sr",
    "method": "CARN",
    "psnr": 32.13,
    "ssim": 0.8937,
    "channel": "Y",
    "source": "Table 3",
}
FIGURE |= {"parameters_k": 1592.0, "macs_g": 90.9}
MAMBAIR = FIGURE | {"method": "MambaIR+"}
BARE = FIGURE | {"method": "IPT", "ssim": None, "parameters_k": None, "macs_g": None}
FACTS = facts(BASELINE, TINY, published=[FIGURE, BARE])


def test_the_headline_says_what_was_measured():
    assert (
        report.headline(FACTS)
        == "Set5 x4 (all 5 images, pixels as known); Y, border 4; inputs: read from files"
    )
    noisy = facts(
        BASELINE, setting="sigma25", channel="rgb", border=0, inputs="noise, seed 7", seed=7
    )
    assert report.headline(noisy).endswith("RGB, border 0; inputs: noise, seed 7")
    assert report.headline(facts(BASELINE, dataset="Rain100H", setting="-")).startswith(
        "Rain100H (all"
    )


def test_a_row_for_each_image_then_means_and_intervals():
    header, rows = report.images_table(FACTS)
    assert header == ("image", "bicubic PSNR", "bicubic SSIM", "tiny|x4 PSNR", "tiny|x4 SSIM")
    assert rows == [
        ("a", "28.000", "0.2800", "31.250", "0.3125"),
        ("b", "30.000", "0.3000", "32.250", "0.3225"),
        ("mean", "29.000", "0.2900", "31.750", "0.3175"),
        ("95 % of means", "28.000 to 30.000", "", "30.750 to 32.750", ""),
    ]


def test_the_summary_stands_beside_what_is_published():
    header, rows = report.summary_table(FACTS)
    assert all(len(row) == len(header) for row in rows)
    assert rows[0] == ("bicubic", "29.000", "0.2900", *[""] * 7, "this run")
    cost = ("150", "174", "8.6", "12.1", "2.0", "0.500", "256")
    assert rows[1] == ("tiny|x4", "31.750", "0.3175", *cost, "this run, numba on cpu, float32")
    assert rows[2] == (
        "CARN",
        "32.13",
        "0.8937",
        "1592",
        "",
        "90.9",
        *[""] * 4,
        "light_sr: Table 3",
    )
    assert rows[3] == ("IPT", "32.13", *[""] * 8, "light_sr: Table 3")


def test_other_metrics_have_columns():
    more = facts(BASELINE, TINY, published=[FIGURE])
    for r in more["results"]:
        r["mean"]["lpips"], r["interval"]["lpips"] = 0.25, (0.2, 0.3)
        for row in r["images"]:
            row["lpips"] = 0.25
    try:
        header, rows = report.summary_table(more)
        assert header[:4] == ("method", "PSNR", "SSIM", "LPIPS")
        assert [row[3] for row in rows] == ["0.2500", "0.2500", ""]
        assert report.images_table(more)[1][-1][3] == "0.2000 to 0.3000"
    finally:
        for r in more["results"]:
            del r["mean"]["lpips"], r["interval"]["lpips"]


def test_what_a_reader_has_to_know():
    printed = {**FACTS, "published": [FIGURE, MAMBAIR]}
    notes = report.footnotes(printed)
    assert notes[0].startswith("4.0 s, of these 3.8 s (95 %) in networks; 2 thread(s), tiler auto")
    assert any("Y resized alone" in note for note in notes)
    assert any("--tiler published" in note for note in notes)
    assert not any(
        "--tiler" in note for note in report.footnotes({**printed, "tiler": "published"})
    )
    assert not any("--tiler" in note for note in report.footnotes(FACTS))
    assert not any("whole set" in note for note in notes)
    assert any("whole set" in note for note in report.footnotes({**FACTS, "complete": False}))
    assert len(report.footnotes({**FACTS, "published": [], "complete": False})) == 2
    assert not any("Y resized" in note for note in report.footnotes({**FACTS, "setting": "q10"}))
    rain = {
        **FACTS,
        "setting": "-",
        "border": 0,
        "published": [FIGURE | {"table": "derain", "method": "VmambaIR"}],
    }
    assert any("--border 4" in note for note in report.footnotes(rain))
    assert not any("--border" in note for note in report.footnotes({**rain, "border": 4}))


def test_markdown():
    text = report.markdown(FACTS)
    assert text.startswith("# Set5 x4")
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert tables[2] == "| bicubic | 29.000 | 0.2900 |  |  |  |  |  |  |  | this run |"
    assert r"tiny\|x4" in text
    widths = {line.replace(r"\|", "").count("|") for line in tables}
    assert widths == {12, 6}


def test_csv_has_full_precision():
    sharp = result("sharp", {"a": 1 / 3, "b,c": math.inf}, seconds=1.0)
    rows = list(csv.DictReader(io.StringIO(report.csv_rows(facts(BASELINE, sharp)))))
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

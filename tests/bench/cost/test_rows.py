import pytest

from mambair_cli.bench.cost.rows import Row, at_least, at_most, bars_table, ratio


def test_a_bar_is_met_or_missed():
    assert at_least("a", 10, 10, "ten") == Row("a", "ten", ">= 10", True)
    assert at_least("a", 9.9, 10, "9.9") == Row("a", "9.9", ">= 10", False)
    assert at_most("a", 0.5, 0.5, "half", "s") == Row("a", "half", "<= 0.5 s", True)
    assert at_most("a", 0.6, 0.5, "0.6", "s") == Row("a", "0.6", "<= 0.5 s", False)


def test_what_is_no_number_meets_no_bar():
    nan = float("nan")
    assert at_least("a", nan, 1, "nan").met is False
    assert at_most("a", nan, 1, "nan").met is False


def test_rows_in_words():
    rows = [Row("one", "2", "<= 3", True), Row("two", "4", "<= 3", False), Row("three", "5")]
    header, cells = bars_table(rows)
    assert header == ("what", "measured", "bar", "")
    assert [row[-1] for row in cells] == ["met", "MISSED", ""]
    assert cells[2] == ("three", "5", "", "")
    assert rows[2].to_json() == {"what": "three", "value": "5", "bar": "", "met": None}


@pytest.mark.parametrize(
    ("theirs", "ours", "text"),
    [(4.0, 1.0, "4.0 (4000 / 1000 ms)"), (0.05, 0.02, "2.5 (50.0 / 20.0 ms)")],
)
def test_ratios(theirs, ours, text):
    assert ratio(theirs, ours) == text

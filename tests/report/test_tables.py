"""The one table: each cell in each of its three forms."""

import math
from xml.etree import ElementTree

import pytest

from rxrx1_jax.methods.statistics import Comparison, Unit
from rxrx1_jax.report.tables import Table, Value, gain, percent

TABLE = Table(
    "Accuracy, <%>",
    ["method", "by site", "why"],
    [
        ["base", Value(50.04, sd=2.0), "a & b"],
        ["others"],
        ["a|b", Value(5.0, low=-1.25, high=11.25, signed=True), "word " * 20],
        ["none", Value(math.nan), ""],
    ],
    ["Read <me>."],
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Value(math.nan), "–"),
        (Value(44.14), "44.1"),
        (Value(1234, 0), "1,234"),
        (Value(0.004, None), "0.004"),
        (Value(1.5, sd=0.71), "1.5 ± 0.7"),
        (Value(1.5, 2, sd=math.nan), "1.50"),
        (Value(3.0, signed=True), "+3.0"),
        (Value(3.0, sd=1, signed=True), "+3.0 ± 1.0"),
        (Value(3.0, low=-1, high=7, signed=True), "+3.0 (-1.0 to +7.0)"),
        (Value(85.0, sd=7.07, n=2), "85.0 ± 7.1 (n = 2)"),
        (gain(Comparison(0.03, 3, 0.02, 0.01, 0.05)), "+3.0 (+1.0 to +5.0)"),
        (percent({Unit("w", 0, 0): 0.5, Unit("w", 0, 1): 0.7, Unit("w", 1, 0): 0.2}),
         "40.0 ± 28.3"),
        (percent({Unit("w", 0, 0): 0.5}), "50.0"),
        (gain(Comparison(-0.03, 1)), "-3.0"),
        (percent({}), "–"),
    ],
)
def test_values(value, text):
    assert str(value) == text


def test_text_is_aligned_and_prose_wraps():
    lines = TABLE.text().splitlines()
    assert lines[:4] == [
        "Accuracy, <%>",
        f"method  {'by site':>20}  why",
        f"base    {'50.0 ± 2.0':>20}  a & b",
        "others",
    ]
    assert lines[4].startswith("a|b     +5.0 (-1.2 to +11.2)  word word")
    # 20 words of 5 characters in lines of 48: 9, 9 and 2, under their column.
    assert [line.count("word") for line in lines[4:7]] == [9, 9, 2]
    assert lines[6] == " " * lines[4].index("word") + "word word"
    assert lines[7:] == [f"none    {'–':>20}", "Read <me>."]


def test_markdown():
    assert TABLE.markdown().splitlines() == [
        *("Accuracy, <%>:", ""),
        "| method | by site | why |",
        "|---|---:|---|",
        "| base | 50.0 ± 2.0 | a & b |",
        "| **others** |  |  |",
        f"| a\\|b | +5.0 (-1.2 to +11.2) | {'word ' * 20} |",
        "| none | – |  |",
        *("", "Read <me>."),
    ]


def test_html_has_scopes_classes_and_escapes():
    parsed = ElementTree.fromstring(f"<div>{TABLE.html()}</div>")  # nested as it should be
    cells = [part for part in parsed.iter() if part.tag in ("th", "td", "caption", "p")]
    value = {"class": "value"}
    assert [[cell.tag, cell.attrib, cell.text or ""] for cell in cells] == [
        ["caption", {}, "Accuracy, <%>"],
        ["th", {"scope": "col"}, "method"],
        ["th", {"scope": "col"} | value, "by site"],
        ["th", {"scope": "col"}, "why"],
        ["th", {"scope": "row"}, "base"],
        ["td", value, "50.0 ± 2.0"],
        ["td", {}, "a & b"],
        ["th", {"scope": "rowgroup", "colspan": "3"}, "others"],
        ["th", {"scope": "row"}, "a|b"],
        ["td", value, "+5.0 (-1.2 to +11.2)"],
        ["td", {}, "word " * 20],
        ["th", {"scope": "row"}, "none"],
        ["td", value, "–"],
        ["td", {}, ""],
        ["p", {"class": "note"}, "Read <me>."],
    ]


def test_a_table_of_no_rows_is_shown():
    empty = Table("Nothing", ["a", "b"], [])
    assert empty.text() == "Nothing\na  b\n" and empty.markdown().count("|") == 6
    assert "Nothing" in empty.html()

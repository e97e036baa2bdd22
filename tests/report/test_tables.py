"""The one table: each cell in each of its forms."""

import csv
import dataclasses
import json
import math
from xml.etree import ElementTree

import pytest

from rxrx1_jax.methods.statistics import Comparison, Unit
from rxrx1_jax.report.tables import Links, Table, Value, gain, percent

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
        (gain(Comparison(-0.03, 1)), "-3.0 (–)"),
        (percent({}), "–"),
    ],
)
def test_values(value, text):
    assert str(value) == text


def test_markdown_is_aligned():
    prose, blank = "word " * 20, " " * 100
    assert TABLE.markdown().splitlines() == [
        *("Accuracy, <%>:", ""),
        f"| method |              by site | {'why':100} |",
        f"|--------|---------------------:|{'-' * 102}|",
        f"| base   |           50.0 ± 2.0 | {'a & b':100} |",
        f"| **others** |                      | {blank} |",  # makes no column wide
        f"| a\\|b   | +5.0 (-1.2 to +11.2) | {prose} |",
        f"| none   |                    – | {blank} |",
        *("", "Read <me>."),
    ]


def test_html_has_scopes_classes_links_and_escapes(tmp_path):
    linked = Links((("a<b", tmp_path / "r&[1]"), ("there", "#m"), ("+", "")), more=" (n = 2)")
    rows = [*TABLE.rows, [linked, Value(1.0), linked]]
    html = dataclasses.replace(TABLE, rows=rows).html(tmp_path / "page")
    parsed = ElementTree.fromstring(f"<div>{html}</div>")  # nested as it should be
    cells = [part for part in parsed.iter() if part.tag in ("th", "td", "caption", "p")]
    row, value = {"scope": "row"}, {"class": "value", "data-label": "by site"}
    text, wide = {"data-label": "why"}, {"scope": "col", "style": "min-width: 5ch"}  # "there"
    assert [(cell.tag, cell.attrib, cell.text or "") for cell in cells[:-3]] == [
        ("caption", {}, "Accuracy, <%>"),
        ("th", wide | {"data-label": "method"}, "method"),
        ("th", value | {"scope": "col"}, "by site"),
        ("th", wide | text, "why"),
        ("th", row, "base"), ("td", value, "50.0\xa0±\xa02.0"), ("td", text, "a & b"),
        ("th", {"scope": "rowgroup", "colspan": "3"}, "others"),
        ("th", row, "a|b"),
        ("td", value, "+5.0 (-1.2\xa0to\xa0+11.2)"),  # breaks before the bracket alone
        ("td", text, "word " * 20),
        ("th", row, "none"), ("td", value, "–"), ("td", text, ""),
        ("th", row, ""),
    ]  # fmt: skip
    links = [(link.text, link.attrib["href"]) for link in cells[-4].iter("a")]
    assert links == [("a<b", "../r%26%5B1%5D/"), ("there", "#m")]
    assert "".join(cells[-4].itertext()) == "a<b there + (n = 2)"


def test_many_links_are_a_number_that_opens(tmp_path):
    links = Links(tuple((f"world:{fold}.0", tmp_path / f"r{fold}") for fold in range(24)))
    table = Table("Runs", ["method", "runs"], [["base", links]])
    assert table.markdown().splitlines()[-1] == "| base   | 24   |"
    (details,) = ElementTree.fromstring(f"<div>{table.html(tmp_path)}</div>").iter("details")
    assert details.find("summary").text == "24"
    assert [a.attrib["href"] for a in details.iter("a")] == [f"r{fold}/" for fold in range(24)]
    assert table.records()[0]["runs"].split()[-1] == "world:23.0"  # files keep every name


def test_csv_and_json_have_every_digit_in_a_column_each(tmp_path):
    TABLE.write(tmp_path, "t")
    content = json.loads((tmp_path / "t.json").read_text())
    assert (content["caption"], content["notes"]) == (TABLE.caption, TABLE.notes)
    base, other, nothing = content["rows"]
    assert base["group"] == "" and other["group"] == "others" and nothing["by site"] is None
    assert (base["by site"], base["by site sd"], base["by site low"]) == (50.04, 2.0, None)
    assert (other["by site low"], other["by site high"]) == (-1.25, 11.25)
    read = list(csv.DictReader(open(tmp_path / "t.csv", newline="")))
    as_text = [{k: "" if v is None else str(v) for k, v in row.items()} for row in content["rows"]]
    assert read == as_text
    assert list(read[0]) == [
        "group", "method", *(f"by site{part}" for part in ("", " sd", " low", " high")), "why"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (Value(7.34, sd=2.7), "7.3 ± 2.7 points above"),
        (gain(Comparison(-0.03, 1)), "3.0 points below"),
        (gain(Comparison(0.03, 3, 0.02, 0.01, 0.05)), "interval +1.0 to +5.0"),
    ],
)
def test_a_difference_in_words(value, said):
    assert said in value.apart("base") and " base" in value.apart("base")


def test_a_table_of_no_rows_is_shown():
    empty = Table("Nothing", ["a", "b"], [])
    assert empty.markdown().count("|") == 6
    assert "Nothing" in empty.html()

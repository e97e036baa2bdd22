"""metadata.py against hand-made and mutated tables; the real one: test_real_tables.py."""

import csv
import gzip
import io
from collections import Counter

import pytest
from hypothesis import given, settings
from table_edits import EDITS, VALID, check_sites, edited, table
from tiny_release import COLUMNS, UNLABELLED, tiny_rows, tiny_wilds_rows

from tfds_builder.rxrx1.release import metadata
from tfds_builder.rxrx1.release.metadata import ReleaseError, Site


def read(data: bytes, datasets=metadata.DATASETS) -> list[Site]:
    return [site for _, site in metadata.read_metadata(data, "metadata.csv", datasets).values()]


def test_reads_every_row():
    rows = tiny_rows()
    sites = read(table(rows))
    assert [tuple(map(str, site)) for site in sites] == [tuple(row.values()) for row in rows]
    assert metadata.COLUMNS == tuple(COLUMNS) == Site._fields
    entries = metadata.read_metadata(table(rows), "metadata.csv")
    assert [line for line, _ in entries.values()] == list(range(2, len(rows) + 2))
    last = max(sites, key=lambda site: site.well)
    assert (last.well, last.row, last.column) == ("O23", 15, 23)
    unlabelled = [site for site in sites if site.sirna_id == -1]
    assert {(s.experiment, s.plate, s.well) for s in unlabelled} == {UNLABELLED}
    assert {s.sirna for s in unlabelled} == {""}
    assert {s.sirna for s in sites if s.well_type == "negative_control"} == {"EMPTY"}


def floats(row: dict[str, str]) -> dict[str, str]:
    """As pandas writes integers once a column has a gap."""
    return row | {name: f"{row[name]}.0" for name in ("plate", "site", "sirna_id")}


def spaced(row: dict[str, str]) -> dict[str, str]:
    return {name: f" {value}\t " for name, value in row.items()}


def written(rows, **options) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, [*rows[0]], **{"lineterminator": "\n"} | options)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


FORMS = {  # of the same table
    "further columns, another order": lambda rows: table(
        [{"": "1", "source": "x", **row} for row in rows], ["", "source", *reversed(COLUMNS)]
    ),
    "byte order mark": lambda rows: b"\xef\xbb\xbf" + table(rows),
    "Windows lines": lambda rows: table(rows).replace(b"\n", b"\r\n") + b"\r\n",
    "old Mac lines": lambda rows: table(rows).replace(b"\n", b"\r"),
    "spaces": lambda rows: table(list(map(spaced, rows))).replace(b"dataset,", b" dataset ,", 1),
    "spaces at the ends of lines": lambda rows: table(rows).replace(b"\n", b" \n"),
    "spaces before quotes": lambda rows: written(rows, quoting=1).replace(b'","', b'", "'),
    "blank lines": lambda rows: table(rows).replace(b"\n", b"\n\n") + b" \n" + b"," * 10 + b"\n",
    "decimals": lambda rows: table(list(map(floats, rows))),
    "quotes": lambda rows: written(rows, quoting=1),
    "gzip": lambda rows: gzip.compress(table(rows)),
    "gzip in two parts": lambda rows: (
        gzip.compress(table(rows)[:99]) + gzip.compress(table(rows)[99:])
    ),
    "all at once": lambda rows: gzip.compress(
        b"\xef\xbb\xbf" + written(list(map(spaced, map(floats, rows))), lineterminator="\r\n")
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_the_same_table(form):
    assert read(FORMS[form](tiny_rows())) == read(table(tiny_rows()))


def test_val_is_a_dataset_of_wilds_only():
    data = table(tiny_wilds_rows())
    assert Counter(s.dataset for s in read(data, metadata.WILDS_DATASETS)).keys() == {
        "train", "val", "test",
    }  # fmt: skip
    with pytest.raises(ReleaseError, match="field dataset: found 'val'"):
        read(data)


# In the tiny metadata, line 2 is HUVEC-02_1_B02_1 and line 6 HUVEC-02_1_D04_1 (s20000, id 0),
# line 7 its second site.
BAD_ROWS = [
    (2, {"well_type": "negativ"}, "well_type", "negativ"),
    (2, {"cell_type": "HELA"}, "cell_type", "HELA"),
    (2, {"cell_type": "RPE"}, "experiment", "HUVEC-02"),
    (2, {"experiment": "HUVEC-2"}, "experiment", "HUVEC-2"),
    (2, {"experiment": "HUVEC-02/../x"}, "experiment", "HUVEC-02/../x"),
    (2, {"dataset": "val"}, "dataset", "val"),
    (2, {"plate": "5"}, "plate", "5"),
    (2, {"plate": "1.5"}, "plate", "1.5"),
    (2, {"plate": "1.0.0"}, "plate", "1.0.0"),
    (2, {"site": "1e0"}, "site", "1e0"),
    (2, {"well": "B02.0"}, "well", "B02.0"),
    (2, {"well": "B25"}, "well", "B25"),
    (2, {"well": "Q02"}, "well", "Q02"),
    (2, {"well": "B2"}, "well", "B2"),
    (2, {"site": "3"}, "site", "3"),
    (2, {"site_id": "HUVEC-02_1_B02_2"}, "site_id", "HUVEC-02_1_B02_2"),
    (2, {"well_id": "HUVEC-02_1_B03"}, "well_id", "HUVEC-02_1_B03"),
    (2, {"sirna": ""}, "sirna", ""),
    (2, {"sirna": "NaN"}, "sirna", "NaN"),
    (2, {"sirna_id": "1137"}, "sirna_id", "1137"),
    (4, {"sirna_id": "-1", "sirna": ""}, "sirna_id", "-1"),
    (6, {"sirna_id": "1108"}, "sirna_id", "1108"),
    (6, {"sirna_id": "-2"}, "sirna_id", "-2"),
    (6, {"sirna_id": "zero"}, "sirna_id", "zero"),
    (6, {"sirna_id": "-0"}, "sirna_id", "-0"),
    (6, {"sirna_id": "nan"}, "sirna_id", "nan"),
    (6, {"sirna_id": "0,0"}, "sirna_id", "0,0"),
    (6, {"sirna_id": "00"}, "sirna_id", "00"),
    (6, {"sirna_id": "\u0661"}, "sirna_id", "\u0661"),  # a digit to Python, not to the release
    (6, {"sirna_id": "-1"}, "sirna", "s20000"),
    (6, {"sirna": ""}, "sirna", ""),
    (6, {"sirna": "EMPTY"}, "sirna", "EMPTY"),
    (6, {"sirna": "s1\0"}, "sirna", "s1\0"),
    (7, {"sirna_id": "5", "sirna": "s20005"}, "sirna", "s20005"),  # the twin site disagrees
    (7, {"dataset": "train"}, "dataset", "train"),
]


@pytest.mark.parametrize("line, change, field, found", BAD_ROWS)
def test_bad_row_names_line_field_and_value(line, change, field, found):
    rows = tiny_rows()
    rows[line - 2] |= change
    with pytest.raises(ReleaseError) as error:
        read(table(rows))
    assert f"metadata.csv, line {line}, field {field}: found {found!r}" in str(error.value)


def test_one_sirna_has_one_id_and_one_id_one_sirna():
    rows = tiny_rows()
    wells = {row["well_id"] for row in rows if row["sirna_id"] == "1"}
    victim = sorted(wells)[-1]
    line = 2 + next(i for i, row in enumerate(rows) if row["well_id"] == victim)
    for change, field in (({"sirna_id": "2"}, "sirna_id"), ({"sirna": "s1"}, "sirna")):
        changed = [row | change if row["well_id"] == victim else row for row in rows]
        with pytest.raises(ReleaseError, match=rf"line {line}, field {field}: .* line \d+"):
            read(table(changed))


def test_duplicated_site_names_both_lines():
    rows = tiny_rows()
    with pytest.raises(ReleaseError, match=rf"line {len(rows) + 2}, field site_id: .* line 5"):
        read(table([*rows, rows[3]]))


@pytest.mark.parametrize(
    "edit, says",
    [
        (lambda d: d.replace(b"well_type", b"welltype", 1), "line 1: column 'well_type'"),
        (lambda d: d.replace(b",", b";"), "line 1: column 'site_id'"),
        (lambda d: d.replace(b"HUVEC-02_1_B02_1,", b"", 1), "line 2: 10 fields"),
        (lambda d: d.replace(b",1138\n", b",1138,1\n", 1), "line 2: 12 fields"),
        (lambda d: d.splitlines()[0] + b"\n", "rows"),
        (lambda d: b"", "line 1: column 'site_id'"),
        (lambda d: d.replace(b"EMPTY", b'"EMPTY', 1), "line"),
        (lambda d: d.decode().encode("utf-16"), "line 1: .*UTF-8"),
        (lambda d: d.replace(b"s20000", b"s\xb5", 1), "line 6: .*UTF-8"),
        (lambda d: d.replace(b"s20000", b"s" * 200_000, 1), "line 6: field"),
        (lambda d: d.replace(b"HUVEC", b"H" * 9999, 1), "line 2, field .{2,300} expected"),
        (lambda d: gzip.compress(d)[:-9], "gzip"),
        (lambda d: gzip.compress(d)[:30] + b"\0" * 9, "gzip"),
        (lambda d: gzip.compress(d)[:-8] + b"\0" * 8, "gzip"),
        (lambda d: gzip.compress(gzip.compress(d)), "line 1: .*UTF-8"),
        (lambda d: gzip.compress(bytes(metadata.TABLE_BYTES + 1)), "67 MB"),
        (lambda d: bytes(metadata.TABLE_BYTES + 1), "67 MB"),
    ],
)
def test_malformed_table(edit, says):
    with pytest.raises(ReleaseError, match=f"^metadata.csv.*{says}"):
        read(edit(table(tiny_rows())))


@settings(max_examples=400, deadline=None)
@given(EDITS)
def test_any_edit_gives_valid_sites_or_a_release_error(edits):
    try:
        sites = read(edited(VALID, edits))
    except ReleaseError as error:
        assert "metadata.csv" in str(error) and len(str(error)) < 2000
    else:
        check_sites(sites)
        assert all(s.sirna or s.sirna_id == -1 for s in sites)

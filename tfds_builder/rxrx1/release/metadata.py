"""The table of sites: its vocabulary, and metadata.csv -> validated sites.

Missing wells, wells with one site, plates with fewer than 30 positive controls or with several
untreated wells, and plates without controls are all legal: the real release has them. Everything
else is refused with the file, line and field at fault.
"""

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

CHANNELS = (  # file suffix w1..w6, the paper's order
    "nuclei",
    "endoplasmic reticulum",
    "actin",
    "nucleoli and cytoplasmic RNA",
    "mitochondria",
    "Golgi",
)
CELL_TYPES = ("HUVEC", "RPE", "HEPG2", "U2OS")
WELL_TYPES = ("treatment", "positive_control", "negative_control")
DATASETS = ("train", "test")
WILDS_DATASETS = ("train", "val", "test")
PLATES = ("1", "2", "3", "4")
SITES = ("1", "2")
UNTREATED = "EMPTY"  # what metadata.csv writes in `sirna` for untreated wells
SIRNA_IDS = {  # well_type -> ids of the official release
    "treatment": range(0, 1108),
    "positive_control": range(1108, 1138),
    "negative_control": range(1138, 1139),
}
UNKNOWN = -1  # sirna_id of a treatment whose label is not public

TABLE_BYTES = 1 << 26  # a table has no more: the official metadata.csv has 10 MB
EXPERIMENT = re.compile(r"(?P<cell_type>[A-Z0-9]+)-[0-9]{2}")
_WELL = re.compile(r"[A-P](0[1-9]|1[0-9]|2[0-4])")  # 384-well plate, rows A-P, columns 01-24
_ID = re.compile(r"0|[1-9][0-9]{0,8}")
_INTEGERS = {"plate", "site", "sirna", "sirna_id"}  # `sirna` in Kaggle's tables
_FLOAT = re.compile(r"(-?[0-9]+)\.0*")  # pandas writes 3.0 once a column has a gap


class ReleaseError(ValueError):
    """The release on disk is not what it should be; says where, what was found, what to do."""


class Site(NamedTuple):
    """One row of metadata.csv: one field of view of one well."""

    site_id: str  # HUVEC-01_1_B02_1
    well_id: str  # HUVEC-01_1_B02
    cell_type: str
    dataset: str  # "train" | "test", the official partition; also "val" in the WILDS layout
    experiment: str  # HUVEC-01
    plate: int  # 1..4
    well: str  # B02
    site: int  # 1 | 2
    well_type: str
    sirna: str  # ThermoFisher id, "EMPTY" if untreated, "" if unknown
    sirna_id: int  # 0..1107 treatments, 1108..1137 positive controls, 1138 untreated, -1 unknown

    @property
    def row(self) -> int:
        """Row of the plate, 1 (A) to 16 (P)."""
        return ord(self.well[0]) - ord("A") + 1

    @property
    def column(self) -> int:
        """Column of the plate, 1 to 24."""
        return int(self.well[1:])


COLUMNS = Site._fields  # of metadata.csv, in the official order
# Rows that have the same value in a column agree in others.
_AGREE = {
    "well_id": ("dataset", "well_type", "sirna", "sirna_id"),
    "sirna": ("sirna_id",),
    "sirna_id": ("sirna",),
}


def read_metadata(
    data: bytes, source: str, datasets: Sequence[str] = DATASETS
) -> dict[str, tuple[int, Site]]:
    """Validates a metadata.csv, without looking at images.

    Args:
      data: the file.
      source: what messages call it.
      datasets: legal values of the column `dataset`.

    Returns:
      {site_id: (line, site)} in the order of the file.

    Raises:
      ReleaseError: names the line and field at fault.
    """
    sites: dict[str, tuple[int, Site]] = {}
    first: dict[tuple[str, Any], tuple[int, Site]] = {}  # (column, value) -> the first with it
    for line, row in rows(data, source, COLUMNS):
        where = f"{source}, line {line}"
        site = read_site(row, where, datasets)
        if site.site_id in sites:
            raise ReleaseError(
                f"{where}, field site_id: {site.site_id!r} is already on line"
                f" {sites[site.site_id][0]}; a site may be listed once, remove one of the two rows"
            )
        sites[site.site_id] = line, site
        for key in _AGREE if site.sirna_id != UNKNOWN else ["well_id"]:
            value = getattr(site, key)
            before, other = first.setdefault((key, value), (line, site))
            for field in _AGREE[key]:
                found, expected = getattr(site, field), getattr(other, field)
                if found != expected:
                    raise ReleaseError(
                        f"{where}, field {field}: found {found!r} for {key} {value!r}, but line"
                        f" {before} says {expected!r}; correct one of the two rows"
                    )
    if not sites:
        raise ReleaseError(f"{source} has no rows below its header; get the file again")
    return sites


def rows(
    data: bytes, source: str, columns: Sequence[str]
) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Yields (line number, row) of a CSV file; columns other than `columns` are let through.

    The file may be packed by gzip. Spaces around a field and the `.0` of an integer are dropped.

    Raises:
      ReleaseError: not UTF-8, not CSV, a column is missing or doubled, a row is too short or long.
    """
    try:
        if data.startswith(b"\x1f\x8b"):
            data = gzip.GzipFile(fileobj=io.BytesIO(data)).read(TABLE_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ReleaseError(f"{source} is a damaged gzip file ({error}); get it again") from error
    if len(data) > TABLE_BYTES:
        limit = f"{TABLE_BYTES / 1e6:.0f} MB"
        raise ReleaseError(f"{source} unpacks to more than {limit}; get it again")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ReleaseError(f"{source}, line {line}: not UTF-8 text ({error})") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        for column in columns:
            if header.count(column) != 1:
                raise ReleaseError(
                    f"{source}, line 1: column {column!r} occurs {header.count(column)} times in"
                    f" the header {str(header)[:300]}, expected once each: {', '.join(columns)}"
                )
        for values in reader:
            values = [value.strip() for value in values]
            if not any(values):
                continue
            if len(values) != len(header):
                raise ReleaseError(
                    f"{source}, line {reader.line_num}: {len(values)} fields, expected"
                    f" {len(header)} as in the header"
                )
            row = dict(zip(header, values, strict=True))
            for name in _INTEGERS & row.keys():
                if number := _FLOAT.fullmatch(row[name]):
                    row[name] = number[1]
            yield reader.line_num, row
    except csv.Error as error:
        raise ReleaseError(f"{source}, line {reader.line_num}: {error}") from error


def refusal(where: str, row: Mapping[str, str], field: str, expected: str) -> ReleaseError:
    """The error of one field of one row."""
    found = repr(row[field])
    if len(found) > 200:
        found = f"{found[:200]}..."
    return ReleaseError(f"{where}, field {field}: found {found}, expected {expected}")


def check_place(row: Mapping[str, str], cell_type: str, where: str) -> str:
    """The well_id of a row, from valid fields `experiment`, `plate` and `well`."""
    if row["plate"] not in PLATES:
        raise refusal(where, row, "plate", "one of " + ", ".join(PLATES))
    experiment = EXPERIMENT.fullmatch(row["experiment"])
    if not experiment or experiment["cell_type"] != cell_type or cell_type not in CELL_TYPES:
        raise refusal(where, row, "experiment", f"{cell_type}-NN, NN being two digits")
    if not _WELL.fullmatch(row["well"]):
        raise refusal(where, row, "well", "A01 to P24")
    return f"{row['experiment']}_{row['plate']}_{row['well']}"


def valid_id(text: str, well_type: str) -> bool:
    """Whether `text` is an official id of this type of well."""
    return bool(_ID.fullmatch(text)) and int(text) in SIRNA_IDS[well_type]


def valid_ids(well_type: str) -> str:
    """What messages expect of an id of this type of well."""
    ids = SIRNA_IDS[well_type]
    span = str(ids[0]) if len(ids) == 1 else f"{ids[0]} to {ids[-1]}"
    return f"{span} for a {well_type}"


def read_site(
    row: Mapping[str, str], where: str, datasets: Sequence[str], named: bool = True
) -> Site:
    """Validates one row on its own. named: a known sirna_id needs the siRNA's name."""
    choices = (
        ("cell_type", CELL_TYPES),
        ("dataset", datasets),
        ("site", SITES),
        ("well_type", WELL_TYPES),
    )
    for field, valid in choices:
        if row[field] not in valid:
            raise refusal(where, row, field, "one of " + ", ".join(valid))
    well_id = check_place(row, row["cell_type"], where)
    if row["well_id"] != well_id:
        raise refusal(where, row, "well_id", f"{well_id!r}, as experiment, plate and well say")
    if row["site_id"] != f"{well_id}_{row['site']}":
        expected = f"'{well_id}_{row['site']}', as well_id and site say"
        raise refusal(where, row, "site_id", expected)

    well_type, sirna = row["well_type"], row["sirna"]
    unknown = well_type == "treatment" and row["sirna_id"] == str(UNKNOWN)
    if not unknown and not valid_id(row["sirna_id"], well_type):
        also = f", or {UNKNOWN} if unknown" if well_type == "treatment" else ""
        raise refusal(where, row, "sirna_id", valid_ids(well_type) + also)
    if unknown and sirna:
        raise refusal(where, row, "sirna", f"nothing, since sirna_id is {UNKNOWN} (unknown)")
    if named and not unknown and not sirna:
        raise refusal(where, row, "sirna", f"a name, since sirna_id is {row['sirna_id']}")
    if not sirna.isprintable():
        raise refusal(where, row, "sirna", "a name of printable characters")
    if (sirna == UNTREATED) != (well_type == "negative_control"):
        expected = f"{UNTREATED!r} for a negative_control and for nothing else"
        raise refusal(where, row, "sirna", expected)
    numbers: dict[str, Any] = {name: int(row[name]) for name in ("plate", "site", "sirna_id")}
    return Site(**{name: row[name] for name in COLUMNS} | numbers)

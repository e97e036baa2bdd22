"""The official RxRx1 release on disk -> one validated table of sites.

Layout (recursionpharma/rxrx-datasets, rxrx1/README.md):

    metadata.csv
    images/<EXPERIMENT>/Plate<1-4>/<WELL>_s<1|2>_w<1-6>.png      8-bit grayscale

Partial releases are normal input: missing wells, wells with one site, plates with fewer than 30
positive controls or with several untreated wells, and plates without controls are all legal.
Everything else is refused with the file, line and field at fault.
"""

import csv
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

CHANNELS = (  # file suffix w1..w6, the paper's order
    "nuclei",
    "endoplasmic reticulum",
    "actin",
    "nucleoli and cytoplasmic RNA",
    "mitochondria",
    "Golgi",
)
COLUMNS = (  # of metadata.csv, in the official order
    "site_id",
    "well_id",
    "cell_type",
    "dataset",
    "experiment",
    "plate",
    "well",
    "site",
    "well_type",
    "sirna",
    "sirna_id",
)
CELL_TYPES = ("HUVEC", "RPE", "HEPG2", "U2OS")
WELL_TYPES = ("treatment", "positive_control", "negative_control")
DATASETS = ("train", "test")
PLATES = ("1", "2", "3", "4")
SITES = ("1", "2")
UNTREATED = "EMPTY"  # what metadata.csv writes in `sirna` for untreated wells
SIRNA_IDS = {  # well_type -> ids of the official release
    "treatment": range(0, 1108),
    "positive_control": range(1108, 1138),
    "negative_control": range(1138, 1139),
}
UNKNOWN = -1  # sirna_id of a treatment whose label is not public

_EXPERIMENT = re.compile(r"(?P<cell_type>[A-Z0-9]+)-[0-9]{2}")
_WELL = re.compile(r"[A-P](0[1-9]|1[0-9]|2[0-4])")  # 384-well plate, rows A-P, columns 01-24
_INTEGER = re.compile(r"-?[0-9]{1,9}")
# Of check_images:


class ReleaseError(ValueError):
    """The release on disk is not what it should be; says where, what was found, what to do."""


class Site(NamedTuple):
    """One row of metadata.csv: one field of view of one well."""

    site_id: str  # HUVEC-01_1_B02_1
    well_id: str  # HUVEC-01_1_B02
    cell_type: str
    dataset: str  # "train" | "test", the official partition
    experiment: str  # HUVEC-01
    plate: int  # 1..4
    well: str  # B02
    site: int  # 1 | 2
    well_type: str
    sirna: str  # ThermoFisher id, "EMPTY" if untreated, "" if the label is unknown
    sirna_id: int  # 0..1107 treatments, 1108..1137 positive controls, 1138 untreated, -1 unknown

    @property
    def row(self) -> int:
        """Row of the plate, 1 (A) to 16 (P)."""
        return ord(self.well[0]) - ord("A") + 1

    @property
    def column(self) -> int:
        """Column of the plate, 1 to 24."""
        return int(self.well[1:])


def usable_cpus() -> int:
    """CPUs this process may use: the number of threads of every pool of the builder."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_release(root: str | os.PathLike[str]) -> Path:
    """Folder that holds metadata.csv: `root` itself, or `root/rxrx1` as the archives unpack."""
    root = Path(root)
    for folder in (root, root / "rxrx1"):
        if (folder / "metadata.csv").is_file():
            return folder
    raise ReleaseError(
        f"no metadata.csv in {root} nor in {root / 'rxrx1'}; name the folder that holds"
        " metadata.csv and images/, where the official archives were extracted"
    )


def read_release(root: str | os.PathLike[str]) -> list[Site]:
    """Reads and validates metadata.csv, without looking at the images.

    Args:
      root: folder of the release, see `find_release`.

    Returns:
      All sites, sorted by experiment, plate, well (row-major), site.

    Raises:
      ReleaseError: names the line and field at fault.
    """
    path = find_release(root) / "metadata.csv"
    sites: list[Site] = []
    lines: dict[str, int] = {}  # site_id -> line
    wells: dict[str, tuple[int, Site]] = {}  # well_id -> first line and site of the well
    names: dict[str, tuple[int, Site]] = {}  # sirna -> first line and site with it
    ids: dict[int, tuple[int, Site]] = {}  # sirna_id -> the same
    for line, row in _rows(path):
        where = f"{path}, line {line}"
        site = _site(row, where)
        if site.site_id in lines:
            raise ReleaseError(
                f"{where}, field site_id: {site.site_id!r} is already on line"
                f" {lines[site.site_id]}; a site may be listed once, remove one of the two rows"
            )
        lines[site.site_id] = line
        _check_agreement(
            site,
            line,
            wells.setdefault(site.well_id, (line, site)),
            "well_id",
            ("dataset", "well_type", "sirna", "sirna_id"),
            where,
        )
        if site.sirna_id != UNKNOWN:
            _check_agreement(
                site,
                line,
                names.setdefault(site.sirna, (line, site)),
                "sirna",
                ("sirna_id",),
                where,
            )
            _check_agreement(
                site,
                line,
                ids.setdefault(site.sirna_id, (line, site)),
                "sirna_id",
                ("sirna",),
                where,
            )
        sites.append(site)
    if not sites:
        raise ReleaseError(f"{path} has no rows below its header; extract the release again")
    return sorted(sites, key=lambda s: (s.experiment, s.plate, s.well, s.site))


def _rows(path: Path) -> Iterable[tuple[int, Mapping[str, str]]]:
    """Yields (line number, row) of a metadata file; further columns are let through."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, [])
            for column in COLUMNS:
                if header.count(column) != 1:
                    raise ReleaseError(
                        f"{path}, line 1: column {column!r} occurs {header.count(column)} times in"
                        f" the header {header}, expected once each: {', '.join(COLUMNS)}"
                    )
            for values in reader:
                if not values:
                    continue
                if len(values) != len(header):
                    raise ReleaseError(
                        f"{path}, line {reader.line_num}: {len(values)} fields, expected"
                        f" {len(header)} as in the header"
                    )
                yield reader.line_num, dict(zip(header, values, strict=True))
        except (csv.Error, UnicodeDecodeError) as error:
            raise ReleaseError(f"{path}, line {reader.line_num + 1}: {error}") from error


def _site(row: Mapping[str, str], where: str) -> Site:
    """Validates one row on its own."""

    def refuse(field: str, expected: str) -> ReleaseError:
        return ReleaseError(f"{where}, field {field}: found {row[field]!r}, expected {expected}")

    choices = (
        ("cell_type", CELL_TYPES),
        ("dataset", DATASETS),
        ("plate", PLATES),
        ("site", SITES),
        ("well_type", WELL_TYPES),
    )
    for field, valid in choices:
        if row[field] not in valid:
            raise refuse(field, "one of " + ", ".join(valid))
    experiment = _EXPERIMENT.fullmatch(row["experiment"])
    if not experiment or experiment["cell_type"] != row["cell_type"]:
        raise refuse("experiment", f"{row['cell_type']}-NN, as cell_type says")
    if not _WELL.fullmatch(row["well"]):
        raise refuse("well", "A01 to P24")
    well_id = f"{row['experiment']}_{row['plate']}_{row['well']}"
    if row["well_id"] != well_id:
        raise refuse("well_id", f"{well_id!r}, as experiment, plate and well say")
    if row["site_id"] != f"{well_id}_{row['site']}":
        raise refuse("site_id", f"'{well_id}_{row['site']}', as well_id and site say")

    well_type, sirna = row["well_type"], row["sirna"]
    valid_ids = SIRNA_IDS[well_type]
    unknown = well_type == "treatment" and row["sirna_id"] == str(UNKNOWN)
    known = _INTEGER.fullmatch(row["sirna_id"]) and int(row["sirna_id"]) in valid_ids
    if not (known or unknown):
        also = f", or {UNKNOWN} if unknown" if well_type == "treatment" else ""
        raise refuse("sirna_id", f"{valid_ids[0]} to {valid_ids[-1]} for a {well_type}{also}")
    if unknown and sirna:
        raise refuse("sirna", f"nothing, since sirna_id is {UNKNOWN} (unknown)")
    if not unknown and not sirna:
        raise refuse("sirna", f"a name, since sirna_id is {row['sirna_id']}")
    if (sirna == UNTREATED) != (well_type == "negative_control"):
        raise refuse("sirna", f"{UNTREATED!r} for a negative_control and for nothing else")
    return Site(
        row["site_id"],
        well_id,
        row["cell_type"],
        row["dataset"],
        row["experiment"],
        int(row["plate"]),
        row["well"],
        int(row["site"]),
        well_type,
        sirna,
        int(row["sirna_id"]),
    )


def _check_agreement(
    site: Site, line: int, first: tuple[int, Site], key: str, fields: Sequence[str], where: str
) -> None:
    """Rows with the same `key` must agree in `fields`; `first` is the first such row."""
    for field in fields:
        found, expected = getattr(site, field), getattr(first[1], field)
        if found != expected:
            raise ReleaseError(
                f"{where}, field {field}: found {found!r} for {key} {getattr(site, key)!r}, but"
                f" line {first[0]} says {expected!r}; correct one of the two rows"
            )


def lines(path: Path, site_ids: set[str]) -> dict[str, int]:
    """{site_id: line of the metadata file}; looked up when there is a fault to report."""
    return {row["site_id"]: line for line, row in _rows(path) if row["site_id"] in site_ids}

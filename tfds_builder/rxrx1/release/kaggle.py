"""The tables of the Kaggle layout -> validated wells, with official ids.

Layout of "Recursion Cellular Image Classification" (2019):

    train.csv  train_controls.csv  train/<EXPERIMENT>/Plate<1-4>/<WELL>_s<1|2>_w<1-6>.png
    test.csv   test_controls.csv   test/...

A row is a well; `id_code` is the official well_id. test.csv has no labels. Labels are of two
dialects: the competition's files have the official integer ids, later files `sirna_250` and
`UNTREATED`, where the number is *not* the id but a permutation of it. Later labels are translated
through the wells that the official metadata.csv has too, and refused without it.

Names of siRNAs and the missing labels come from the official metadata.csv, or an archive with it,
where it lies beside these tables; else `sirna` is "" for all but untreated wells.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from .metadata import (
    CELL_TYPES,
    DATASETS,
    SIRNA_IDS,
    UNKNOWN,
    UNTREATED,
    WELL_TYPES,
    ReleaseError,
    Site,
    check_place,
    read_metadata,
    refusal,
    rows,
    valid_id,
    valid_ids,
)
from .storage import Storage

METADATA_URL = "https://storage.googleapis.com/rxrx/rxrx1/rxrx1-metadata.zip"
_LATER = re.compile(r"sirna_[0-9]{1,4}")
_LATER_UNTREATED = "UNTREATED"


class Well(NamedTuple):
    """One row of the tables."""

    where: str  # ".../train.csv, line 2"
    label: str  # as in the table; "" where it has none
    site: Site  # the well's first site, with official id and name


def read_wells(storage: Storage) -> dict[str, Well]:
    """All wells of the tables that go with train/ and test/, by well_id, in the files' order.

    Raises:
      ReleaseError: names the file, line and field at fault; or later labels without metadata.csv.
    """
    wells: dict[str, Well] = {}
    for dataset in DATASETS:
        names = [f"{dataset}.csv", f"{dataset}_controls.csv"]
        missing = [name for name in names if not storage.holds(name)]
        if missing == names and not storage.holds(dataset):
            continue  # only the other half of the data is there
        if missing:
            raise ReleaseError(
                f"{storage.root}: there is no {' nor '.join(missing)}; the images below {dataset}/"
                f" need both {' and '.join(names)}"
            )
        for name in names:
            _read_table(storage, name, dataset, wells)
    if not wells:
        raise ReleaseError(f"{storage.root}: the tables have no rows; get the files again")
    official: dict[str, tuple[str, Site]] = {}
    if storage.holds("metadata.csv"):
        source = storage.describe("metadata.csv")
        entries = read_metadata(storage.read("metadata.csv"), source)
        for line, site in entries.values():
            official.setdefault(site.well_id, (f"{source}, line {line}", site))
    return _label(wells, official)


def _read_table(storage: Storage, name: str, dataset: str, wells: dict[str, Well]) -> None:
    """Adds the rows of one table to `wells`, not labelled yet."""
    controls = name.endswith("_controls.csv")
    columns = ["id_code", "experiment", "plate", "well"]
    if controls:
        columns += ["sirna", "well_type"]
    elif dataset == "train":
        columns += ["sirna"]
    source = storage.describe(name)
    for line, row in rows(storage.read(name), source, columns):
        where = f"{source}, line {line}"
        cell_type = row["experiment"].split("-")[0]
        if cell_type not in CELL_TYPES:
            raise refusal(where, row, "experiment", f"one of {', '.join(CELL_TYPES)}, then -NN")
        well_id = check_place(row, cell_type, where)
        if row["id_code"] != well_id:
            raise refusal(where, row, "id_code", f"{well_id!r}, as experiment, plate, well say")
        well_type = row["well_type"] if controls else "treatment"
        if controls and well_type not in WELL_TYPES[1:]:
            raise refusal(where, row, "well_type", "one of " + ", ".join(WELL_TYPES[1:]))
        label = row.get("sirna", "")
        later = label == _LATER_UNTREATED or _LATER.fullmatch(label)
        if later and (label == _LATER_UNTREATED) != (well_type == "negative_control"):
            expected = f"{_LATER_UNTREATED!r} for a negative_control and for nothing else"
            raise refusal(where, row, "sirna", expected)
        if "sirna" in row and not later and not valid_id(label, well_type):
            raise refusal(where, row, "sirna", valid_ids(well_type))
        if well_id in wells:
            raise ReleaseError(
                f"{where}, field id_code: {well_id!r} is already at {wells[well_id].where}; a well"
                " may be listed once, remove one of the two rows"
            )
        plate, place = int(row["plate"]), row["well"]
        site = Site(
            f"{well_id}_1", well_id, cell_type, dataset, row["experiment"], plate, place, 1,
            well_type, "", UNKNOWN,
        )  # fmt: skip
        wells[well_id] = Well(where, label, site)


def _label(wells: Mapping[str, Well], official: Mapping[str, tuple[str, Site]]) -> dict[str, Well]:
    """Gives wells their official ids and names; checks them against the official metadata."""
    names = {site.sirna_id: site.sirna for _, site in official.values()}
    names |= {SIRNA_IDS["negative_control"][0]: UNTREATED, UNKNOWN: ""}
    ids = _translation(wells, official)
    labelled = {}
    for well_id, (where, label, site) in wells.items():
        sirna_id = ids[label]
        if not (sirna_id == UNKNOWN or valid_id(str(sirna_id), site.well_type)):
            raise ReleaseError(
                f"{where}, field sirna: found {label!r}, which is id {sirna_id} by the official"
                f" metadata.csv, for a {site.well_type}; correct one of the two"
            )
        if well_id in official:
            elsewhere, known = official[well_id]
            if sirna_id == UNKNOWN and known.well_type == "treatment":
                sirna_id = known.sirna_id
            pairs = (
                ("the file", site.dataset, known.dataset),
                ("well_type", site.well_type, known.well_type),
                ("sirna", sirna_id, known.sirna_id),
            )
            for field, found, expected in pairs:
                if found != expected and expected != UNKNOWN:
                    raise ReleaseError(
                        f"{where}, {field} says {found!r} for well {well_id}, but {elsewhere} says"
                        f" {expected!r}; one of the two files is wrong, get both again"
                    )
        site = site._replace(sirna=names.get(sirna_id, ""), sirna_id=sirna_id)
        labelled[well_id] = Well(where, label, site)
    return labelled


def _translation(
    wells: Mapping[str, Well], official: Mapping[str, tuple[str, Site]]
) -> dict[str, int]:
    """{label: official id} of all labels in the tables, one to one."""
    texts = {well.label for well in wells.values() if well.label}
    later = {text for text in texts if not text.isdecimal()}
    examples = {well.label: well for well in wells.values()}
    if not later:
        return {"": UNKNOWN} | {text: int(text) for text in texts}
    if later != texts:
        one, other = examples[min(later)], examples[min(texts - later)]
        raise ReleaseError(
            f"{one.where}, field sirna: found {one.label!r}, but {other.where} has {other.label!r};"
            " the tables are of two versions with different labels, take all from one download"
        )
    if not official:
        one = examples[min(later)]
        raise ReleaseError(
            f"{one.where}, field sirna: found {one.label!r}; these later labels are a permutation"
            " of the official ids, and only the official metadata.csv can translate them: put"
            f" {METADATA_URL} (1.3 MB) into the same folder"
        )
    pairs: dict[str, tuple[str, Site]] = {}  # label -> first official well with it
    labels: dict[int, str] = {}  # official id -> label
    for well_id, well in wells.items():
        elsewhere, known = official.get(well_id, ("", well.site))
        if not well.label or known.sirna_id == UNKNOWN:
            continue
        first, twin = pairs.setdefault(well.label, (elsewhere, known))
        label = labels.setdefault(known.sirna_id, well.label)
        if twin.sirna_id != known.sirna_id or label != well.label:
            raise ReleaseError(
                f"{well.where}, field sirna: {well.label!r} is id {known.sirna_id} at {elsewhere},"
                f" but {label!r} is {known.sirna_id} and {well.label!r} {twin.sirna_id} at {first};"
                " the labels cannot be translated, get the tables of both releases again"
            )
    for label in sorted(later - pairs.keys()):
        raise ReleaseError(
            f"{examples[label].where}, field sirna: found {label!r}, of which no labelled well is"
            " in the official metadata.csv, so that its id is not known; put the whole official"
            f" metadata.csv there ({METADATA_URL}, 1.3 MB)"
        )
    return {"": UNKNOWN} | {label: site.sirna_id for label, (_, site) in pairs.items()}

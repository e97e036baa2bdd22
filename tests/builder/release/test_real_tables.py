"""The real tables, where they are at hand: what is in them, and what Kaggle's make of them."""

import csv
import gzip
import io
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest
from tiny_release import COLUMNS, KAGGLE_TABLES

from tfds_builder.rxrx1.release import kaggle, metadata, release
from tfds_builder.rxrx1.release.metadata import ReleaseError
from tfds_builder.rxrx1.release.release import open_release

REAL = Path(__file__).parents[4] / "shared" / "realdata"


class Listing:
    """Stands in for `Storage`: real tables, names of the images of given sites, no image bytes."""

    root = "listing"

    def __init__(self, rows: Iterable[dict[str, str]]):
        self.tables: dict[str, bytes] = {}
        self.folders: dict[str, set[str]] = defaultdict(set)
        for row in rows:
            self.add(row)

    def add(self, row: dict[str, str]) -> None:
        path = row["dataset"]
        for name in (row["experiment"], f"Plate{row['plate']}"):
            self.folders[path].add(name)
            path = f"{path}/{name}"
        stem = f"{row['well']}_s{row['site']}_w"
        self.folders[path] |= {f"{stem}{channel}.png" for channel in range(1, 7)}

    def holds(self, top: str) -> bool:
        return top in self.tables or top in self.folders

    def read(self, name: str) -> bytes:
        return self.tables[name]

    def names(self, folder: str) -> list[str]:
        return sorted(self.folders.get(folder, ()))

    def describe(self, name: str) -> str:
        return name


@pytest.fixture(scope="module")
def real() -> tuple[bytes, list[dict[str, str]], Listing]:
    """metadata.csv, its rows, and a listing of their images."""
    path = REAL / "metadata_reconstructed.csv.gz"
    if not path.exists():
        pytest.skip("the real metadata is not at hand")
    data = gzip.decompress(path.read_bytes())
    rows = list(csv.DictReader(io.StringIO(data.decode())))
    return data, rows, Listing(rows)


def test_real_metadata(real):
    sites = [site for _, site in metadata.read_metadata(real[0], "metadata.csv").values()]
    assert len(sites) == 125_510
    assert Counter(site.dataset for site in sites) == {"train": 81_224, "test": 44_286}
    # WILDS v1.0 says "val" for four of the test experiments; train is parted by site.
    assert Counter(s.site for s in sites if s.dataset == "train") == {1: 40_612, 2: 40_612}
    val = sum(s.experiment in ("HEPG2-08", "HUVEC-17", "RPE-08", "U2OS-04") for s in sites)
    assert (val, 44_286 - val) == (9_854, 34_432)
    treatments = Counter(site.dataset for site in sites if site.well_type == "treatment")
    assert treatments == {"train": 73_030, "test": 39_794}
    experiments = {site.experiment: site.cell_type for site in sites}
    assert Counter(experiments.values()) == {"HUVEC": 24, "RPE": 11, "HEPG2": 11, "U2OS": 5}
    assert sum(site.sirna_id == -1 for site in sites) == 2 * 11_044
    assert len({site.sirna_id for site in sites}) == 1139 + 1
    assert all(site.row in range(2, 16) and site.column in range(2, 24) for site in sites)

    wells = Counter((s.experiment, s.plate, s.well_type) for s in sites if s.site == 1)
    plates = {(s.experiment, s.plate) for s in sites}
    assert len(plates) == 204 and wells.total() == 62_755
    per_plate = {t: Counter(wells[(*p, t)] for p in plates) for t in metadata.WELL_TYPES}
    assert per_plate["positive_control"] == {30: 183, 29: 19, 28: 2}
    assert per_plate["negative_control"] == {1: 172, 2: 26, 3: 2, 4: 4}
    assert per_plate["treatment"][277] == 160 and min(per_plate["treatment"]) == 271


def real_tables(folder: str) -> dict[str, bytes]:
    paths = [REAL / folder / f"{name}.gz" for name in KAGGLE_TABLES]
    return {path.stem: gzip.decompress(path.read_bytes()) for path in paths}


def test_real_tables_rebuild_the_official_one(real, monkeypatch):
    _, rows, listing = real
    listing.tables = real_tables("kaggle")
    monkeypatch.setattr(release, "Storage", lambda root: listing)
    sites = open_release("x").sites
    assert len(sites) == len(rows) == 125_510
    by_id = {row["site_id"]: row for row in rows}
    for site in sites:
        row = by_id[site.site_id]
        unlabelled = row["dataset"] == "test" and row["well_type"] == "treatment"
        sirna = {
            "sirna": "EMPTY" if row["sirna"] == "EMPTY" else "",
            "sirna_id": "-1" if unlabelled else row["sirna_id"],
        }
        expected = tuple((row | sirna)[column] for column in COLUMNS)
        assert tuple(map(str, site)) == expected


def test_real_later_tables_with_the_official_one(real, monkeypatch):
    data, rows, listing = real
    tables = real_tables("kaggle_later")
    only_later = {}  # wells that the official table lacks: one site each
    for name in ("train.csv", "test.csv"):
        for row in csv.DictReader(io.StringIO(tables[name].decode())):
            well_id = row["id_code"]
            only_later[well_id] = row | {"dataset": name[:-4], "site": "2", "well_id": well_id}
    for row in rows:
        only_later.pop(row["well_id"], None)
    assert only_later.keys() == {
        "HUVEC-06_1_B18", "RPE-04_3_E04", "HUVEC-18_3_D23", "RPE-09_2_J16",
    }  # fmt: skip
    listing.tables = tables | {"metadata.csv": data}
    for row in only_later.values():  # the last test of this listing
        listing.add(row)
    monkeypatch.setattr(release, "Storage", lambda root: listing)
    sites = {site.site_id: site for site in open_release("x").sites}
    assert len(sites) == 125_514
    official = metadata.read_metadata(data, "metadata.csv")
    for site_id, (_, site) in official.items():
        assert sites.pop(site_id) == site
    assert {(s.well_id, s.site) for s in sites.values()} == {(w, 2) for w in only_later}
    wells = kaggle.read_wells(listing)
    ids = {well.label: well.site.sirna_id for well in wells.values() if well.label}
    assert len(ids) == len(set(ids.values())) == 1139 and ids["UNTREATED"] == 1138
    for site in sites.values():
        label = wells[site.well_id].label
        assert site.sirna_id == (ids[label] if site.dataset == "train" else -1)

    listing.tables.pop("metadata.csv")
    with pytest.raises(ReleaseError, match="permutation"):
        open_release("x")

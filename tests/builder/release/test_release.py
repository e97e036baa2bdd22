"""release.py: which layout it is, which part of it, images without rows, and the fingerprint."""

import dataclasses
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_release import (
    image_path,
    tiny_rows,
    tiny_wilds_rows,
    wilds_path,
    write_metadata,
    write_tiny_kaggle,
    write_tiny_release,
    write_tiny_wilds,
    zip_files,
)

from tfds_builder.rxrx1.release.metadata import ReleaseError, Site
from tfds_builder.rxrx1.release.release import Release, open_release
from tfds_builder.rxrx1.release.selection import Selection
from tfds_builder.rxrx1.release.storage import Storage

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return write_tiny_release(tmp_path_factory.mktemp("release"))


@pytest.fixture
def copy(tiny, tmp_path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def expected(rows) -> tuple[Site, ...]:
    integers = ("plate", "site", "sirna_id")
    sites = [Site(**row | {name: int(row[name]) for name in integers}) for row in rows]
    return tuple(sorted(sites, key=lambda s: (s.experiment, s.plate, s.well, s.site)))


def test_official(tiny, tmp_path):
    opened = open_release(tiny)
    assert opened.layout == "official" and opened.sites == expected(tiny_rows())
    (tmp_path / "rxrx1").symlink_to(tiny)
    tops = ["metadata.csv", "images"]
    zip_files(tmp_path / "all.zip", tiny, tops)
    for root in (str(tmp_path), tmp_path / "all.zip"):
        other = open_release(root)
        assert other.sites == opened.sites and other.fingerprint == opened.fingerprint
        assert [*map(other.image_names, other.sites)] == [*map(opened.image_names, opened.sites)]


def test_wilds(tmp_path):
    root = write_tiny_wilds(tmp_path / "rxrx1_v1.0")
    for path in (root, tmp_path):
        opened = open_release(path)
        assert opened.layout == "wilds" and opened.sites == expected(tiny_wilds_rows())
        by_id = {row["site_id"]: row for row in tiny_wilds_rows()}
        for site in opened.sites:
            names = opened.image_names(site)
            assert [root / name for name in names] == [wilds_path(root, by_id[site.site_id])]
    write_metadata(root, tiny_rows())  # without "val" it is the images that tell
    assert open_release(root).layout == "wilds"


def test_val_does_not_make_an_official_release_wilds(copy):
    write_metadata(copy, tiny_wilds_rows())
    with pytest.raises(ReleaseError, match="field dataset: found 'val'"):
        open_release(copy)


def test_nothing_to_detect(tiny, tmp_path):
    with pytest.raises(ReleaseError, match="no metadata.csv and no images in .*name the folder"):
        open_release(tmp_path)
    with pytest.raises(ReleaseError, match="there is no .*nowhere"):
        open_release(tmp_path / "nowhere")
    write_metadata(tmp_path, tiny_rows())
    with pytest.raises(ReleaseError, match="no images in .*, only tables"):
        open_release(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(ReleaseError, match="no images below .*images;"):
        open_release(tmp_path)
    (tmp_path / "metadata.csv").unlink()
    with pytest.raises(ReleaseError, match="no metadata.csv in .*, only images/"):
        open_release(tmp_path)


PARTS = [
    {"experiments": ("HUVEC-01",)},
    {"experiments": ["U2OS-01", "HUVEC-02"], "plates": [2]},
    {"plates": (1,)},
    {"wells": ("D04", "B02")},
    {"sites": (2,)},
    {"experiments": ("HUVEC-01",), "plates": (1,), "wells": ("D04",), "sites": (2,)},
]


@pytest.mark.parametrize("layout", ["official", "kaggle"])
@pytest.mark.parametrize("part", PARTS)
def test_a_selection_needs_only_its_own_images(tiny, tmp_path, layout, part):
    root = write_tiny_kaggle(tmp_path / "k", tiny) if layout == "kaggle" else None
    root = root or Path(shutil.copytree(tiny, tmp_path / "o"))
    whole = open_release(root)
    names = {"experiments": "experiment", "plates": "plate", "wells": "well", "sites": "site"}
    wanted = tuple(
        site
        for site in whole.sites
        if all(getattr(site, names[field]) in values for field, values in part.items())
    )
    assert 0 < len(wanted) < len(whole.sites)
    keep = {root / name for site in wanted for name in whole.image_names(site)}
    for path in sorted(root.rglob("*.png")):
        # Of Kaggle's wells an image at least must be there, to tell their sites.
        if path not in keep and not (layout == "kaggle" and "sites" in part):
            path.unlink()
    opened = open_release(root, Selection(**part))
    assert opened.layout == layout and opened.sites == wanted


def test_a_selection_lists_only_its_own_folders(tiny, tmp_path, monkeypatch):
    root = write_tiny_kaggle(tmp_path, tiny)
    listed: list[str] = []
    names = Storage.names

    def noted(self: Storage, folder: str):
        listed.append(folder)
        return names(self, folder)

    monkeypatch.setattr(Storage, "names", noted)
    open_release(root, Selection(experiments=("HUVEC-01", "HUVEC-02"), plates=(2,)))
    assert listed == ["train/HUVEC-01/Plate2", "test/HUVEC-02/Plate2"]


@pytest.mark.parametrize(
    "part, message",
    [
        ({"experiments": ("HUVEC-03",)}, "'HUVEC-03' is not in .*HUVEC-01, HUVEC-02, U2OS-01"),
        ({"plates": (3,)}, "Selection.plates: 3 is not in .*; choose from 1, 2"),
        ({"wells": ("D4",)}, "Selection.wells: 'D4' is not in .*; choose from B02, C03"),
        ({"wells": ("D05",), "experiments": ("HUVEC-01",), "plates": (1,)}, "no site of the rel"),
    ],
)
@pytest.mark.parametrize("layout", ["official", "kaggle"])
def test_impossible_selections(tiny, tmp_path, layout, part, message):
    root = write_tiny_kaggle(tmp_path, tiny) if layout == "kaggle" else tiny
    with pytest.raises(ReleaseError, match=message):
        open_release(root, Selection(**part))


def test_a_few_images_without_a_row_are_left_out(copy, caplog):
    sites = open_release(copy).sites
    assert not caplog.records
    plate = copy / "images" / "HUVEC-01" / "Plate1"
    for name in ("._D04_s2_w1.png", "Thumbs.db"):  # not images
        (plate / name).touch()
    (plate / "notes").mkdir()
    assert open_release(copy).sites == sites and not caplog.records
    for stray in ("D05_s1_w1.png", "D04_s2_w7.png", "B02_s1.png"):  # 3 of 366 are below 1 %
        (plate / stray).touch()
        caplog.clear()
        assert open_release(copy).sites == sites
    assert "3 images have no row" in caplog.text and str(plate / "D05_s1_w1.png") in caplog.text
    (plate.parent / "Plate5").mkdir()
    (plate.parent / "Plate5" / "B02_s1_w1.png").touch()
    with pytest.raises(ReleaseError, match="^4 images have no row .*366 images"):
        open_release(copy)
    caplog.clear()
    assert open_release(copy, Selection(sites=(1, 2))).sites == sites
    assert not caplog.records


def test_a_cut_table_is_refused(copy):
    write_metadata(copy, tiny_rows()[:-2])
    with pytest.raises(ReleaseError, match="^12 images have no row .*select it"):
        open_release(copy)
    write_metadata(copy, tiny_rows())
    (copy / "metadata.csv").write_bytes((copy / "metadata.csv").read_bytes()[:-3])
    with pytest.raises(ReleaseError, match=f"line {len(tiny_rows()) + 1}, field sirna_id: found"):
        open_release(copy)


def test_fingerprint_is_of_layout_and_rows(tiny, copy):
    opened = open_release(tiny)
    code = (
        "import sys; from tfds_builder.rxrx1.release.release import open_release;"
        "print(open_release(sys.argv[1]).fingerprint)"
    )
    fingerprints = {
        subprocess.run(
            [sys.executable, "-c", code, path],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            check=True,
            text=True,
        ).stdout.strip()
        for seed, path in (("1", str(tiny)), ("2", str(copy)))
    }
    assert fingerprints == {opened.fingerprint} and len(opened.fingerprint) == 64
    others = [dataclasses.replace(opened, layout="kaggle")]
    for field, value in opened.sites[-1]._asdict().items():
        changed = opened.sites[-1]._replace(**{field: value + type(value)(1)})
        others.append(dataclasses.replace(opened, sites=(*opened.sites[:-1], changed)))
    others.append(dataclasses.replace(opened, sites=opened.sites[:-1]))
    assert len({opened.fingerprint, *(other.fingerprint for other in others)}) == len(others) + 1


def test_a_release_can_be_pickled(tiny, tmp_path):
    for root in (tiny, zip_files(tmp_path / "a.zip", tiny, ["metadata.csv", "images"])):
        opened = open_release(root)
        again: Release = pickle.loads(pickle.dumps(opened))
        assert (again.layout, again.sites) == (opened.layout, opened.sites)
        name = again.image_names(again.sites[0])[5]
        row = next(row for row in tiny_rows() if row["site_id"] == again.sites[0].site_id)
        assert again.storage.read(name) == image_path(tiny, row, 6).read_bytes()

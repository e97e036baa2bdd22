"""release.py: which layout it is, which part of it, images without rows, and the fingerprint."""

import dataclasses
import hashlib
import os
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
)

from tfds_builder.rxrx1.release.metadata import ReleaseError, Site
from tfds_builder.rxrx1.release.release import open_release
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


def test_official(tiny):
    opened = open_release(tiny)
    assert opened.layout == "official" and opened.sites == expected(tiny_rows())
    rows = {row["site_id"]: row for row in tiny_rows()}
    for site in opened.sites:
        paths = [image_path(tiny, rows[site.site_id], channel) for channel in range(1, 7)]
        assert [tiny / name for name in opened.image_names(site)] == paths


def test_only_the_published_table_makes_it_the_release(tiny, monkeypatch):
    assert open_release(tiny).source == f"release in {tiny}"
    digest = hashlib.sha256((tiny / "metadata.csv").read_bytes()).hexdigest()
    monkeypatch.setattr("tfds_builder.rxrx1.release.release.OFFICIAL_METADATA", digest)
    assert open_release(tiny).source == "release"
    assert open_release(tiny, Selection(sites=(1,))).source == "release"


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
    with pytest.raises(ReleaseError, match="dataset: found 'val'"):
        open_release(copy)


@pytest.mark.parametrize(
    "there, says",
    [
        ("", "no metadata.csv and no images"),
        ("metadata.csv", "no images"),
        ("train.csv", "no images"),
        ("metadata.csv images/", "no images"),
        ("metadata.csv images/HUVEC-01/Plate1/", "no images"),
        ("images/HUVEC-01/Plate1/", "no metadata.csv"),
    ],
)
def test_nothing_to_detect(tmp_path, there, says):
    for name in there.split():
        path = tmp_path / name
        path.mkdir(parents=True) if name.endswith("/") else path.touch()
    with pytest.raises(ReleaseError, match=says):
        open_release(tmp_path)
    with pytest.raises(ReleaseError, match="there is no .*nowhere"):
        open_release(tmp_path / "nowhere")


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
    plates = [folder for folder in listed if "/" in folder]
    assert plates == ["train/HUVEC-01/Plate2", "test/HUVEC-02/Plate2"]


@pytest.mark.parametrize(
    "part, message",
    [
        ({"experiments": ("HUVEC-03",)}, "'HUVEC-03'.*HUVEC-01, HUVEC-02, U2OS-01"),
        ({"plates": (3,)}, "Selection.plates: 3 .*1, 2"),
        ({"wells": ("D4",)}, "Selection.wells: 'D4' .*B02, C03"),
        ({"wells": ("D05",), "experiments": ("HUVEC-01",), "plates": (1,)}, "no site .*D05"),
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
    assert "3 images" in caplog.text and str(plate / "D05_s1_w1.png") in caplog.text
    (plate.parent / "Plate5").mkdir()
    (plate.parent / "Plate5" / "B02_s1_w1.png").touch()
    with pytest.raises(ReleaseError, match="^4 images .*366"):
        open_release(copy)
    caplog.clear()
    assert open_release(copy, Selection(sites=(1, 2))).sites == sites
    assert not caplog.records


def test_a_cut_table_is_refused(copy):
    write_metadata(copy, tiny_rows()[:-2])
    with pytest.raises(ReleaseError, match="^12 images"):
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
    # in another process, whose hashes of texts differ, and of another folder
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(ROOT)}
    child = [sys.executable, "-c", code, str(copy)]
    again = subprocess.run(child, env=environment, capture_output=True, check=True, text=True)
    assert again.stdout.strip() == opened.fingerprint and len(opened.fingerprint) == 64
    last = opened.sites[-1]
    others = [dataclasses.replace(opened, sites=opened.sites[:-1])]
    for field, value in last._asdict().items():
        changed = last._replace(**{field: value + type(value)(1)})
        others.append(dataclasses.replace(opened, sites=(*opened.sites[:-1], changed)))
    others.append(dataclasses.replace(opened, layout="kaggle"))
    assert len({opened.fingerprint, *(other.fingerprint for other in others)}) == len(others) + 1

"""kaggle.py: both dialects of labels, the join with the official metadata."""

import csv
import gzip
import logging
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from table_edits import EDITS, check_sites, edited
from tiny_release import (
    KAGGLE_TABLES,
    later_label,
    tiny_rows,
    write_kaggle_tables,
    write_metadata,
    write_tiny_kaggle,
    write_tiny_release,
    zip_files,
)

from tfds_builder.rxrx1.images import View, check_images, read_image
from tfds_builder.rxrx1.release import kaggle
from tfds_builder.rxrx1.release.metadata import ReleaseError
from tfds_builder.rxrx1.release.release import open_release
from tfds_builder.rxrx1.release.selection import Selection
from tfds_builder.rxrx1.release.storage import Storage

VIEW = View(16, 16)


@pytest.fixture(scope="module")
def official(tmp_path_factory) -> Path:
    return write_tiny_release(tmp_path_factory.mktemp("official"))


def without_names(site, labelled=True):
    """What the integer tables alone say of an official site."""
    unknown = site.dataset == "test" and site.well_type == "treatment" and not labelled
    sirna = "EMPTY" if site.sirna == "EMPTY" else ""
    return site._replace(sirna=sirna, sirna_id=-1 if unknown else site.sirna_id)


def test_official_ids(official, tmp_path):
    opened, expected = open_release(write_tiny_kaggle(tmp_path, official)), open_release(official)
    assert opened.layout == "kaggle" and expected.layout == "official"
    assert opened.sites == tuple(without_names(s, labelled=False) for s in expected.sites)
    assert opened.fingerprint != expected.fingerprint
    assert opened.source == f"release in {tmp_path}"


@pytest.mark.parametrize("later", [False, True])
def test_official_metadata_beside_gives_names_and_labels(official, tmp_path, later):
    root = write_tiny_kaggle(tmp_path, official, later)
    zip_files(root / "rxrx1-metadata.zip", official, ["metadata.csv"])
    opened = open_release(root)
    assert opened.layout == "kaggle"
    assert opened.sites == open_release(official).sites


def test_wells_that_only_the_later_tables_have_are_labelled_too(official, tmp_path):
    root = write_tiny_kaggle(tmp_path, official, later=True)
    gone = ("HUVEC-01_2_D05", "HUVEC-02_1_D05")  # train, test
    write_metadata(root, [row for row in tiny_rows() if row["well_id"] not in gone])
    sites = open_release(root).sites
    expected = [
        site if site.well_id != gone[1] else without_names(site, labelled=False)
        for site in open_release(official).sites
    ]
    assert list(sites) == expected
    assert {s.sirna_id for s in sites if s.well_id == gone[0]} == {1}


def test_later_labels_alone_are_refused(official, tmp_path):
    root = write_tiny_kaggle(tmp_path, official, later=True)
    with pytest.raises(ReleaseError, match="permutation.*rxrx1-metadata.zip"):
        open_release(root)
    rows = tiny_rows()
    write_metadata(root, [row for row in rows if row["sirna_id"] not in ("0", "-1")])
    with pytest.raises(ReleaseError, match=f"field sirna: found '{later_label(0)}'"):
        open_release(root)


def change(path: Path, old: str, new: str, count: int = 1) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


@pytest.mark.parametrize(
    "name, old, new, says",
    [  # train.csv: line 2 is HUVEC-01_1_D04
        ("train.csv", "HUVEC-01_1_D04", "HUVEC-01_1_D06", "id_code: found"),
        ("train.csv", ",D04,", ",D4,", "well: found 'D4'"),
        ("train.csv", "D04,HUVEC-01", "D04,HELA-01", "experiment: found 'HELA-01'"),
        ("train.csv", "D04,0", "D04,1108", "sirna: found '1108', expected 0 to 1107"),
        ("train.csv", "D04,0", "D04,", "sirna: found '', expected 0 to 1107"),
        ("train.csv", "D04,0", "D04,sirna_12", "sirna: found 'sirna_12'"),
        ("train.csv", "D04,0", "D04,UNTREATED", "sirna: found 'UNTREATED'"),
        ("train_controls.csv", "negative_control", "treatment", "well_type: found 'treatment'"),
        ("test_controls.csv", "1138", "1109", "sirna: found '1109', expected 1138"),
    ],
)
def test_bad_rows(official, tmp_path, name, old, new, says):
    root = write_tiny_kaggle(tmp_path, official)
    change(root / name, old, new)
    with pytest.raises(ReleaseError, match=f"{name}, line 2, field {says}"):
        open_release(root)


@pytest.mark.parametrize("name", KAGGLE_TABLES)
def test_forms_of_the_same_tables(official, tmp_path, name):
    """What pandas and editors make of a table: floats, spaces, a byte order mark, gzip."""
    root = write_tiny_kaggle(tmp_path, official)
    expected = open_release(root).sites
    with (root / name).open() as file:
        rows = list(csv.reader(file))
    numbers = {rows[0].index(column) for column in ("plate", "sirna") if column in rows[0]}
    lines = [rows[0]] + [
        [f" {v}.0 " if i in numbers else f"{v} " for i, v in enumerate(row)] for row in rows[1:]
    ]
    text = "\r\n".join(map(",".join, lines))
    (root / name).write_bytes(gzip.compress(b"\xef\xbb\xbf" + text.encode()))
    assert open_release(root).sites == expected


def pack(folder: Path, archive: Path, *tops: str, prefix: str = "") -> None:
    """Moves what is below the folder, or these, into an archive."""
    tops = tops or tuple(sorted(path.name for path in folder.iterdir()))
    zip_files(archive, folder, tops, prefix)
    for top in tops:
        path = folder / top
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


TRAIN = ("HUVEC-01", "U2OS-01")
DOWNLOADS = {  # ways in which Kaggle's files lie after a download
    "archives of experiments": lambda r: [pack(r / d, r / f"{d}.zip") for d in ("train", "test")],
    "one of them extracted": lambda r: pack(r / "test", r / "test.zip"),
    "one experiment extracted": lambda r: pack(r / "train", r / "train.zip", "U2OS-01"),
    "archives of folders": lambda r: [pack(r, r / f"{d}.zip", d) for d in ("train", "test")],
    "in a folder of the archive": lambda r: pack(r, r / "train.zip", "train", prefix="data/"),
    "in capitals": lambda r: pack(r / "train", r / "TRAIN.ZIP"),
    "downloaded twice": lambda r: pack(r / "train", r / "train (1).zip"),
    "packed tables": lambda r: [
        pack(r / "train", r / "train.zip"), *(pack(r, r / f"{t}.zip", t) for t in KAGGLE_TABLES)],
    "all in one": lambda r: pack(r, r / "recursion.zip", "train", "test", *KAGGLE_TABLES),
    "two halves": lambda r: [
        pack(r / "train", r / f"{e}.zip", e, prefix="train/") for e in TRAIN],
}  # fmt: skip


@pytest.mark.parametrize("way", DOWNLOADS)
def test_downloads_as_they_come(official, tmp_path, way):
    root = write_tiny_kaggle(tmp_path, official)
    DOWNLOADS[way](root)
    opened = open_release(root)
    expected = open_release(official)
    assert opened.sites == tuple(without_names(s, labelled=False) for s in expected.sites)
    check_images(opened, VIEW)
    for ours, theirs in zip(opened.sites[::9], expected.sites[::9], strict=True):
        assert (read_image(opened, ours, VIEW) == read_image(expected, theirs, VIEW)).all()


def test_a_well_is_listed_once(official, tmp_path):
    root = write_tiny_kaggle(tmp_path, official)
    with (root / "test_controls.csv").open("a") as file:
        file.write("HUVEC-01_1_D04,HUVEC-01,1,D04,1108,positive_control\n")
    with pytest.raises(ReleaseError, match=r"id_code: 'HUVEC-01_1_D04'.*train\.csv, line 2"):
        open_release(root)


D04, D05 = "HUVEC-01_1_D04", "HUVEC-01_2_D05"


@pytest.mark.parametrize(
    "later, well, edit, old, new, says",
    [  # edit: of the well's rows in metadata.csv, None removes them; old, new: in train.csv
        (False, D04, {"well_type": "positive_control", "sirna": "s5", "sirna_id": "1110"}, "", "",
         "line 2, well_type.*metadata.csv, line"),
        (False, D04, {"sirna": "s7", "sirna_id": "7"}, "", "",
         f"line 2, sirna .*0.* {D04}.*metadata.csv, line"),
        (False, D04, {"dataset": "test"}, "", "", "line 2, the file .*'train'.*metadata.csv, line"),
        # one label for two ids, one id with two labels
        (True, D04, {}, f",{later_label(1)}\n", f",{later_label(0)}\n",
         f"'{later_label(0)}' is id 1 .* 0 at"),
        (True, D04, {}, f",{later_label(1107)}\n", f",{later_label(500)}\n",
         f"'{later_label(1107)}' is id 1107 .*'{later_label(500)}'"),
        (True, D05, None, f"2,D05,{later_label(1)}", f"2,D05,{later_label(1108)}",
         "id 1108 .* treatment"),
    ],
)  # fmt: skip
def test_tables_against_the_official_metadata(
    official, tmp_path, later, well, edit, old, new, says
):
    root = write_tiny_kaggle(tmp_path, official, later)
    rows = [row | (edit or {}) if row["well_id"] == well else row for row in tiny_rows()]
    write_metadata(root, [row for row in rows if edit is not None or row["well_id"] != well])
    change(root / "train.csv", old, new)
    with pytest.raises(ReleaseError, match=says):
        open_release(root)


def test_one_half_of_the_data(official, tmp_path):
    root = write_tiny_kaggle(tmp_path, official)
    shutil.rmtree(root / "test")
    with pytest.raises(ReleaseError, match=r"test\.csv, line 2: well HUVEC-02_1_D04"):
        open_release(root)
    train = [s for s in open_release(official).sites if s.dataset == "train"]
    part = open_release(root, Selection(experiments=("HUVEC-01", "U2OS-01")))
    (root / "test.csv").unlink()
    with pytest.raises(ReleaseError, match=r"no test\.csv"):
        open_release(root)
    (root / "test_controls.csv").unlink()
    assert open_release(root).sites == part.sites == tuple(map(without_names, train))


def test_which_sites_exist_is_seen_from_the_images(official, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    root = write_tiny_kaggle(tmp_path, official)
    folder = root / "train" / "HUVEC-01" / "Plate1"
    for channel in range(1, 6):
        (folder / f"D04_s2_w{channel}.png").unlink()
    opened = open_release(root)
    assert "1 of 31 wells" in caplog.text
    with pytest.raises(ReleaseError, match="^5 image file") as error:  # an incomplete site
        check_images(opened, VIEW)
    assert "train.csv, line 2, site HUVEC-01_1_D04_2: " in str(error.value)
    (folder / "D04_s2_w6.png").unlink()
    with pytest.raises(ReleaseError, match=r"train.csv, line 2: well HUVEC-01_1_D04"):
        open_release(root)
    assert len(open_release(root, Selection(wells=("D05",))).sites) == 10


def test_images_without_a_row(official, tmp_path, caplog):
    root = write_tiny_kaggle(tmp_path, official)
    plate = root / "train" / "HUVEC-01" / "Plate1"
    shutil.copy(plate / "D04_s2_w1.png", plate / "D05_s1_w1.png")
    shutil.copy(plate / "D04_s2_w1.png", plate / "D04_s2.png")
    sites = open_release(root).sites
    assert "2 images" in caplog.text and "D05_s1_w1.png" in caplog.text
    shutil.copytree(root / "train" / "U2OS-01", root / "test" / "U2OS-01")  # in the wrong half
    with pytest.raises(ReleaseError, match="^[0-9]+ images"):
        open_release(root)
    shutil.rmtree(root / "test" / "U2OS-01")
    assert open_release(root).sites == sites


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from(KAGGLE_TABLES), st.booleans(), st.booleans(), EDITS)
def test_any_edit_gives_valid_wells_or_a_release_error(tmp_path, name, later, beside, edits):
    write_kaggle_tables(tmp_path, tiny_rows(), later)
    (tmp_path / "metadata.csv").unlink(missing_ok=True)
    if beside:
        write_metadata(tmp_path, tiny_rows())
    path = tmp_path / name
    data = path.read_bytes()
    path.write_bytes(edited(data, [(at % len(data), length, new) for at, length, new in edits]))
    try:
        wells = kaggle.read_wells(Storage(tmp_path))
    except ReleaseError as error:
        assert str(tmp_path) in str(error) and len(str(error)) < 2000
    else:
        check_sites([well.site for well in wells.values()])

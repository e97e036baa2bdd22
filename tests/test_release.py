"""release.py against hand-made releases, Pillow, and the real metadata where it is at hand."""

import csv
import gzip
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_release import (
    COLUMNS,
    UNLABELLED,
    image_path,
    read_pngs,
    tiny_rows,
    write_metadata,
    write_tiny_release,
)

from tfds_builder.rxrx1 import images, release
from tfds_builder.rxrx1.release import ReleaseError

SIZE = 16
REAL = Path(__file__).parents[2] / "shared" / "realdata"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return write_tiny_release(tmp_path_factory.mktemp("release"), SIZE)


def test_reads_every_row_sorted(tiny):
    sites = release.read_release(tiny)
    rows = sorted(tiny_rows(), key=lambda r: (r["experiment"], r["plate"], r["well"], r["site"]))
    assert [tuple(map(str, site)) for site in sites] == [tuple(row.values()) for row in rows]
    assert release.COLUMNS == tuple(COLUMNS) == release.Site._fields
    last = sites[-1]
    assert (last.well, last.row, last.column) == ("O23", 15, 23)
    unlabelled = [site for site in sites if site.sirna_id == -1]
    assert {(s.experiment, s.plate, s.well) for s in unlabelled} == {UNLABELLED}
    assert {s.sirna for s in unlabelled} == {""}
    assert {s.sirna for s in sites if s.well_type == "negative_control"} == {"EMPTY"}


def test_subfolder_column_order_and_further_columns(tmp_path):
    rows = tiny_rows()
    (tmp_path / "rxrx1").mkdir()
    with (tmp_path / "rxrx1" / "metadata.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["source", *reversed(COLUMNS)])
        writer.writeheader()
        writer.writerows({"source": "x", **row} for row in reversed(rows))
    assert release.find_release(tmp_path) == tmp_path / "rxrx1"
    assert len(release.read_release(tmp_path)) == len(rows)
    with pytest.raises(ReleaseError, match=r"no metadata\.csv in .*images"):
        release.find_release(tmp_path / "elsewhere")


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
    (2, {"plate": "1.0"}, "plate", "1.0"),
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
    (6, {"sirna_id": "-1"}, "sirna", "s20000"),
    (6, {"sirna": "EMPTY"}, "sirna", "EMPTY"),
    (7, {"sirna_id": "5", "sirna": "s20005"}, "sirna", "s20005"),  # the twin site disagrees
    (7, {"dataset": "train"}, "dataset", "train"),
]


@pytest.mark.parametrize("line, change, field, found", BAD_ROWS)
def test_bad_row_names_line_field_and_value(tmp_path, line, change, field, found):
    rows = tiny_rows()
    rows[line - 2] |= change
    write_metadata(tmp_path, rows)
    with pytest.raises(ReleaseError) as error:
        release.read_release(tmp_path)
    assert f"metadata.csv, line {line}, field {field}: found {found!r}" in str(error.value)


def test_one_sirna_has_one_id_and_one_id_one_sirna(tmp_path):
    rows = tiny_rows()
    wells = {row["well_id"] for row in rows if row["sirna_id"] == "1"}
    victim = sorted(wells)[-1]
    line = 2 + next(i for i, row in enumerate(rows) if row["well_id"] == victim)
    for change, field in (({"sirna_id": "2"}, "sirna_id"), ({"sirna": "s1"}, "sirna")):
        changed = [row | change if row["well_id"] == victim else row for row in rows]
        write_metadata(tmp_path, changed)
        with pytest.raises(ReleaseError, match=rf"line {line}, field {field}: .* line \d+ says"):
            release.read_release(tmp_path)


def test_duplicated_site_names_both_lines(tmp_path):
    rows = tiny_rows()
    write_metadata(tmp_path, [*rows, rows[3]])
    with pytest.raises(ReleaseError, match=rf"line {len(rows) + 2}, field site_id: .* line 5"):
        release.read_release(tmp_path)


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda text: text.replace("well_type", "welltype", 1), "line 1: column 'well_type' occ"),
        (lambda text: text.replace("HUVEC-02_1_B02_1,", "", 1), "line 2: 10 fields, expected 11"),
        (lambda text: text.splitlines()[0] + "\n", "has no rows"),
        (lambda text: "", "line 1: column 'site_id'"),
        (lambda text: text.replace("EMPTY", '"EMPTY', 1), "unexpected end of data"),
    ],
)
def test_malformed_table(tmp_path, edit, message):
    write_metadata(tmp_path, tiny_rows())
    path = tmp_path / "metadata.csv"
    path.write_text(edit(path.read_text()))
    with pytest.raises(ReleaseError, match=message):
        release.read_release(tmp_path)


def test_images_equal_pillow(tiny):
    sites = release.read_release(tiny)
    images.check_images(tiny, sites, SIZE, progress=False)
    rows = {row["site_id"]: row for row in tiny_rows()}
    for site in sites[::7]:
        paths = [image_path(tiny, rows[site.site_id], channel) for channel in range(1, 7)]
        assert images.image_paths(tiny, site) == paths
        image = images.read_image(tiny, site, SIZE)
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, read_pngs(tiny, rows[site.site_id]))


def broken(path: Path, kind: str) -> None:
    """Replaces a PNG by one with a fault of the given kind."""
    data = path.read_bytes()
    pixels = np.asarray(Image.open(path))
    if kind == "missing":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("not found" * 20)
    elif kind == "cut":
        path.write_bytes(data[:-30])
    elif kind == "end lost":
        path.write_bytes(data[:-12])
    elif kind == "middle lost":  # the tail is right
        path.write_bytes(data[:50] + data[-16:])
    elif kind == "trailing":
        path.write_bytes(data + b"\n")
    elif kind == "length":  # of the pixels' chunk: far beyond the end of the file
        at = data.index(b"IDAT") - 3
        path.write_bytes(data[:at] + b"\x7f" + data[at + 1 :])
    elif kind == "no pixels":
        path.write_bytes(data[: data.index(b"IDAT") - 4] + data[-12:])
    elif kind == "16 bit":
        Image.fromarray(pixels.astype(np.uint16)).save(path)
    elif kind == "rgb":
        Image.fromarray(np.stack([pixels] * 3, axis=-1)).save(path)
    elif kind == "size":
        Image.fromarray(pixels[:, :-1]).save(path)
    elif kind == "pixels":  # header and tail are right, the compressed data is not
        at = data.index(b"IDAT") + 30
        path.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
    elif kind == "short":  # every chunk is well formed, but half of the rows are not there
        start = data.index(b"IDAT")
        length = int.from_bytes(data[start - 4 : start], "big")
        raw = zlib.decompress(data[start + 4 : start + 4 + length])
        chunk = b"IDAT" + zlib.compress(raw[: len(raw) // 2])
        path.write_bytes(
            data[: start - 4]
            + (len(chunk) - 4).to_bytes(4, "big")
            + chunk
            + zlib.crc32(chunk).to_bytes(4, "big")
            + data[start + 8 + length :]
        )


KINDS = {
    "missing": "is missing",
    "empty": "is not a PNG file",
    "text": "is not a PNG file",
    "cut": "is cut off",
    "end lost": "is cut off",
    "middle lost": "is cut off",
    "trailing": "goes on after its IEND chunk",
    "length": "is cut off .within the chunk at byte 33",
    "no pixels": "holds no pixels",
    "pixels": "is damaged .wrong checksum of the chunk at byte 33",
    "16 bit": "has bit depth 16",
    "rgb": "PNG colour type 2",
    "size": "is 15x16 pixels, expected 16x16",
}


@pytest.mark.parametrize("kind", [*KINDS, "short"])
def test_broken_image_names_line_site_and_path(tmp_path, kind):
    rows = tiny_rows()
    row = rows[4]
    for channel in range(1, 7):
        path = image_path(tmp_path, row, channel)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.arange(256, dtype=np.uint8).reshape(SIZE, SIZE)).save(path)
    write_metadata(tmp_path, rows)  # sites of one row only, on line 6
    sites = [site for site in release.read_release(tmp_path) if site.site_id == row["site_id"]]
    images.check_images(tmp_path, sites, SIZE, progress=False)

    path = image_path(tmp_path, row, 5)
    broken(path, kind)
    if kind in KINDS:
        with pytest.raises(ReleaseError, match=KINDS[kind]) as error:
            images.check_images(tmp_path, sites, SIZE, progress=False)
        assert f"line 6, site {row['site_id']}: {path} " in str(error.value)
    if kind == "trailing":  # harmless to a decoder
        return
    with pytest.raises(ReleaseError) as error:  # decoding finds the others as well
        images.read_image(tmp_path, sites[0], SIZE)
    assert row["site_id"] in str(error.value) and str(path) in str(error.value)


def test_any_flipped_bit_and_any_cut_is_found(tmp_path):
    row = tiny_rows()[4]
    rng = np.random.default_rng(1)
    for channel in range(1, 7):
        path = image_path(tmp_path, row, channel)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (SIZE, SIZE), np.uint8)).save(path)
    write_metadata(tmp_path, [row])
    sites = release.read_release(tmp_path)
    data = path.read_bytes()
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        for bad in (bytes(flipped), data[:position]):
            path.write_bytes(bad)
            with pytest.raises(ReleaseError, match="^1 image file"):
                images.check_images(tmp_path, sites, SIZE, progress=False)


def test_files_are_read_in_blocks(tmp_path, monkeypatch):
    """Of a chunk that is longer than a block, too, every byte counts."""
    monkeypatch.setattr(images, "_BLOCK", 64)
    path = tmp_path / "a.png"
    pixels = np.random.default_rng(2).integers(0, 256, (SIZE, SIZE), np.uint8)
    Image.fromarray(pixels).save(path)
    data = bytearray(path.read_bytes())
    assert len(data) > 3 * 64 and images._fault(path, SIZE) == ""
    data[-20] ^= 1
    path.write_bytes(data)
    assert "wrong checksum" in images._fault(path, SIZE)


def test_many_faults_are_counted(tmp_path):
    write_metadata(tmp_path, tiny_rows())
    sites = release.read_release(tmp_path)
    with pytest.raises(ReleaseError, match="^366 image file") as error:
        images.check_images(tmp_path, sites, SIZE, progress=False)
    assert str(error.value).count("is missing") == 10


@pytest.mark.skipif(not REAL.exists(), reason="the real metadata is not at hand")
def test_real_metadata(tmp_path):
    with gzip.open(REAL / "metadata_reconstructed.csv.gz", "rt", newline="") as file:
        rows = [{column: row[column] for column in COLUMNS} for row in csv.DictReader(file)]
    write_metadata(tmp_path, rows)
    sites = release.read_release(tmp_path)
    assert len(sites) == 125_510
    assert Counter(site.dataset for site in sites) == {"train": 81_224, "test": 44_286}
    treatments = Counter(site.dataset for site in sites if site.well_type == "treatment")
    assert treatments == {"train": 73_030, "test": 39_794}
    experiments = {site.experiment: site.cell_type for site in sites}
    assert Counter(experiments.values()) == {"HUVEC": 24, "RPE": 11, "HEPG2": 11, "U2OS": 5}
    assert sum(site.sirna_id == -1 for site in sites) == 2 * 11_044
    assert len({site.sirna_id for site in sites}) == 1139 + 1
    assert all(site.row in range(2, 16) and site.column in range(2, 24) for site in sites)


@pytest.mark.skipif(not REAL.exists(), reason="the real images are not at hand")
def test_real_images(tmp_path):
    (tmp_path / "images").symlink_to(REAL / "images")
    wells = [(e, p, f"{e}_{p}_B02") for e in ("HUVEC-01", "RPE-01", "U2OS-01") for p in (1, 2)]
    rows = [
        (f"{well}_1", well, e[:-3], "train", e, p, "B02", 1, "negative_control", "EMPTY", 1138)
        for e, p, well in wells
    ]
    write_metadata(tmp_path, [dict(zip(COLUMNS, map(str, row), strict=True)) for row in rows])
    sites = release.read_release(tmp_path)
    images.check_images(tmp_path, sites, 512, progress=False)
    with pytest.raises(ReleaseError, match="is 512x512 pixels, expected 256x256"):
        images.check_images(tmp_path, sites, 256, progress=False)
    image = images.read_image(tmp_path, sites[0], 512)
    folder = REAL / "images" / "HUVEC-01" / "Plate1"
    expected = [np.asarray(Image.open(folder / f"B02_s1_w{c}.png")) for c in range(1, 7)]
    np.testing.assert_array_equal(image, expected)

"""Records: values against Pillow, the checks when a dataset is opened, every damage by name."""

import hashlib
import json
import os
import pickle
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from dataset_edits import cut, edit_bytes, edit_column, edit_json, edit_table, flip
from tiny_release import read_pngs, tiny_rows

from rxrx1_jax.config import ConfigError
from rxrx1_jax.data.records import TABLE, DatasetError, Records, find_dataset, open_images

pytest_plugins = ["dataset_fixture"]
SHARD = "rxrx1-HUVEC-02.tfrecord-00000-of-00001"


def refused(path) -> str:
    with pytest.raises(DatasetError) as error:
        Records(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_images_and_fields_equal_the_release(tiny):
    records = Records(tiny.dataset)
    assert len(records) == len(records.sites) == len(tiny.rows) == 61
    assert records.image_shape == (6, 16, 16)
    assert sorted(records.sites["site_id"].tolist()) == sorted(tiny.rows)
    for i, site in enumerate(records.sites):
        row = tiny.rows[site["site_id"]]
        assert {name: str(site[name]) for name in row} == row
        assert (site["row"], site["column"]) == (ord(row["well"][0]) - 64, int(row["well"][1:]))
        image = records[i]
        assert image.dtype == np.uint8 and image.flags.writeable
        pixels = read_pngs(tiny.release, row)
        np.testing.assert_array_equal(image, pixels)
        wide = pixels.astype(int)
        assert site["pixel_sum"].tolist() == wide.sum((1, 2)).tolist()
        assert site["pixel_sum2"].tolist() == (wide**2).sum((1, 2)).tolist()
        assert site["adler32"] == zlib_checksum(pixels)
        assert site["release_row"] == [r["site_id"] for r in tiny_rows()].index(site["site_id"])
    assert records.sites["sirna_id"].min() == -1  # the unlabelled treatment
    assert records.sites["control_mean"].shape == (61, 6)
    assert records.sites.dtype["control_std"] == np.dtype(("f4", 6))
    assert records.metadata["channels"][5] == "Golgi"
    version = tiny.dataset.name
    source = f"release in {tiny.release.parent}"
    assert records.about == {"name": "rxrx1/tiny", "version": version, "source": source}


def zlib_checksum(planes) -> int:
    """Adler-32 by its definition (RFC 1950, section 8.2)."""
    a, b = 1, 0
    for byte in planes.tobytes():
        a = (a + byte) % 65521
        b = (b + a) % 65521
    return b << 16 | a


def test_order_is_that_of_the_splits_then_of_the_file(tiny):
    records = Records(tiny.dataset)
    info = json.loads((tiny.dataset / "dataset_info.json").read_text())
    names = [split["name"] for split in info["splits"]]
    place = [names.index(name) for name in records.sites["experiment"].tolist()]
    assert place == sorted(place)
    data, ids = (tiny.dataset / SHARD).read_bytes(), []
    inside = records.sites["site_id"][records.sites["experiment"] == "HUVEC-02"].tolist()
    while data:  # the frames of TFRecord, by an independent walk
        size = 16 + int.from_bytes(data[:8], "little")
        ids += [site_id for site_id in inside if site_id.encode() in data[:size]]
        data = data[size:]
    assert ids == inside


def test_any_sequence_protocol(tiny):
    records = Records(tiny.dataset)
    np.testing.assert_array_equal(records[-1], records[60])
    with pytest.raises(IndexError):
        records[61]
    again = pickle.loads(pickle.dumps(records))
    np.testing.assert_array_equal(again[7], records[7])
    records[7][:] = 0  # a fresh array each time
    np.testing.assert_array_equal(again[7], records[7])


def test_reads_from_many_threads(tiny):
    records = Records(tiny.dataset)
    order = np.random.default_rng(0).integers(0, 61, 400).tolist()
    expected = [records[i].copy() for i in range(61)]
    with ThreadPoolExecutor(8) as pool:
        for i, image in zip(order, pool.map(records.__getitem__, order), strict=True):
            np.testing.assert_array_equal(image, expected[i])


def test_a_read_only_folder(copy):
    """Nothing is written, so a mount without that right will do (root may write all the same)."""
    before = {path.name: path.stat().st_mtime_ns for path in copy.iterdir()}
    for path in (*copy.iterdir(), copy):
        path.chmod(path.stat().st_mode & ~0o222)
    assert Records(copy)[0].shape == (6, 16, 16)
    assert {path.name: path.stat().st_mtime_ns for path in copy.iterdir()} == before
    copy.chmod(0o755)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (SHARD, None), (SHARD, cut(1)), (SHARD, bytearray.clear), (SHARD, lambda d: d.append(0)),
        (TABLE, None), (TABLE, cut(1)), (TABLE, bytearray.clear), (TABLE, flip(-500)),
        ("dataset_info.json", None), ("metadata.json", None),
    ],
)  # fmt: skip
def test_a_changed_truncated_or_missing_file(copy, name, change):
    edit_bytes(copy / name, change) if change else (copy / name).unlink()
    said = refused(copy)
    assert str(copy / name) in said and ("restore" in said or "again" in said)


@pytest.mark.parametrize("name", ["dataset_info.json", "metadata.json"])
@pytest.mark.parametrize("content", ["", "[]", "{}", "null", '{"table": 1}', "{", "[" * 10**5])
def test_descriptions_that_are_none(copy, name, content):
    (copy / name).write_text(content)
    said = refused(copy)
    assert name in said or "table" in said


@pytest.mark.parametrize("name", [f"../{SHARD}", "/etc/hostname", "..", "a/b"])
def test_files_outside_of_the_dataset_are_not_read(copy, name):
    shutil.copy(copy / SHARD, copy.parent / SHARD)
    edit_json(copy / "metadata.json", lambda metadata: metadata["table"].update(files=[[name, 1]]))
    assert name in refused(copy)


def put(name, value):
    return edit_column(name, lambda values: [*values[:2], value, *values[3:]])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (put("shard", 3), "shard"), (put("shard", -1), "shard"), (put("offset", -1), "offset"),
        (put("offset", 2**40), "offset"), (put("size", 0), "offset"),
        (put("sirna_id", 77), "sirna_id"), (put("sirna_id", None), "missing"),
        (put("well_type", "positive_control"), "well_type"),
        (put("site_id", "HUVEC-01_2_D04_1"), "site_id"), (put("site", 9), "site of"),
        (put("experiment", "HUVEC-09"), "well_id"), (put("plate", 4), "well_id"),
        (put("cell_type", "RPE"), "cell_type"),
        (put("control_std", [np.nan] * 6), "control_std"),
        (lambda table: table.drop_columns(["adler32"]), "adler32"),
        (lambda table: table.slice(0, 50), "U2OS-01"), (put("shard", 1), "HUVEC-01"),
        (lambda table: table.set_column(5, "plate", [["x"] * 61]), "'x'"),
    ],
)  # fmt: skip
def test_a_table_edited_under_its_own_digest(copy, change, named):
    edit_table(copy, lambda table: table)
    assert len(Records(copy)) == 61
    edit_table(copy, change)
    assert named in refused(copy)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda splits: splits.pop(), "U2OS-01"),
        (lambda splits: splits[0].pop("shardLengths"), "shardLengths"),
        (lambda splits: splits[1].update(shardLengths=["3"]), "HUVEC-02"),
        (lambda splits: splits[1].update(shardLengths=["11", "11"]), "HUVEC-02"),
        (lambda splits: splits[2].update(shardLengths=[]), "U2OS-01"),
        (lambda splits: splits[0].update(shardLengths=["x"]), "'x'"),
        (lambda splits: splits[0].update(name=[]), "splits"),
    ],
)  # fmt: skip
def test_splits_that_are_not_those_of_the_table(copy, change, named):
    edit_json(copy / "dataset_info.json", lambda info: change(info["splits"]))
    said = refused(copy)
    assert "dataset_info.json" in said and named in said


def test_no_file_stays_open(copy):
    """Of RxRx1's 510 files none may stay open: a process may have 256, and open it twice."""
    before = os.listdir("/proc/self/fd")
    twice = [Records(copy), Records(copy)]
    assert all(len(records[i]) == 6 for records in twice for i in range(61))
    assert len(os.listdir("/proc/self/fd")) == len(before)
    (copy / SHARD).unlink()
    with pytest.raises(DatasetError, match=SHARD):
        [twice[0][i] for i in range(61)]


def test_every_bit_of_the_table_is_checked(copy):
    """All 61 rows are as the builder wrote them, or the dataset is refused."""
    entry = json.loads((copy / "metadata.json").read_text())["table"]
    assert hashlib.sha256((copy / TABLE).read_bytes()).hexdigest() == entry["sha256"]
    assert all((copy / name).stat().st_size == size for name, size in entry["files"])
    data = (copy / TABLE).read_bytes()
    for bit in np.random.default_rng(0).integers(0, 8 * len(data), 100).tolist():
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        (copy / TABLE).write_bytes(changed)
        assert TABLE in refused(copy)


def test_a_dataset_without_a_table_names_the_command(copy):
    edit_json(copy / "metadata.json", lambda metadata: metadata.pop("table"))
    assert f"python -m tfds_builder.rxrx1 table {copy}" in refused(copy)


def test_a_dataset_of_another_format(copy):
    edit_json(copy / "dataset_info.json", lambda info: info.update(fileFormat="array_record"))
    assert "array_record" in refused(copy)


def test_file_cut_while_in_use(copy):
    records = Records(copy)
    last = int(np.flatnonzero(records.sites["experiment"] == "HUVEC-02")[-1])
    with open(copy / SHARD, "r+b") as file:
        file.truncate(100)
    with pytest.raises(DatasetError, match=f"{SHARD}.*{records.sites['site_id'][last]}"):
        records[last]


def test_damaged_image(copy):
    sites = Records(copy).sites
    i = int(np.flatnonzero(sites["experiment"] == "HUVEC-02")[2])
    edit_bytes(copy / SHARD, flip(int(sites["offset"][i]) + 40))
    records = Records(copy)
    with pytest.raises(DatasetError, match=f"{SHARD}.*{sites['site_id'][i]}.*damaged"):
        records[i]
    assert records[i + 1].shape == (6, 16, 16)


def test_find_dataset(copy):
    data_dir = copy.parents[2]
    assert find_dataset(data_dir, "rxrx1/tiny") == copy
    for version in ("9.10.0", "9.9.0", "10.0.0", "incomplete.ABC_11.0.0"):
        (copy.parent / version).mkdir()
    for version in ("9.10.0", "9.9.0", "incomplete.ABC_11.0.0"):
        shutil.copy(copy / "dataset_info.json", copy.parent / version)
    assert find_dataset(data_dir, "rxrx1/tiny").name == "9.10.0"  # numbers, and finished ones
    assert find_dataset(str(data_dir), "rxrx1/tiny:9.9.0").name == "9.9.0"
    for name in ("rxrx1/native", "rxrx1/tiny:10.0.0", "rxrx1/tiny:7.0.0"):
        config = name.split("/")[1].split(":")[0]
        with pytest.raises(DatasetError) as error:
            find_dataset(data_dir, name)
        assert {f"--config={config}", "rxrx1/tiny:9.9.0,"} <= set(str(error.value).split(" "))


@pytest.mark.parametrize(
    ("data_dir", "name", "said"),
    [
        ("{root}/rxrx1", "rxrx1/tiny", "data.dir={root}"),
        ("{copy}", "rxrx1/tiny", "data.dir={root}"),
        ("{copy}/..", "rxrx1/tiny", "data.dir={root}"),
        ("{root}/..", "rxrx1/tiny", "data.dir={root}"),
        ("{root}/nowhere", "rxrx1/tiny", "data.dir={root}"),
        ("/nowhere/at/all/there", "rxrx1/tiny", "no folder"),
        ("{root}", "rxrx1/tyni", "data.name=rxrx1/tiny"),
        ("{root}", "tiny", "data.name=rxrx1/tiny"),
        ("gs://b/d", "rxrx1/tiny", "mount"),
    ],
)  # fmt: skip
def test_the_likely_mistake_is_named_first(copy, monkeypatch, data_dir, name, said):
    root = copy.parents[2] / "up" / "data[1]"
    root.mkdir(parents=True)
    copy.parents[1].rename(root / "rxrx1")
    monkeypatch.chdir(root)
    names = {"root": root, "copy": root / "rxrx1" / "tiny" / copy.name}
    with pytest.raises(ValueError, match=re.escape(said.format(**names))) as error:
        find_dataset(data_dir.format(**names), name)
    likely, build, _ = str(error.value).partition("tfds_builder")
    assert said.format(**names) in likely
    assert not (build and "data.dir" in said)
    assert len(Records(find_dataset(root, "rxrx1/tiny"))[0]) == 6


@pytest.mark.parametrize(
    "name, error, said",
    [
        ("rxrx1_jax.data.samplers.shuffled()", DatasetError, "function"),
        ("rxrx1_jax.data.smoke.nothing()", ConfigError, "nothing"),
        ("rxrx1_jax.data.smoke.screen(pixels=3)", ConfigError, "size"),
    ],
)
def test_a_name_with_brackets_gives_images_in_memory(name, error, said):
    images = open_images("nowhere", "rxrx1_jax.data.smoke.screen(size=16):1.0.0")
    assert images.image_shape == (6, 16, 16) and len(images) == 252
    with pytest.raises(error, match=said):
        open_images("nowhere", name)

"""Records: values against Pillow, the index and its cache, and every kind of damage by name."""

import io
import json
import mmap
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tiny_release import read_pngs

from rxrx1_jax.data import records as records_lib
from rxrx1_jax.data.records import INDEX_NAME, DatasetError, Records, find_dataset

pytest_plugins = ["dataset_fixture"]
SHARD = "rxrx1-HUVEC-02.tfrecord-00000-of-00001"


@pytest.fixture
def copy(tiny, tmp_path):
    """A copy of the dataset to damage, without an index."""
    path = tmp_path / "rxrx1" / "tiny" / "1.0.0"
    shutil.copytree(tiny.dataset, path, ignore=shutil.ignore_patterns(INDEX_NAME))
    return path


def raw_records(path) -> list[bytes]:
    """Whole TFRecord frames, by an independent walk."""
    data, frames = path.read_bytes(), []
    while data:
        size = 16 + int.from_bytes(data[:8], "little")
        frames.append(data[:size])
        data = data[size:]
    return frames


def edit_json(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


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
        np.testing.assert_array_equal(image, read_pngs(tiny.release, row))
    assert records.sites["sirna_id"].min() == -1  # the unlabelled treatment
    assert records.sites["control_mean"].shape == (61, 6)
    assert records.sites.dtype["control_std"] == np.dtype(("f4", 6))
    assert records.metadata["channels"][5] == "Golgi"


def test_order_is_that_of_the_splits_then_of_the_file(tiny):
    records = Records(tiny.dataset)
    names = [
        split["name"]
        for split in json.loads((tiny.dataset / "dataset_info.json").read_text())["splits"]
    ]
    place = [names.index(name) for name in records.sites["experiment"].tolist()]
    assert place == sorted(place)
    frames = raw_records(tiny.dataset / SHARD)
    inside = records.sites["site_id"][records.sites["experiment"] == "HUVEC-02"]
    assert all(s.encode() in frame for s, frame in zip(inside.tolist(), frames, strict=True))


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


def test_index_is_kept_and_dropped_when_a_file_changes(copy, monkeypatch):
    first = Records(copy)
    assert (copy / INDEX_NAME).is_file()
    assert not list(copy.glob("*.tmp"))
    with monkeypatch.context() as patch:
        patch.setattr(records_lib, "_build_index", None)  # a call would fail
        cached = Records(copy)
    np.testing.assert_array_equal(cached.sites, first.sites)
    np.testing.assert_array_equal(cached[9], first[9])

    rows = np.flatnonzero(first.sites["experiment"] == "HUVEC-02")
    last = first[rows[-1]]
    frames = raw_records(copy / SHARD)
    (copy / SHARD).write_bytes(b"".join(reversed(frames)))
    changed = Records(copy)
    np.testing.assert_array_equal(changed.sites[rows], first.sites[rows[::-1]])
    np.testing.assert_array_equal(changed[rows[0]], last)


@pytest.mark.parametrize("content", [b"", b"not an index", b"PK\x03\x04"])
def test_a_damaged_index_is_made_anew(copy, content):
    (copy / INDEX_NAME).write_bytes(content)
    assert len(Records(copy)) == 61
    with np.load(copy / INDEX_NAME) as stored:  # also: nothing in it needs pickle
        assert len(stored["sites"]) == 61


def test_a_read_only_folder_goes_without_a_kept_index(copy, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(np, "savez_compressed", refuse)
    records = Records(copy)
    assert len(records) == 61 and records[0].shape == (6, 16, 16)
    assert not list(copy.glob(f"{INDEX_NAME}*"))


def test_indexing_asks_for_no_read_ahead(copy, monkeypatch):
    advice = []

    class Spy(mmap.mmap):
        def madvise(self, option, *rest):
            advice.append(option)
            return super().madvise(option, *rest)

    monkeypatch.setattr(mmap, "mmap", Spy)
    assert len(Records(copy)) == 61
    assert advice == [mmap.MADV_RANDOM] * 3  # one file an experiment
    monkeypatch.delattr(mmap, "MADV_RANDOM")  # as where there is none
    (copy / INDEX_NAME).unlink()
    assert len(Records(copy)) == 61 and len(advice) == 3


@pytest.mark.parametrize("terminal", [True, False])
def test_indexing_shows_progress_on_a_terminal_only(copy, monkeypatch, terminal):
    stderr = io.StringIO()
    monkeypatch.setattr(stderr, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(sys, "stderr", stderr)
    Records(copy)
    assert ("Indexing" in stderr.getvalue() and "3/3" in stderr.getvalue()) == terminal
    assert bool(stderr.getvalue()) == terminal


def test_several_shards(copy):
    whole = Records(copy)
    frames = raw_records(copy / SHARD)
    (copy / SHARD).unlink()
    parts = [frames[:3], [], frames[3:]]
    for k, part in enumerate(parts):
        (copy / f"rxrx1-HUVEC-02.tfrecord-{k:05d}-of-00003").write_bytes(b"".join(part))

    def edit(info):
        split = next(s for s in info["splits"] if s["name"] == "HUVEC-02")
        split["shardLengths"] = [str(len(part)) for part in parts]

    edit_json(copy / "dataset_info.json", edit)
    records = Records(copy)
    np.testing.assert_array_equal(records.sites, whole.sites)
    for i in range(61):
        np.testing.assert_array_equal(records[i], whole[i])


def test_missing_shard(copy):
    (copy / SHARD).unlink()
    with pytest.raises(DatasetError, match=f"missing, first {SHARD}"):
        Records(copy)


@pytest.mark.parametrize("cut", [1, 4, 5, 200])
def test_truncated_file(copy, cut):
    content = (copy / SHARD).read_bytes()
    (copy / SHARD).write_bytes(content[:-cut])
    with pytest.raises(DatasetError, match=f"{SHARD}: truncated"):
        Records(copy)


@pytest.mark.parametrize("left", [0, 5, 12])
def test_file_cut_at_or_within_a_header(copy, left):
    frames = raw_records(copy / SHARD)
    (copy / SHARD).write_bytes(b"".join(frames[:-1]) + frames[-1][:left])
    expected = f"{len(frames) - 1} records, expected {len(frames)}" if not left else "truncated"
    with pytest.raises(DatasetError, match=f"{SHARD}: {expected}"):
        Records(copy)


def test_file_cut_while_in_use(copy):
    records = Records(copy)
    last = int(np.flatnonzero(records.sites["experiment"] == "HUVEC-02")[-1])
    with open(copy / SHARD, "r+b") as file:
        file.truncate(100)
    with pytest.raises(DatasetError, match=f"{SHARD}.*{records.sites['site_id'][last]}"):
        records[last]


def test_damaged_image(copy):
    first = Records(copy)
    i = int(np.flatnonzero(first.sites["experiment"] == "HUVEC-02")[2])
    content = bytearray((copy / SHARD).read_bytes())
    content[int(first._offset[i]) + 40] ^= 0xFF
    (copy / SHARD).write_bytes(content)
    records = Records(copy)
    with pytest.raises(DatasetError, match=f"{SHARD}.*{first.sites['site_id'][i]}.*damaged"):
        records[i]
    assert records[i + 1].shape == (6, 16, 16)


def test_record_that_is_no_example(copy):
    frames = raw_records(copy / SHARD)
    frames[1] = frames[1][:12] + bytes(len(frames[1]) - 16) + frames[1][-4:]
    (copy / SHARD).write_bytes(b"".join(frames))
    with pytest.raises(DatasetError, match=f"{SHARD}: record 1 at byte .* is not a site"):
        Records(copy)


def test_features_of_another_dataset(copy):
    path = copy / "features.json"
    original = path.read_text()

    def encode(features):
        features["featuresDict"]["features"]["image"]["tensor"]["encoding"] = "bytes"

    edit_json(path, encode)
    with pytest.raises(DatasetError, match="features.json.*'bytes'.*expected"):
        Records(copy)
    path.write_text(original)
    edit_json(path, lambda features: features["featuresDict"]["features"].pop("sirna_id"))
    with pytest.raises(DatasetError, match="no feature sirna_id"):
        Records(copy)
    path.write_text("{")
    with pytest.raises(DatasetError, match="features.json is not JSON"):
        Records(copy)


def test_unfinished_folder(tmp_path):
    with pytest.raises(DatasetError, match="dataset_info.json is missing"):
        Records(tmp_path)


def test_find_dataset(copy):
    data_dir = copy.parents[2]
    assert find_dataset(data_dir, "rxrx1/tiny") == copy
    for version in ("1.10.0", "1.9.0", "2.0.0", "incomplete.ABC_3.0.0"):
        (copy.parent / version).mkdir()
    for version in ("1.10.0", "1.9.0", "incomplete.ABC_3.0.0"):
        shutil.copy(copy / "dataset_info.json", copy.parent / version)
    assert find_dataset(data_dir, "rxrx1/tiny").name == "1.10.0"  # numbers, and finished ones
    assert find_dataset(str(data_dir), "rxrx1/tiny:1.9.0").name == "1.9.0"
    for name in ("rxrx1/native", "rxrx1/tiny:2.0.0", "rxrx1/tiny:7.0.0"):
        with pytest.raises(DatasetError) as error:
            find_dataset(data_dir, name)
        config = name.split("/")[1].split(":")[0]
        assert f"tfds build tfds_builder/rxrx1 --config={config} " in str(error.value)
        assert "rxrx1/tiny:1.9.0" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(DatasetError, match="found: none"):
        find_dataset(data_dir / "nowhere", "rxrx1/tiny")


def test_reading_needs_no_tensorflow():
    code = (
        "import sys; import rxrx1_jax.data.input_pipeline;"
        "sys.exit(any(m in sys.modules for m in ('tensorflow', 'tensorflow_datasets')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

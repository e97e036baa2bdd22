"""The TFDS builder: stored values against Pillow and NumPy; what stops a build leaves nothing."""

import dataclasses
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from dataset_fixture import prepared as build
from PIL import Image
from tiny_release import image_path, read_pngs, tiny_rows, write_metadata, write_tiny_release

tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra `build`")

from tfds_builder.rxrx1 import Builder, Rxrx1Config, machine, synthetic  # noqa: E402
from tfds_builder.rxrx1.release.metadata import ReleaseError  # noqa: E402

SIZE = 16
VERSION = str(Builder.VERSION)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tiny) -> Builder:
    """The builder as a later process finds it, its dataset already on the disk."""
    return Builder(config=Rxrx1Config(name="tiny", size=SIZE), data_dir=tiny.dataset.parents[2])


def controls_of(rows, experiment, plate=None):
    return [
        r
        for r in rows
        if r["experiment"] == experiment
        and r["well_type"] != "treatment"
        and plate in (None, r["plate"])
    ]


def test_every_example_equals_the_pngs(tiny, built):
    rows = {row["site_id"]: row for row in tiny_rows()}
    seen = []
    for experiment, dataset in built.as_dataset().items():
        for example in tfds.as_numpy(dataset):
            row = rows[example["site_id"].decode()]
            seen.append(row["site_id"])
            assert row["experiment"] == experiment
            for column in row:
                value = example[column]
                assert (value.decode() if isinstance(value, bytes) else str(value)) == row[column]
            assert example["row"] == ord(row["well"][0]) - 64
            assert example["column"] == int(row["well"][1:])
            assert {example[k].dtype for k in ("plate", "site", "row", "column", "sirna_id")} == {
                np.dtype(np.int32)
            }
            assert example["image"].dtype == np.uint8
            np.testing.assert_array_equal(example["image"], read_pngs(tiny.release, row))
            # U2OS-01 plate 2 has no controls of its own: those of the experiment serve
            group = controls_of(rows.values(), experiment, row["plate"]) or controls_of(
                rows.values(), experiment
            )
            pixels = np.stack([read_pngs(tiny.release, r) for r in group]).astype(float)
            mean, std = pixels.mean(axis=(0, 2, 3)), pixels.std(axis=(0, 2, 3))
            np.testing.assert_allclose(example["control_mean"], mean, rtol=1e-6)
            np.testing.assert_allclose(example["control_std"], std, rtol=1e-6)
    assert sorted(seen) == sorted(rows)


def test_splits_files_and_metadata(tiny, built):
    rows = tiny_rows()
    assert {name: split.num_examples for name, split in built.info.splits.items()} == {
        e: sum(row["experiment"] == e for row in rows) for e in ("HUVEC-01", "HUVEC-02", "U2OS-01")
    }
    folder = Path(built.data_path)
    assert (folder.parent.name, folder.name) == ("tiny", VERSION)
    assert (folder / "rxrx1-HUVEC-01.tfrecord-00000-of-00001").is_file()
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["source"] == f"release in {tiny.release.parent}"
    assert len(metadata["channels"]) == 6 and metadata["channels"][0] == "nuclei"
    assert list(metadata["control_pixels"]["U2OS-01"]) == ["1"]


def test_registered_with_tfds(built, tmp_path):
    assert tfds.builder_cls("rxrx1") is Builder
    native = tfds.builder("rxrx1/native", data_dir=tmp_path)
    assert native.info.features["image"].shape == (6, 512, 512)
    assert tfds.builder("rxrx1/synthetic", data_dir=tmp_path).info.features["image"].shape == (
        6,
        64,
        64,
    )
    assert "CC BY-NC-SA 4.0" in native.info.redistribution_info.license
    assert native.info.citation and native.info.description and native.info.homepage
    data_dir = Path(built.data_path).parents[2]
    data = tfds.load(f"rxrx1/tiny:{VERSION}", split="HUVEC-01+U2OS-01", data_dir=data_dir)
    assert len(data) == 21 + 18


def test_tags_are_valid():
    known = tfds.core.dataset_metadata.valid_tags()
    assert set(Builder.get_metadata().tags) <= set(known)


def nothing_is_left(data_dir: Path) -> bool:
    """No record, and no folder that could pass for a finished dataset."""
    return not [p for p in data_dir.rglob("*") if "tfrecord" in p.name or p.name == VERSION]


def test_broken_input_stops_before_writing(tmp_path):
    """An image that cannot be right, and a table."""
    root, data_dir, rows = tmp_path / "release", tmp_path / "data", tiny_rows()
    victim = image_path(write_tiny_release(root, SIZE), rows[9], 4)
    Image.fromarray(np.zeros((SIZE, SIZE), np.uint16)).save(victim)
    with pytest.raises(ReleaseError, match=f"line 11, site {rows[9]['site_id']}: {victim} .* 16"):
        build(root, data_dir)
    write_metadata(root, [*rows, rows[0]])
    with pytest.raises(ReleaseError, match="field site_id"):
        build(root, data_dir)
    assert nothing_is_left(data_dir)


def test_one_build_at_a_time(tiny, tmp_path):
    with machine.build_lock(tmp_path / "rxrx1" / "tiny", VERSION):
        with pytest.raises(RuntimeError, match=f"being built already.*{os.getpid()}"):
            build(tiny.release, tmp_path)
    assert len(build(tiny.release, tmp_path).as_dataset(split="train")) == 39


@pytest.mark.parametrize("well_type", ["treatment", "positive_control"])
def test_image_that_does_not_decode_leaves_nothing_finished(tmp_path, well_type):
    """All checksums are right, so only decoding finds it; treatments are decoded last."""
    root, data_dir = write_tiny_release(tmp_path / "release", SIZE), tmp_path / "data"
    row = [r for r in tiny_rows() if r["well_type"] == well_type][-1]
    path = image_path(root, row, 6)
    data = path.read_bytes()
    start, end = data.index(b"IDAT"), data.index(b"IEND") - 8  # of the only chunk's type and data
    chunk = b"IDAT" + zlib.compress(b"too few pixels")
    length, crc = (n.to_bytes(4, "big") for n in (len(chunk) - 4, zlib.crc32(chunk)))
    path.write_bytes(data[: start - 4] + length + chunk + crc + data[end + 4 :])
    with pytest.raises(ReleaseError, match="cannot be decoded") as error:
        build(root, data_dir)
    assert str(path) in str(error.value) and row["site_id"] in str(error.value)
    assert not [p for p in data_dir.rglob("*") if p.name == VERSION or "incomplete" in p.name]
    with pytest.raises(Exception, match="rxrx1"):
        tfds.builder("rxrx1/tiny", data_dir=data_dir)
    path.write_bytes(data)  # repaired, the same command goes on
    assert len(build(root, data_dir).as_dataset(split="train")) == 39


def test_manual_dir_that_is_not_there_is_no_download(tmp_path):
    builder = Builder(config="native", data_dir=tmp_path / "data")
    config = tfds.download.DownloadConfig(manual_dir=str(tmp_path / "typing_error"))
    with pytest.raises(ReleaseError, match="typing_error"):
        builder.download_and_prepare(download_config=config)
    assert nothing_is_left(tmp_path)


def test_generator_that_fails_stops_the_build(tmp_path, capfd):
    folder = tmp_path / "downloads" / "rxrx1_other"
    folder.mkdir(parents=True)
    (folder / "images").write_text("no folder")
    builder = Builder(config=Rxrx1Config(name="other", size=16, screen={}), data_dir=tmp_path)
    with pytest.raises(ReleaseError, match="rxrx1_other: not empty and without screen.json"):
        builder.download_and_prepare()
    marker = {"drawing": synthetic.DRAWING, **dataclasses.asdict(synthetic.Screen(size=16))}
    (folder / "screen.json").write_text(json.dumps(marker))
    with pytest.raises(ReleaseError, match="synthetic screen was not written to .*rxrx1_other"):
        builder.download_and_prepare()
    assert "Not a directory" in capfd.readouterr().err
    assert nothing_is_left(tmp_path)


def test_plain_command_line_builds_a_synthetic_screen(tmp_path):
    """`tfds build` from a clone, with nothing installed; the release is generated on the way."""
    screen = {
        "huvec": 2,
        "rpe": 0,
        "hepg2": 0,
        "u2os": 1,
        "plates": 1,
        "treatments": 2,
        "positive_controls": 2,
    }
    config = json.dumps({"name": "small", "size": 32, "screen": screen})
    command = [
        str(Path(sys.executable).with_name("tfds")),
        "build",
        "tfds_builder/rxrx1",
        f"--config={config}",
        f"--data_dir={tmp_path}",
    ]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    folder = tmp_path / "rxrx1" / "small" / VERSION
    info = json.loads((folder / "dataset_info.json").read_text())
    lengths = {split["name"]: sum(map(int, split["shardLengths"])) for split in info["splits"]}
    lines = (tmp_path / "downloads" / "rxrx1_small" / "metadata.csv").read_text().splitlines()
    experiments = [line.split(",")[4] for line in lines[1:]]
    assert lengths == {"HUVEC-01": 10, "HUVEC-02": 10, "U2OS-01": 10}
    assert lengths == {e: experiments.count(e) for e in experiments}
    features = json.loads((folder / "features.json").read_text())["featuresDict"]["features"]
    assert features["image"]["pythonClassName"].startswith("tensorflow_datasets.")
    assert features["image"]["tensor"]["encoding"] == "zlib"
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["source"] == "synthetic"
    assert sorted(metadata["control_pixels"]) == sorted(lengths)
    truth = json.loads((tmp_path / "downloads" / "rxrx1_small" / "truth.json").read_text())
    assert metadata["sirnas"] == truth["sirnas"]

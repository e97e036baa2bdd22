"""The TFDS builder: stored values against Pillow and NumPy; what stops a build leaves nothing."""

import dataclasses
import json
import pickle
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from dataset_fixture import prepared as build
from PIL import Image
from tiny_release import image_path, read_pngs, tiny_rows, write_metadata, write_tiny_release

tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra `build`")

from tfds_builder.rxrx1 import Builder, Rxrx1Config, images, staging, synthetic  # noqa: E402
from tfds_builder.rxrx1 import rxrx1_dataset_builder as builder_module  # noqa: E402
from tfds_builder.rxrx1.release.metadata import ReleaseError  # noqa: E402

SIZE = 16
VERSION = str(Builder.VERSION)


def controls_of(rows, experiment, plate=None):
    return [
        r
        for r in rows
        if r["experiment"] == experiment
        and r["well_type"] != "treatment"
        and plate in (None, r["plate"])
    ]


def test_every_example_equals_the_pngs(tiny, plain):
    rows = {row["site_id"]: row for row in tiny_rows()}
    seen = []
    for experiment, dataset in plain.as_dataset().items():
        for example in tfds.as_numpy(dataset):
            row = rows[example["site_id"].decode()]
            seen.append(row["site_id"])
            assert row["experiment"] == experiment
            for column in row:
                value = example[column]
                assert (value.decode() if isinstance(value, bytes) else str(value)) == row[column]
            assert example["row"] == ord(row["well"][0]) - 64
            assert example["column"] == int(row["well"][1:])
            integers = {example[name].dtype for name in ("plate", "site", "row", "column")}
            assert integers == {np.dtype(np.int32)} and example["image"].dtype == np.uint8
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


def test_files_and_metadata(tiny, plain, tmp_path):
    assert {name: split.num_examples for name, split in plain.info.splits.items()} == {
        "HUVEC-01": 21, "HUVEC-02": 22, "U2OS-01": 18,
    }  # fmt: skip
    folder = Path(plain.data_path)
    assert (folder.parent.name, folder.name) == ("tiny", VERSION)
    assert (folder / "rxrx1-HUVEC-01.tfrecord-00000-of-00001").is_file()
    assert not (folder.parents[1] / ".config").exists()  # TFDS's note of a default config
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["source"] == f"release in {tiny.release.parent}"
    assert len(metadata["channels"]) == 6 and metadata["channels"][0] == "nuclei"
    assert list(metadata["control_pixels"]["U2OS-01"]) == ["1"]
    statistics = metadata["control_statistics"]["plate"]["U2OS-01"]
    sources = {plate: entry["source"] for plate, entry in statistics.items()}
    assert sources == {"1": "plate_controls", "2": "experiment_controls"}


def test_registered_with_tfds(tmp_path):
    assert tfds.builder_cls("rxrx1") is Builder and VERSION in Builder.RELEASE_NOTES
    for config in Builder.BUILDER_CONFIGS:
        info = tfds.builder(f"rxrx1/{config.name}", data_dir=tmp_path).info
        assert config.description
        assert info.features["image"].shape == (config.channels, config.size, config.size)
        assert info.features["image"].doc.desc.startswith("Planes: nuclei, endoplasmic reticulum")
        assert info.features["sirna_id"].num_classes == 1139
        assert ("CC BY-NC-SA 4.0" in info.redistribution_info.license) == (config.screen is None)
    assert "siRNA" in info.description and "@article" in info.citation and info.homepage
    assert set(Builder.get_metadata().tags) <= set(tfds.core.dataset_metadata.valid_tags())
    native = pickle.loads(pickle.dumps(tfds.builder("rxrx1/native", data_dir=tmp_path))).info
    assert (native.download_size // 10**9, native.dataset_size // 10**9) == (49, 71)


def nothing_is_left(data_dir: Path) -> bool:
    """No record, and no folder that could pass for a finished dataset."""
    return not [p for p in data_dir.rglob("*") if "tfrecord" in p.name or p.name == VERSION]


def not_gray(root: Path) -> None:
    Image.fromarray(np.zeros((SIZE, SIZE), np.uint16)).save(image_path(root, tiny_rows()[9], 4))


def doubled(root: Path) -> None:
    write_metadata(root, [*tiny_rows(), tiny_rows()[0]])


def without_images(root: Path) -> None:
    for folder in sorted((root / "images").glob("*/Plate1")):
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("spoil", "config", "words"),
    [
        (not_gray, {}, ["line 11, site", tiny_rows()[9]["site_id"], "_w4.png", "16"]),
        (doubled, {}, ["field site_id"]),
        (without_images, {"plates": [1]}, ["186 image file", *["is missing"] * 10, "..."]),
        (without_images, {"plates": [1], "present_only": True}, ["no image", "B02_s1_w1.png"]),
        (lambda root: None, {"experiments": ["HUVEC-1"]}, ["'HUVEC-1'", "HUVEC-01"]),
    ],
)
def test_what_cannot_be_built_leaves_nothing(tmp_path, spoil, config, words):
    release = write_tiny_release(tmp_path / "release", SIZE)
    spoil(release)
    with pytest.raises(ReleaseError) as error:
        build(release, tmp_path / "data", **config)
    assert all(str(error.value).count(word) == words.count(word) for word in words)
    assert nothing_is_left(tmp_path / "data")


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
    path.write_bytes(data)  # repaired, the same command goes on
    assert len(build(root, data_dir).as_dataset(split="train")) == 39


def test_generator_that_fails_stops_the_build(tmp_path):
    folder = tmp_path / "downloads" / "rxrx1_other"
    folder.mkdir(parents=True)
    (folder / "images").write_text("no folder")
    builder = Builder(config=Rxrx1Config(name="other", size=16, screen={}), data_dir=tmp_path)
    with pytest.raises(ReleaseError, match="rxrx1_other: not empty"):
        builder.download_and_prepare()
    marker = {"drawing": synthetic.DRAWING, **dataclasses.asdict(synthetic.Screen(size=16))}
    (folder / "screen.json").write_text(json.dumps(marker))
    with pytest.raises(NotADirectoryError, match="rxrx1_other/images"):
        builder.download_and_prepare()
    assert nothing_is_left(tmp_path)


def test_full_disk_is_seen_before_the_images_are_read(tiny, tmp_path, monkeypatch):
    usage = staging.shutil._ntuple_diskusage
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: usage(10**9, 0, 10**4))
    monkeypatch.setattr(images, "check_images", lambda *_: pytest.fail("read"))
    with pytest.raises(OSError, match="not enough space"):
        build(tiny.release, tmp_path)


def test_stopped_build_says_how_to_go_on(tiny, tmp_path, monkeypatch):
    """In a folder whose name has a bracket, which is no pattern."""

    def stop(*_args, **_kwargs):
        raise KeyboardInterrupt

    data_dir = tmp_path / "try[1]"
    with monkeypatch.context() as patch:
        patch.setattr(builder_module.shards, "write_shards", stop)
        with pytest.raises(KeyboardInterrupt, match="same command"):
            build(tiny.release, data_dir)
    assert [path.name[:10] for path in (data_dir / "rxrx1" / "tiny").iterdir()] == [".building-"]
    assert len(build(tiny.release, data_dir).as_dataset(split="train")) == 39
    assert [path.name for path in (data_dir / "rxrx1" / "tiny").iterdir()] == [VERSION]

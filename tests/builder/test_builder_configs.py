"""Configs, layouts, parts and partitions of the dataset, built from small releases."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from dataset_fixture import prepared as build
from tiny_release import (
    read_pngs,
    tiny_rows,
    wilds_path,
    write_tiny_kaggle,
    write_tiny_release,
    write_tiny_wilds,
    zip_files,
)

tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra `build`")

from PIL import Image  # noqa: E402

from tfds_builder.rxrx1 import Builder, Rxrx1Config  # noqa: E402
from tfds_builder.rxrx1.release.metadata import ReleaseError  # noqa: E402

SIZE = 16


def by_site(builder: Builder) -> dict[str, dict]:
    return {
        example["site_id"].decode(): example
        for data in builder.as_dataset().values()
        for example in tfds.as_numpy(data)
    }


def table_of(builder: Builder) -> list[dict]:
    return pq.read_table(Path(builder.data_path) / "sites.parquet").to_pylist()


def same(first: dict[str, dict], second: dict[str, dict], but: tuple[str, ...] = ()) -> bool:
    assert first.keys() == second.keys()
    for site_id, example in first.items():
        for name in example.keys() - set(but):
            np.testing.assert_array_equal(example[name], second[site_id][name])
    return True


class TestTfds(tfds.testing.DatasetBuilderTestCase):
    """TFDS's own checks of a builder, on the tiny release."""

    DATASET_CLASS = Builder
    SPLITS = {"HUVEC-01": 21, "HUVEC-02": 22, "U2OS-01": 18}
    BUILDER_CONFIG_NAMES_TO_TEST = [Rxrx1Config(name="tiny", size=SIZE)]

    def _make_builder(self, config=None):  # there is no default
        return super()._make_builder(config or self.BUILDER_CONFIG_NAMES_TO_TEST[0])

    @classmethod
    def setUpClass(cls):
        import tempfile

        cls.folder = tempfile.TemporaryDirectory()
        cls.EXAMPLE_DIR = str(write_tiny_release(Path(cls.folder.name) / "release", SIZE))
        super().setUpClass()

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        cls.folder.cleanup()


def test_averaged_config(tiny, tmp_path):
    """Squares of 4 x 4 pixels, mean rounded half up; statistics are those of the stored pixels."""
    examples = by_site(build(tiny.release, tmp_path, name="px4", size=4, source_size=SIZE))
    stored = {}
    for site_id, row in tiny.rows.items():
        blocks = read_pngs(tiny.release, row).reshape(6, 4, 4, 4, 4).astype(float)
        stored[site_id] = np.floor(blocks.mean(axis=(2, 4)) + 0.5).astype(np.uint8)
        np.testing.assert_array_equal(examples[site_id]["image"], stored[site_id])
    group = [
        stored[row["site_id"]]
        for row in tiny.rows.values()
        if row["experiment"] == "HUVEC-01" and row["plate"] == "1"
        and row["well_type"] != "treatment"
    ]  # fmt: skip
    example = examples["HUVEC-01_1_O23_1"]
    np.testing.assert_allclose(example["control_mean"], np.mean(group, (0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(example["control_std"], np.std(group, (0, 2, 3)), rtol=1e-6)


def test_wilds_config_from_the_official_release(tmp_path):
    """Centre crop, three channels, and WILDS's partition with its four validation experiments."""
    release = write_tiny_release(tmp_path / "release", SIZE)
    table = release / "metadata.csv"
    text = table.read_text().replace("HUVEC-02", "HUVEC-17").replace("U2OS-01", "U2OS-05")
    table.write_text(text.replace(",train,U2OS-05", ",test,U2OS-05"))
    for old, new in (("HUVEC-02", "HUVEC-17"), ("U2OS-01", "U2OS-05")):
        (release / "images" / old).rename(release / "images" / new)
    builder = build(
        release, tmp_path / "data",
        name="wilds8", size=8, source_size=SIZE, crop=True, channels=3, wilds=True,
    )  # fmt: skip
    assert builder.info.metadata["partitions"] == {
        "train": ["HUVEC-01"], "val": ["HUVEC-17"], "test": ["U2OS-05"],
    }  # fmt: skip
    assert builder.info.metadata["channels"] == ["nuclei", "endoplasmic reticulum", "actin"]
    data = {k: list(tfds.as_numpy(builder.as_dataset(split=k))) for k in ("train", "val", "test")}
    assert [len(sites) for sites in data.values()] == [21, 22, 18]
    for name, sites in data.items():
        for site in sites:
            assert site["dataset"].decode() == name
            row = {k: v.decode() if isinstance(v, bytes) else str(v) for k, v in site.items()}
            pixels = read_pngs(release, row)[:3, 4:12, 4:12]
            np.testing.assert_array_equal(site["image"], pixels)
            assert site["control_mean"].shape == (3,)


def test_wilds_config_from_the_wilds_release(tmp_path):
    """And configs that it cannot give."""
    release = write_tiny_wilds(tmp_path / "release")

    def prepared(config):
        builder = Builder(config=config, data_dir=tmp_path / "data")
        download_config = tfds.download.DownloadConfig(manual_dir=str(release))
        builder.download_and_prepare(download_config=download_config)
        return builder

    builder = prepared("wilds")
    assert builder.info.metadata["layout"] == "wilds"
    for example in by_site(builder).values():
        row = {k: v.decode() if isinstance(v, bytes) else str(v) for k, v in example.items()}
        pixels = np.asarray(Image.open(wilds_path(release, row)))  # [256, 256, RGB]
        np.testing.assert_array_equal(example["image"], pixels.transpose(2, 0, 1))
    other = Rxrx1Config(name="small", size=128, source_size=256, channels=3)
    for config, asked in (("native", "6 channels of 512 px"), (other, "3 channels of 128 px")):
        with pytest.raises(ReleaseError, match=f"WILDS .*{asked}.* wilds"):
            prepared(config)


def test_kaggle_and_zip_give_the_same_records(tiny, plain, tmp_path):
    official = by_site(plain)
    kaggle = write_tiny_kaggle(tmp_path / "kaggle", tiny.release)
    builder = build(kaggle, tmp_path / "from_kaggle")
    examples = by_site(builder)
    assert {row["release_row"] for row in table_of(builder)} == {-1}
    assert same(official, examples, but=("sirna", "sirna_id"))  # no names in Kaggle's tables
    for site_id, example in examples.items():
        hidden = (example["dataset"], example["well_type"]) == (b"test", b"treatment")
        assert example["sirna_id"] == (-1 if hidden else official[site_id]["sirna_id"])
    archive = zip_files(tmp_path / "rxrx1.zip", tiny.release, ["images", "metadata.csv"])
    assert same(official, by_site(build(archive, tmp_path / "from_zip")))


def test_part_of_a_release(tiny, plain, tmp_path):
    builder = build(tiny.release, tmp_path, experiments=["HUVEC-01"], plates=[2], sites=[1])
    expected = {
        site_id: example
        for site_id, example in by_site(plain).items()
        if (example["experiment"], example["plate"], example["site"]) == (b"HUVEC-01", 2, 1)
    }
    assert len(expected) == 6
    # The controls are those of the part: one site of each control well.
    assert same(expected, by_site(builder), but=("control_mean", "control_std"))
    assert builder.info.metadata["selection"] == {
        "experiments": ["HUVEC-01"], "plates": [2], "sites": [1],
    }  # fmt: skip
    order = list(tiny.rows)  # of the whole release
    rows = table_of(builder)
    assert [order[row["release_row"]] for row in rows] == [row["site_id"] for row in rows]


def test_monai_config_takes_the_sites_that_are_there(tmp_path, monkeypatch):
    """The subset's table may list sites that were not cut; its plates may have no control."""
    release = write_tiny_release(tmp_path / "release", SIZE)
    gone = [row for row in tiny_rows() if row["experiment"] == "HUVEC-01" and row["plate"] == "1"]
    (release / "images" / "HUVEC-01" / "Plate1").rename(tmp_path / "elsewhere")
    builder = build(release, tmp_path / "data", present_only=True)
    examples = by_site(builder)
    assert len(examples) == len(tiny_rows()) - len(gone)
    with pytest.raises(ReleaseError, match="is missing"):
        build(release, tmp_path / "strict")
    config = next(c for c in Builder.BUILDER_CONFIGS if c.name == "monai")
    assert config.present_only and config.archives == "monai"


@pytest.mark.parametrize(
    "field, values",
    [
        ("Rxrx1Config.name: found 'a/b'", {"name": "a/b"}),
        ("Rxrx1Config.name: found 5", {"name": 5}),
        ("Rxrx1Config.description: found 5", {"description": 5}),
        ("Rxrx1Config.version: ", {"version": "3.0.0"}),
        ("Rxrx1Config.size: found '64'", {"size": "64"}),
        ("Rxrx1Config.size: found True", {"size": True}),
        ("Rxrx1Config.source_size: found 64.0", {"source_size": 64.0}),
        ("Rxrx1Config.crop: found 'yes'", {"crop": "yes"}),
        ("Rxrx1Config.archives: 'offical' .* 'official'", {"archives": "offical"}),
        ("'experiment' .* 'experiments'", {"experiment": ["HUVEC-01"]}),
        ("'plates_'", {"plates_": [1]}),
        ("Rxrx1Config.screen: found 'small'", {"screen": "small"}),
        ("Rxrx1Config.screen holds size", {"screen": {"size": 32}}),
        ("Screen.plates is '2'", {"screen": {"plates": "2"}}),
        ("Rxrx1Config.screen: 'plate' .* 'plates'", {"screen": {"plate": 1}}),
        ("View.size: found 48, expected a divisor", {"size": 48, "source_size": 64}),
        ("View.size: found 0", {"size": 0}),
        ("View.size: found 32, expected 1", {"size": 32, "source_size": 16, "crop": True}),
        ("View.channels: found 4", {"channels": 4}),
        ("Selection.experiments: found 'HUVEC-01'", {"experiments": "HUVEC-01"}),
        ("Selection.plates: found .'1'.", {"plates": ["1"]}),
        ("Selection.plates: found .True,.", {"plates": (True,)}),
        ("Selection.plates: found 1", {"plates": 1}),
        ("Selection.plates: found .5,.*1, 2, 3, 4", {"plates": (5,)}),
        ("Selection.sites: found .0,.*1, 2", {"sites": (0,)}),
        ("Selection.sites is empty", {"sites": []}),
    ],
)
def test_config_that_cannot_be(field, values):
    """As JSON on the command line gives them: refused before anything is read or downloaded."""
    with pytest.raises(ValueError, match=field):
        Rxrx1Config(**({"name": "tiny", "size": SIZE} | values))


def test_other_settings_under_a_name_that_is_taken(tmp_path):
    release = write_tiny_release(tmp_path / "release", SIZE)
    first = build(release, tmp_path / "data", experiments=["HUVEC-01"])
    assert len(build(release, tmp_path / "data", experiments=["HUVEC-01"]).info.splits) == 1
    with pytest.raises(ReleaseError, match=r"experiments \['HUVEC-01'\].* None"):
        build(release, tmp_path / "data")
    with pytest.raises(ReleaseError, match="size 16.* 8; source_size 16.* 8"):
        build(release, tmp_path / "data", experiments=["HUVEC-01"], size=8)
    # read as ever, and datasets of the time before the settings were recorded are taken
    path = Path(first.data_path) / "metadata.json"
    metadata = json.loads(path.read_text())
    del metadata["config"]
    path.write_text(json.dumps(metadata))
    assert len(build(release, tmp_path / "data").info.splits) == 1

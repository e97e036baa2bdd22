"""The table of sites: the same from every build, and for datasets of version 1 from the records."""

import json
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from dataset_edits import edit_json
from dataset_fixture import prepared
from tiny_release import read_pngs

tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra `build`")

from tfds_builder.rxrx1 import machine, shards, table  # noqa: E402
from tfds_builder.rxrx1.__main__ import main  # noqa: E402
from tfds_builder.rxrx1.table import FILE  # noqa: E402

SIZE = 16


@pytest.fixture
def old(copy) -> Path:
    """A dataset as version 1.1.0 left it."""
    (copy / FILE).unlink()
    edit_json(copy / "metadata.json", lambda metadata: metadata.pop("table"))
    edit_json(copy / "dataset_info.json", lambda info: info.update(version="1.1.0"))
    return copy.rename(copy.with_name("1.1.0"))


def test_every_place_holds_the_image(tiny, tmp_path, monkeypatch):
    """Of several files per experiment, read by TFDS and by zlib alone."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 4 * 6 * SIZE * SIZE)
    builder = prepared(tiny.release, tmp_path)
    stored = tfds.as_numpy(builder.as_dataset(split="all"))
    assert sorted(site["site_id"].decode() for site in stored) == sorted(tiny.rows)
    folder = Path(builder.data_path)
    listed = json.loads((folder / "metadata.json").read_text())["table"]["files"]
    files = [name for name, _ in listed]
    rows = pq.read_table(folder / FILE).to_pylist()
    assert len(rows) == 61 and len(files) > 10
    assert [row["shard"] for row in rows] == sorted(row["shard"] for row in rows)
    for row in rows:
        data = (folder / files[row["shard"]]).read_bytes()
        pixels = zlib.decompress(data[row["offset"] :][: row["size"]])
        assert pixels == read_pngs(tiny.release, tiny.rows[row["site_id"]]).tobytes()
        assert row["adler32"] == zlib.adler32(pixels)
        assert row["experiment"] in files[row["shard"]]


def test_beam_gives_the_same_bytes(tiny, tmp_path, monkeypatch):
    pytest.importorskip("apache_beam")
    monkeypatch.setattr(shards, "SHARD_BYTES", 4 * 6 * SIZE * SIZE)
    plain, beam = (
        Path(prepared(tiny.release, tmp_path / str(runner), beam_runner=runner).data_path)
        for runner in (None, "FnApiRunner")
    )
    for name in (FILE, "metadata.json"):
        assert (plain / name).read_bytes() == (beam / name).read_bytes()


def test_array_records_have_no_places(array_record, capsys):
    assert set(pq.read_table(array_record / FILE)["offset"].to_pylist()) == {-1}
    assert main(["table", str(array_record)]) == 1
    assert "array_record" in capsys.readouterr().err


def test_a_dataset_of_version_1_gets_the_table(old, tiny):
    """The same rows as those of a build; metadata.json keeps the rest."""
    before = json.loads((old / "metadata.json").read_text())
    assert main(["table", str(old)]) == 0
    ours, theirs = pq.read_table(old / FILE), pq.read_table(tiny.dataset / FILE)
    assert ours.drop_columns(["release_row"]).equals(theirs.drop_columns(["release_row"]))
    sites = sorted(ours.to_pylist(), key=lambda site: site["release_row"])
    assert [site["release_row"] for site in sites] == list(range(61))
    key = lambda s: (s["dataset"] == "train", s["experiment"], s["plate"], s["well"], s["site"])  # noqa: E731
    assert sites == sorted(sites, key=key)  # the official order
    after = json.loads((old / "metadata.json").read_text())
    assert after.pop("table").keys() == {"sha256", "image_shape", "files"} and after == before
    assert main(["verify", str(old), "--all"]) == 0


@pytest.mark.parametrize("module", [table, machine])
def test_a_kill_while_the_table_is_written(old, tiny, monkeypatch, module):
    """Before the table, and between the table and its checksum: the command can be given again."""
    from rxrx1_jax.data.records import DatasetError, Records

    def die(*_):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_whole", die)
        with pytest.raises(SystemExit):
            main(["table", str(old)])
    assert (old / FILE).exists() == (module is machine)
    with pytest.raises(DatasetError, match="python -m tfds_builder.rxrx1 table"):
        Records(old)
    assert main(["table", str(old)]) == 0
    np.testing.assert_array_equal(Records(old)[60], Records(tiny.dataset)[60])

"""What can go wrong during a build: kill -9 at any moment, two builds at once, a full disk."""

import contextlib
import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from multiprocessing import forkserver
from pathlib import Path

import pytest
from tiny_release import image_path, tiny_rows, write_tiny_release

tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra `build`")

import tensorflow  # noqa: E402, F401

from tfds_builder.rxrx1 import Builder, Rxrx1Config, examples, shards  # noqa: E402
from tfds_builder.rxrx1 import rxrx1_dataset_builder as builder_module  # noqa: E402

SIZE = 16
VERSION = str(Builder.VERSION)
FORKS = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="module", autouse=True)
def server_with_imports():
    """The server imports this module, TensorFlow with it; its children, the builds, need not."""
    FORKS.set_forkserver_preload([__name__])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # the server knows no other path
        forkserver.ensure_running()
        yield


def build(release: Path, data_dir: Path) -> Builder:
    builder = Builder(config=Rxrx1Config(name="tiny", size=SIZE), data_dir=data_dir)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=str(release))
    )
    return builder


def slow_build(release: Path, data_dir: Path, journal: Path) -> None:
    """In a process of its own: many shards, a slow encoder that notes what it encodes."""

    class Slow(examples.SiteEncoder):
        def __call__(self, site):
            with open(journal, "a") as file:
                file.write(f"{site.site_id}\n")
            time.sleep(0.01)
            return super().__call__(site)

    builder_module.SiteEncoder = Slow
    shards.SHARD_BYTES = 4 * 6 * SIZE * SIZE  # four sites
    build(release, data_dir)


def records(folder: Path) -> dict[str, bytes]:
    """The files of records, and the table of the sites in them."""
    paths = [*folder.glob("*.tfrecord*"), folder / "sites.parquet"]
    return {path.name: path.read_bytes() for path in paths}


def test_kill_at_ten_random_moments(tmp_path):
    """No moment leaves a wrong dataset, nothing finished is done again, the end is the same."""
    release = write_tiny_release(tmp_path / "release", SIZE)
    journal, clean_journal = tmp_path / "encoded.txt", tmp_path / "clean.txt"
    process = FORKS.Process(target=slow_build, args=(release, tmp_path / "clean", clean_journal))
    process.start()
    process.join(120)
    expected = records(tmp_path / "clean" / "rxrx1" / "tiny" / VERSION)
    assert len(expected) > 10 and len(clean_journal.read_text().split()) == 61

    final = tmp_path / "data" / "rxrx1" / "tiny" / VERSION
    draw = random.Random(0)
    kills, builds = 0, 1
    while not final.exists() or kills < 10:
        if final.exists():  # before its ten kills, on a machine that halts this process: once more
            shutil.rmtree(tmp_path / "data")
            builds += 1
        process = FORKS.Process(target=slow_build, args=(release, tmp_path / "data", journal))
        began = time.monotonic()
        process.start()
        before = len(journal.read_text().split()) if journal.exists() else 0
        # Counted in sites, not seconds, so that a slow machine makes progress too; and sometimes
        # a little later, into the end of the build.
        sites = draw.randint(0, 3) if kills < 10 else 100
        while process.is_alive() and time.monotonic() - began < 60:
            now = len(journal.read_text().split()) if journal.exists() else 0
            if now - before >= sites and not (sites == 0 and time.monotonic() - began < 0.3):
                break
            time.sleep(0.001)
        time.sleep(draw.random() * 0.05)
        if kills < 10:
            with contextlib.suppress(ProcessLookupError):  # it has ended in between
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
        process.join(60)
        if not final.exists():
            with pytest.raises(Exception, match="rxrx1"):
                tfds.builder("rxrx1/tiny", data_dir=tmp_path / "data")
    assert records(final) == expected
    for name in ("dataset_info.json", "metadata.json", "features.json"):
        clean = json.loads((tmp_path / "clean" / "rxrx1" / "tiny" / VERSION / name).read_text())
        assert json.loads((final / name).read_text()) == clean
    # Of finished shards nothing is encoded again: a kill costs at most the shard in work and the
    # sites that threads have looked ahead.
    look_ahead = 2 * len(os.sched_getaffinity(0)) + 2
    assert len(journal.read_text().split()) <= 61 * builds + 10 * (4 + look_ahead)
    assert [p.name for p in final.parent.iterdir() if p.name != VERSION] == []


def test_two_builds_at_once(tmp_path):
    release = write_tiny_release(tmp_path / "release", SIZE)
    journal = tmp_path / "encoded.txt"
    first = FORKS.Process(target=slow_build, args=(release, tmp_path / "data", journal))
    first.start()
    while not journal.exists():
        time.sleep(0.01)
    with pytest.raises(RuntimeError, match=f"being built already.*{first.pid}"):
        build(release, tmp_path / "data")
    first.join(120)
    assert first.exitcode == 0
    assert len(build(release, tmp_path / "data").as_dataset(split="train")) == 39


def test_disk_full_keeps_what_is_finished(tmp_path, monkeypatch):
    release = write_tiny_release(tmp_path / "release", SIZE)
    monkeypatch.setattr(shards, "SHARD_BYTES", 4 * 6 * SIZE * SIZE)
    encoded = []

    class Counting(examples.SiteEncoder):
        def __call__(self, site):
            encoded.append(site.site_id)
            if len(encoded) == 40:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().__call__(site)

    monkeypatch.setattr(builder_module, "SiteEncoder", Counting)
    with pytest.raises(OSError, match="No space left"):
        build(release, tmp_path / "data")
    assert not (tmp_path / "data" / "rxrx1" / "tiny" / VERSION).exists()
    first = len(encoded)
    assert len(build(release, tmp_path / "data").as_dataset(split="train")) == 39
    assert len(encoded) - first <= 61 - (first - 4 - 2 * len(os.sched_getaffinity(0)) - 2)


def test_repaired_image_is_all_that_a_failed_build_needs(tmp_path):
    """A build stopped by a broken image goes on when the image is repaired; it is checked again."""
    release = write_tiny_release(tmp_path / "release", SIZE)
    victim = image_path(release, tiny_rows()[5], 3)
    data = victim.read_bytes()
    victim.write_bytes(data[:-20])
    with pytest.raises(Exception, match="is cut off"):
        build(release, tmp_path / "data")
    victim.write_bytes(data)
    assert len(build(release, tmp_path / "data").as_dataset(split="train")) == 39

"""The engine of the record files: TFDS's order, resuming, full disks, Beam."""

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra `build`")

from tfds_builder.rxrx1 import shards as shards_module  # noqa: E402
from tfds_builder.rxrx1.examples import Encoded, StoredImage  # noqa: E402
from tfds_builder.rxrx1.machine import build_lock  # noqa: E402
from tfds_builder.rxrx1.release.metadata import Site  # noqa: E402
from tfds_builder.rxrx1.shards import SHARD_BYTES, plan_shards, write_shards  # noqa: E402
from tfds_builder.rxrx1.staging import Staging, remove_leftovers  # noqa: E402

VERSION = "1.0.0"
SIZES = {"HUVEC-01": 40, "RPE-02": 13, "U2OS-05": 1}  # sites of each experiment
SITE_BYTES = SHARD_BYTES // 8  # so that a shard holds eight sites at most
FORMATS = ("tfrecord", "array_record")


def make_sites(sizes=SIZES) -> list[Site]:
    sites = []
    for experiment, size in sizes.items():
        for i in range(size):
            well, site = f"{'BCDEFGHIJKLMNO'[i // 40]}{i // 2 % 20 + 2:02d}", i % 2 + 1
            well_id = f"{experiment}_1_{well}"
            names = (f"{well_id}_{site}", well_id, experiment.split("-")[0], "train", experiment)
            sites.append(Site(*names, 1, well, site, "treatment", f"s{20000 + i}", i))
    return sites


def record(site: Site) -> bytes:
    """What stands for a serialized example: bytes that are a function of the site."""
    rng = np.random.default_rng(list(site.site_id.encode()))
    return site.site_id.encode() + b"\0" + rng.bytes(rng.integers(500, 1500))


def encoded(site: Site) -> Encoded:
    """`record`, and figures of an image that are a function of the site."""
    data = record(site)
    return Encoded(data, StoredImage(2, 3, len(data), site.sirna_id + 2**31, (7, 8), (9, 2**60)))


@dataclasses.dataclass(frozen=True)
class Encode:
    """`encoded`, with a log of one line per call; may fail at some point."""

    log: str
    run: str = "-"
    fail_at: str = ""  # site_id

    def __call__(self, site: Site) -> Encoded:
        descriptor = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, f"{self.run} {os.getpid()} {site.site_id}\n".encode())
        os.close(descriptor)
        if site.site_id == self.fail_at:
            raise ValueError(f"images/{site.site_id}.png cannot be decoded")
        return encoded(site)

    def calls(self) -> list[list[str]]:
        """[run, process, site_id] of each call so far."""
        log = Path(self.log)
        return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def make_staging(folder, file_format="tfrecord", fingerprint="0123456789abcdef") -> Staging:
    return Staging(os.fspath(folder), VERSION, fingerprint, file_format)


def build(folder: Path, encode, sites=None, file_format="tfrecord") -> None:
    """What the builder and TFDS do between them, without the rest of the builder."""
    plan = plan_shards(sites or make_sites(), SITE_BYTES)
    with build_lock(folder, VERSION):
        remove_leftovers(folder, VERSION)
        if not (folder / VERSION).exists():
            with tfds.core.utils.incomplete_dir(folder / VERSION) as into:
                staging = make_staging(folder, file_format)
                write_shards(plan, encode, staging)
                staging.place(plan, into)
                places = [staging.stored_images(shard) for shard in plan]
                Path(into, "dataset_info.json").write_text(json.dumps(places))
        remove_leftovers(folder, VERSION)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def staged(folder: Path) -> dict[str, Path]:
    """{name of the shard: its file} of all finished shards below a config folder, by name alone."""
    return {p.name.split(".")[0]: p for p in sorted(folder.glob(".building-*/*-on-disk"))}


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> dict[str, dict[str, bytes]]:
    """{format: the files of an uninterrupted build}."""
    root = tmp_path_factory.mktemp("reference")
    for file_format in FORMATS:
        build(root / file_format, encoded, file_format=file_format)
    return {name: contents(root / name / VERSION) for name in FORMATS}


# The plan


def test_plan_is_even_bounded_and_independent_of_the_order_given():
    sites = make_sites({"HUVEC-01": 100, "RPE-02": 17, "U2OS-05": 8})
    plan = plan_shards(sites, SITE_BYTES)
    assert plan == plan_shards(sites[::-1], SITE_BYTES)
    assert sorted(site for shard in plan for site in shard.sites) == sorted(sites)
    for split, count in {"HUVEC-01": 13, "RPE-02": 3, "U2OS-05": 1}.items():
        shards = [shard for shard in plan if shard.split == split]
        assert [shard.index for shard in shards] == list(range(count))
        assert {shard.count for shard in shards} == {count}
        assert {site.experiment for shard in shards for site in shard.sites} == {split}
        sizes = [len(shard.sites) for shard in shards]
        assert max(sizes) <= 8 and max(sizes) - min(sizes) <= 1
    assert len(plan_shards(sites, 6 * 512 * 512)) == 3  # small experiments: one shard each
    assert len(plan_shards(sites, 2 * SHARD_BYTES)) == 125  # no image is too large


class Stock(tfds.core.GeneratorBasedBuilder):
    """TFDS's own way with the same keys."""

    VERSION = tfds.core.Version(VERSION)

    def _info(self):
        features = tfds.features.FeaturesDict({"site_id": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(name) for name in SIZES}

    def _generate_examples(self, experiment):
        for site in make_sites():
            if site.experiment == experiment:
                yield site.site_id, {"site_id": site.site_id}


def test_order_is_that_of_tfds(tmp_path):
    stock = Stock(data_dir=tmp_path)
    stock.download_and_prepare()
    plan = plan_shards(make_sites(), SITE_BYTES)
    for split in SIZES:
        theirs = [e["site_id"].decode() for e in tfds.as_numpy(stock.as_dataset(split=split))]
        ours = [site.site_id for shard in plan if shard.split == split for site in shard.sites]
        assert ours == theirs
        assert len(ours) < 2 or ours != sorted(ours)


# Files and resuming


@pytest.mark.parametrize("file_format", FORMATS)
def test_resume_writes_only_what_is_missing(tmp_path, reference, capsys, file_format):
    """A failing site, then a damaged file, then half-written files beside."""
    encode, plan = Encode(str(tmp_path / "log")), plan_shards(make_sites(), SITE_BYTES)
    staging = make_staging(tmp_path / "rxrx1", file_format)
    victim = plan[3].sites[2].site_id
    with pytest.raises(ValueError, match=f"^images/{victim}.png"):
        write_shards(plan, Encode(encode.log, fail_at=victim), staging)
    first = staged(tmp_path / "rxrx1")
    assert sorted(first) == sorted(shard.name for shard in plan[:3])
    assert len(list(staging.folder.iterdir())) == 6  # each has its sidecar
    before = {name: path.stat() for name, path in first.items()}

    short = first[plan[1].name]
    short.write_bytes(short.read_bytes()[:-1])
    (staging.folder / f"{plan[5].name}.0123.tmp").write_bytes(b"half")
    written = write_shards(plan, Encode(encode.log, "second"), staging)
    message = capsys.readouterr().err
    assert "0 of 3 experiments, 2 of 8 shards" in message and "54/54" in message
    kept = {site.site_id for shard in (plan[0], plan[2]) for site in shard.sites}
    second = [site_id for run, _, site_id in encode.calls() if run == "second"]
    assert sorted(second) == sorted({site.site_id for site in make_sites()} - kept)
    for shard in (plan[0], plan[2]):
        now, then = staged(tmp_path / "rxrx1")[shard.name].stat(), before[shard.name]
        assert (now.st_ino, now.st_mtime_ns) == (then.st_ino, then.st_mtime_ns)
    for split, parts in written.items():
        of = [shard for shard in plan if shard.split == split]
        assert [part.examples for part in parts] == [len(shard.sites) for shard in of]
        assert [part.bytes for part in parts] == [sum(len(record(s)) for s in p.sites) for p in of]
    assert not list(staging.folder.glob("*.tmp"))
    assert write_shards(plan, None, staging) == written  # nothing to encode
    (tmp_path / "into").mkdir()
    staging.place(plan, tmp_path / "into")
    assert contents(tmp_path / "into").items() < reference[file_format].items()


def test_other_data_and_formats_are_kept_apart(tmp_path):
    plan = plan_shards(make_sites(), SITE_BYTES)
    others = {"file_format": "array_record"}, {"fingerprint": "abcdef0123456789"}
    stagings = [make_staging(tmp_path, **other) for other in ({}, *others)]
    for i, staging in enumerate(stagings):
        encode = Encode(str(tmp_path / f"log{i}"))
        write_shards(plan, encode, staging)
        assert len(encode.calls()) == sum(SIZES.values())
    assert len({staging.folder for staging in stagings}) == 3
    fewer = dataclasses.replace(plan[0], sites=plan[0].sites[:-1])  # cut by other code
    assert list(stagings[0].finished([fewer, plan[1]])) == [plan[1].name]
    with pytest.raises(OSError, match="8 examples for 7"):
        stagings[0].write(fewer, map(encoded, plan[0].sites))
    with pytest.raises(ValueError, match="'riegeli'.*tfrecord"):
        make_staging(tmp_path, "riegeli")


# Full disks


def test_needed_space_is_compared_with_the_free(tmp_path, monkeypatch):
    plan, staging = plan_shards(make_sites(), SITE_BYTES), make_staging(tmp_path)
    usage = shutil._ntuple_diskusage
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 0, 10**8))
    with pytest.raises(OSError, match="54 sites .*3800000 .*0.2 GB, 0.1 GB .*0.1 GB"):
        staging.check_space(plan, 3_800_000)
    write_shards(plan[:3], encoded, staging)  # what these take counts now, not the estimate
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 0, 10**5))
    staging.check_space(plan, 3_800_000)


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a filesystem here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("file_format", FORMATS)
def test_full_disk_keeps_finished_shards(tmp_path, reference, file_format):
    """A real one, which holds about half of the files; then it is made larger."""
    disk = tmp_path / "disk"
    room = "44k" if file_format == "tfrecord" else "800k"
    with small_disk(disk, room):
        with pytest.raises(OSError, match=r"shard .*No space left"):
            build(disk / "rxrx1", encoded, file_format=file_format)
        first = {name: path.stat().st_ino for name, path in staged(disk / "rxrx1").items()}
        assert 0 < len(first) < 8
        assert not list(disk.rglob("*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        encode = Encode(str(tmp_path / "log"))
        build(disk / "rxrx1", encode, file_format=file_format)
        left = [s for s in plan_shards(make_sites(), SITE_BYTES) if s.name not in first]
        assert len(encode.calls()) == sum(len(shard.sites) for shard in left)
        assert contents(disk / "rxrx1" / VERSION) == reference[file_format]
        assert os.listdir(disk / "rxrx1") == [VERSION]


# Beam

TWO_PROCESSES = ["--direct_num_workers=2", "--direct_running_mode=multi_processing"]


@pytest.mark.parametrize("flags", [[], pytest.param(TWO_PROCESSES, marks=pytest.mark.long)])
def test_beam_writes_the_same_files_and_resumes(tmp_path, reference, monkeypatch, flags):
    pytest.importorskip("apache_beam")
    from apache_beam.options.pipeline_options import PipelineOptions

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # workers import `Encode`
    plan, staging = plan_shards(make_sites(), SITE_BYTES), make_staging(tmp_path / "rxrx1")
    write_shards(plan[:2], encoded, staging)
    encode, options = Encode(str(tmp_path / "log")), PipelineOptions(flags)
    run = {"beam_runner": "FnApiRunner", "beam_options": options}
    written = write_shards(plan, encode, staging, **run)
    calls = encode.calls()
    expected = sorted(site.site_id for shard in plan[2:] for site in shard.sites)
    assert sorted(site_id for *_, site_id in calls) == expected
    others = {process for _, process, _ in calls} - {str(os.getpid())}
    assert len(others) == (2 if flags else 0)
    assert sum(part.examples for parts in written.values() for part in parts) == 54
    (tmp_path / "into").mkdir()
    staging.place(plan, tmp_path / "into")
    assert contents(tmp_path / "into").items() <= reference["tfrecord"].items()
    assert len(contents(tmp_path / "into")) == len(plan)


def test_beam_names_the_file_at_fault(tmp_path, monkeypatch):
    pytest.importorskip("apache_beam")
    plan, staging = plan_shards(make_sites(), SITE_BYTES), make_staging(tmp_path / "rxrx1")
    encode = Encode(str(tmp_path / "log"), fail_at=plan[3].sites[2].site_id)
    with pytest.raises(Exception, match=f"images/{encode.fail_at}.png"):
        write_shards(plan, encode, staging, beam_runner="FnApiRunner")
    assert plan[3].name not in staged(tmp_path / "rxrx1")
    assert not list(staging.folder.glob("*.tmp"))
    monkeypatch.setattr(shards_module, "__package__", "rxrx1")
    with pytest.raises(RuntimeError, match="--imports=tfds_builder.rxrx1"):
        write_shards(plan, encoded, staging, beam_runner="FnApiRunner")

"""Builds that are killed: at every change of a folder, and again while they recover."""

import itertools
import json
import multiprocessing
import os
import random
import signal
import traceback
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tiny_release import write_tiny_release

tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra `build`")

from tfds_builder.rxrx1 import Builder, Rxrx1Config, examples, shards  # noqa: E402
from tfds_builder.rxrx1 import rxrx1_dataset_builder as builder_module  # noqa: E402

SIZE = 16
VERSION = str(Builder.VERSION)
STEPS = ("link", "mkdir", "open", "remove", "rename", "replace", "rmdir", "unlink")


def kill_at(step: int) -> None:
    """Kills this process instead of its `step`-th (from 1) change of a folder."""
    counter = itertools.count(1)

    def instead(function):
        def change(*args, **kwargs):
            if next(counter) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return change

    for name in STEPS:
        setattr(os, name, instead(getattr(os, name)))


def build(release: Path, data_dir: Path, journal: Path, step: int, links: bool) -> None:
    """In a process of its own: several shards, and an encoder that notes what it encodes."""

    class Noting(examples.SiteEncoder):
        def __call__(self, site):
            with journal.open("a") as file:
                file.write(f"{site.site_id}\n")
            return super().__call__(site)

    def link(*_):
        raise PermissionError("Operation not permitted")

    builder_module.SiteEncoder = Noting
    shards.SHARD_BYTES = 8 * 6 * SIZE * SIZE  # eight sites
    if not links:
        os.link = link
    kill_at(step)
    config = Rxrx1Config(name="tiny", size=SIZE, experiments=["HUVEC-01", "U2OS-01"], plates=[1])
    Builder(config=config, data_dir=data_dir).download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=str(release))
    )


def in_fork(function, *args) -> int:
    """Exit status of a call in a fork of this process."""
    child = os.fork()
    if not child:
        try:
            function(*args)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at_every_step(root: Path, links: bool) -> None:
    """Builds in root/1, root/2 ... killed at that step, again at a random one, then left alone.

    root/N.json has [exit status, files of records before, sites encoded] of each of the three. The
    last folder is that of a build that came to its end first.
    """
    release, draw = write_tiny_release(root / "release", SIZE), random.Random(1)
    for step in itertools.count(1):
        data_dir, report = root / str(step), []
        for at in (step, draw.randrange(1, 40), 0):
            patterns = ("*-on-disk", "rxrx1-*")
            before = [path.name for pattern in patterns for path in data_dir.rglob(pattern)]
            journal = root / f"{step}-{len(report)}.txt"
            journal.touch()
            status = in_fork(build, release, data_dir, journal, at, links)
            if at == step and not status:
                return
            report.append([status, before, journal.read_text().split()])
        (root / f"{step}.json").write_text(json.dumps(report))


def contents(data_dir: Path) -> dict[str, bytes]:
    """All files of the dataset, which is all that lies beside it."""
    (folder,) = (data_dir / "rxrx1" / "tiny").iterdir()
    assert folder.name == VERSION
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.long
@pytest.mark.parametrize("links", [True, False], ids=["linked", "moved"])
def test_kill_at_every_step_loses_nothing(tmp_path, links):
    """Every end is the same, byte by byte, and of finished shards nothing is encoded again."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tensorflow", "tfds_builder.rxrx1"])
    child = context.Process(target=kill_at_every_step, args=(tmp_path, links))
    child.start()
    child.join()
    assert child.exitcode == 0
    reports = sorted(tmp_path.glob("*.json"))
    assert len(reports) > 25
    whole = tmp_path / str(len(reports) + 1)
    expected = contents(whole)
    listed = json.loads(expected["metadata.json"])["table"]["files"]
    sites: dict[str, set[str]] = {name: set() for name, _ in listed}
    for row in pq.read_table(next(whole.rglob("sites.parquet"))).to_pylist():
        sites[listed[row["shard"]][0]].add(row["site_id"])
    assert len(sites) > 3
    killed_with_all_finished = 0
    for path in reports:
        assert contents(path.with_suffix("")) == expected
        (first, *_), second, third = json.loads(path.read_text())
        assert first == -signal.SIGKILL and second[0] in (-signal.SIGKILL, 0) and third[0] == 0
        for _, before, encoded in (second, third):
            finished = [
                name
                for name in sites
                if name in before
                or any(f.startswith(name[len("rxrx1-") :].replace(".tfrecord", "")) for f in before)
            ]
            for name in finished:
                assert sites[name].isdisjoint(encoded), (path, name)
            killed_with_all_finished += len(finished) == len(sites)
    assert killed_with_all_finished > 5

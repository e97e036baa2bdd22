"""The record files of the dataset: planned beforehand, written by all cores or by Apache Beam.

TFDS's own writer takes examples in any number and order, so it buffers and sorts them, on one
thread, and starts from zero when killed. Here the records are known before the first image is
read: one a site, ordered by the hash of its id. So every file is a pure function of its sites: it
is written as a stream, in bounded memory, by whoever comes, and a build that was killed writes
only what is missing. Beam moves the names of the sites, never their pixels.
"""

import contextlib
import functools
import itertools
import pickle
import sys
import threading
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tensorflow_datasets.core import hashing
from tqdm import tqdm

from .examples import Encoded
from .machine import map_in_order
from .release.metadata import Site
from .staging import Shard, Staging, Written

# Raw pixels of a shard. A shard is what a killed build loses and what a Beam worker takes at a
# time. 256 sites of 512 px are 12 CPU seconds and 145 MB: 51 experiments give about 510 files, few
# enough for any filesystem, and enough for hundreds of workers.
SHARD_BYTES = 384 << 20
POLL_SECONDS = 2.0  # between two looks at what Beam's workers have finished

Encoder = Callable[[Site], Encoded]  # picklable, callable from threads


def plan_shards(sites: Iterable[Site], site_bytes: int) -> list[Shard]:
    """Deals the sites out to files; the same for any order of `sites`.

    The split of a site is its experiment. Inside a split records lie in the order in which TFDS's
    writer would put them, that of `tfds.core.hashing` salted with the split; the files of a split
    differ by one site at most.

    Args:
      sites: all sites of the dataset, each once.
      site_bytes: of one raw image; a shard holds at most SHARD_BYTES of them, or one site.
    """
    splits: dict[str, list[Site]] = {}
    for site in sites:
        splits.setdefault(site.experiment, []).append(site)
    limit = max(1, SHARD_BYTES // site_bytes)
    shards = []
    for split, members in sorted(splits.items()):
        hasher = hashing.Hasher(split)
        members.sort(key=lambda site: hasher.hash_key(site.site_id))
        total, count = len(members), -(-len(members) // limit)
        for i in range(count):
            cut = slice(total * i // count, total * (i + 1) // count)
            shards.append(Shard(split, i, count, tuple(members[cut])))
    return shards


def write_shards(
    shards: Sequence[Shard],
    encode: Encoder,
    staging: Staging,
    beam_runner: Any = None,
    beam_options: Any = None,
) -> dict[str, list[Written]]:
    """Writes those of the shards that are not finished yet. Only under `build_lock`.

    Args:
      shards: of the whole dataset, from `plan_shards`.
      beam_runner: a Beam runner or its name; this or `beam_options` makes Beam do the work.
        Workers need this package installed, `encode`'s files and the folder of `staging`.

    Returns:
      {split: what its shards hold, in order}.

    Raises:
      OSError: a file could not be written; finished shards are kept.
      Exception: whatever `encode` raised; under Beam a RuntimeError that quotes it.
    """
    staging.prepare()
    finished = staging.finished(shards)
    missing = [shard for shard in shards if shard.name not in finished]
    done = sum(written.examples for written in finished.values())
    if finished:
        splits = {shard.split for shard in shards}
        whole = len(splits - {shard.split for shard in missing})
        there = f"{whole} of {len(splits)} experiments, {len(finished)} of {len(shards)} shards"
        tqdm.write(f"Resuming: {there} are there", file=sys.stderr)
    total = sum(len(shard.sites) for shard in shards)
    with tqdm(total=total, initial=done, desc="Writing records", unit=" sites") as bar:
        if missing and (beam_runner is not None or beam_options is not None):
            _write_with_beam(missing, encode, staging, bar, beam_runner, beam_options)
        elif missing:
            _write_with_threads(missing, encode, staging, bar)
    finished = staging.finished(shards)
    written: dict[str, list[Written]] = {}
    for shard in shards:
        if shard.name not in finished:
            raise RuntimeError(
                f"shard {shard.name} is not in {staging.folder}, although every worker reported"
                " success; Beam workers on other machines need that folder on a shared filesystem"
            )
        written.setdefault(shard.split, []).append(finished[shard.name])
    return written


def _write_with_threads(
    shards: Sequence[Shard], encode: Encoder, staging: Staging, bar: tqdm
) -> None:
    """One stream of records through all shards: no core waits for the end of a file."""
    stream = map_in_order(encode, (site for shard in shards for site in shard.sites))
    with contextlib.closing(stream):  # stops the threads as well if a file cannot be written
        for shard in shards:
            records = itertools.islice(stream, len(shard.sites))
            staging.write(shard, _counted(records, bar))


def _counted(records: Iterable[Encoded], bar: tqdm) -> Iterable[Encoded]:
    for record in records:
        yield record
        bar.update()


def _write_with_beam(
    shards: Sequence[Shard], encode: Encoder, staging: Staging, bar: tqdm, runner: Any, options: Any
) -> None:
    """A pipeline over the shards; how many are written at once is Beam's business."""
    import apache_beam as beam  # here: three seconds, and most builds do without

    if __package__ != "tfds_builder.rxrx1":
        raise RuntimeError(
            f"Beam workers cannot import {__name__!r}: install this project and build by name,"
            " `tfds build --imports=tfds_builder.rxrx1 rxrx1/CONFIG ...`"
        )
    # A whole plan has 125,510 sites; compressed they fit into the job description of any runner.
    elements = [zlib.compress(pickle.dumps(shard)) for shard in shards]
    write = functools.partial(_write_one, encode=encode, staging=staging)
    pipeline = beam.Pipeline(runner=runner, options=options)
    _ = pipeline | beam.Create(elements) | "Write shard" >> beam.Map(write)  # Create reshuffles
    before, stop = bar.n, threading.Event()

    def watch() -> None:
        while not stop.wait(POLL_SECONDS):
            seen = staging.finished(shards)
            bar.update(before + sum(written.examples for written in seen.values()) - bar.n)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        pipeline.run().wait_until_finish()
    finally:
        stop.set()
        watcher.join()


def _write_one(element: bytes, encode: Encoder, staging: Staging) -> None:
    """Writes one shard in a Beam worker; one that an earlier try has finished is left alone."""
    shard: Shard = pickle.loads(zlib.decompress(element))
    if not staging.finished([shard]):
        staging.write(shard, map(encode, shard.sites))

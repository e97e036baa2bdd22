"""Loaders of normalised float32 batches: ours, PyTorch's over PNG files, gzip TFRecords.

    python -m benchmarks.loaders [--images DIR] [--sites 288] [--rounds 3] [--work DIR]

All deliver every site once in random order as float32 (x - mean) / std, with two worker threads or
processes at most, from a warm page cache, each in an interpreter of its own:
  PNG: a torch DataLoader whose dataset decodes six PNG files a site with Pillow (as WILDS does) or
    OpenCV, for 0, 1 and 2 workers; [N, 6, H, W]
  gzip: TFRecord files compressed with gzip that hold [H, W, 6] bytes (as rxrx1-utils writes them),
    through tf.data; [N, H, W, 6]
  ours: rxrx1_jax.data.stream over the records of our builder; [N, H, W, 6] in a jax.Array, and
    its host half alone, uint8 [N, 6, H, W]
"""

import argparse
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from benchmarks.build import build_dataset, image_size, read_images, stream_of, write_release
from benchmarks.timing import Task, Timing, compare, describe, markdown, remote

BATCH, WORKERS = 16, 2
PLATE_SITES = 308  # one plate, so that all loaders normalise with one mean and std
GZIP_SHARDS = 4

Passes = Callable[[], Iterator]  # one pass over the data: an iterator of batches of images


def torch_passes(
    files: Sequence[Sequence[Path]], mean: np.ndarray, std: np.ndarray, reader: str, workers: int
) -> Passes:
    """reader: "Pillow" or "OpenCV"; mean and std: float32 [6]."""
    import cv2
    import torch
    from PIL import Image

    torch.set_num_threads(1)
    shift, scale = (torch.from_numpy(part)[:, None, None] for part in (mean, std))

    def pixels(path: Path) -> np.ndarray:
        if reader == "Pillow":
            return np.asarray(Image.open(path))
        return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)

    class Sites(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, i: int) -> torch.Tensor:
            image = torch.from_numpy(np.stack([pixels(path) for path in files[i]]))
            return image.float().sub_(shift).div_(scale)

    several = {"persistent_workers": True, "multiprocessing_context": "fork"} if workers else {}
    loader = torch.utils.data.DataLoader(
        Sites(), BATCH, shuffle=True, num_workers=workers, **several
    )
    return lambda: iter(loader)


def gzip_passes(shards: Sequence[str], shape: tuple, mean: np.ndarray, std: np.ndarray) -> Passes:
    """shards: from `write_gzip`; shape: (6, H, W)."""
    tf = _tensorflow()
    channels, height, width = shape
    description = {"image": tf.io.FixedLenFeature([], tf.string)}

    def parse(example):
        stored = tf.io.parse_single_example(example, description)["image"]
        image = tf.reshape(tf.io.decode_raw(stored, "uint8"), (height, width, channels))
        return (tf.cast(image, tf.float32) - mean) / std

    dataset = tf.data.TFRecordDataset(shards, "GZIP", num_parallel_reads=WORKERS)
    dataset = dataset.shuffle(PLATE_SITES).map(parse, WORKERS).batch(BATCH).prefetch(1)
    options = tf.data.Options()
    options.threading.private_threadpool_size = WORKERS
    return lambda: iter(dataset.with_options(options))


def our_passes(dataset: Path, kind: str) -> Passes:
    """kind: "planes" (the host half), "float32" or "augmented"."""
    import jax

    from rxrx1_jax.data.samplers import shuffled
    from rxrx1_jax.data.stream import Augmentation, Host

    augment = Augmentation(orient=kind == "augmented")
    stream = stream_of(dataset, augment=augment, host=Host(WORKERS))
    rows = stream.split.train
    steps, rest = divmod(len(rows), BATCH)
    if rest:
        raise ValueError(f"{len(rows)} sites: expected a multiple of the batch, {BATCH}")
    order = shuffled()(stream.images.sites, stream.split, BATCH, 0)
    store = stream.store(rows)
    make = jax.jit(lambda store, draw: stream.batch(store, draw, 0, True)["image"])

    def one_pass() -> Iterator:
        for draw in stream.draws(order, rows, 0, steps):
            if kind == "planes":
                yield draw.planes[0].block_until_ready()
            else:
                yield make(store, draw).block_until_ready()

    return one_pass


def consume(make: Callable[..., Passes], *arguments) -> Task:
    """A task that reads one pass of `make(*arguments)`."""
    one_pass = make(*arguments)

    def task() -> None:
        for _ in one_pass():
            pass

    return task


def write_gzip(dataset: Path, folder: Path) -> list[str]:
    """The images of our dataset as gzip TFRecord files of [H, W, 6] bytes; their names."""
    from rxrx1_jax.data.records import Records

    tf = _tensorflow()
    records = Records(dataset)
    names = []
    for shard in range(GZIP_SHARDS):
        names.append(str(folder / f"{shard}.tfrecord.gz"))
        with tf.io.TFRecordWriter(names[-1], "GZIP") as writer:
            for i in range(shard, len(records), GZIP_SHARDS):
                image = np.ascontiguousarray(np.moveaxis(records[i], 0, -1)).tobytes()
                value = tf.train.Feature(bytes_list=tf.train.BytesList(value=[image]))
                features = tf.train.Features(feature={"image": value})
                writer.write(tf.train.Example(features=features).SerializeToString())
    return names


def _tensorflow():
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    return tf


def prepare(images: Sequence[Sequence[bytes]], sites: int, work: Path) -> dict[str, Task]:
    """Writes the data of all loaders below `work` and starts them."""
    if not 0 < sites <= PLATE_SITES or sites % BATCH:
        raise ValueError(f"{sites} sites: expected a multiple of {BATCH} up to {PLATE_SITES}")
    files = write_release(work / "release", images, sites)
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # TensorFlow stays out of here
        arguments = (work / "release", work / "data", image_size(images))
        dataset = pool.apply(build_dataset, arguments)
        shards = pool.apply(write_gzip, (dataset, work))
    from rxrx1_jax.data.records import Records

    records = Records(dataset)
    mean, std = (records.sites[name][0] for name in ("control_mean", "control_std"))
    tasks = {}
    for reader in ("Pillow", "OpenCV"):
        for workers in range(WORKERS + 1):
            tasks[f"PNG, {reader}, {workers} workers"] = remote(
                consume, torch_passes, files, mean, std, reader, workers
            )
    tasks["gzip TFRecords"] = remote(consume, gzip_passes, shards, records.image_shape, mean, std)
    for name, kind in OURS.items():
        tasks[name] = remote(consume, our_passes, dataset, kind)
    return tasks


OURS = {
    "ours, uint8 planes": "planes",
    "ours, float32": "float32",
    "ours, float32, augmented": "augmented",
}
BASELINE = f"PNG, Pillow, {WORKERS} workers"


def summary(timings: Sequence[Timing]) -> str:
    """Ours against the best of the others, by the medians."""
    lines = []
    for unit in ("cpu_ms", "wall_ms"):
        ms = {timing.name: getattr(timing, unit) for timing in timings}
        best = {
            kind: min(value for name, value in ms.items() if name.startswith(kind))
            for kind in ("PNG, Pillow", "PNG, OpenCV", "gzip")
        }
        for name in OURS:
            ratios = ", ".join(f"{value / ms[name]:.1f} x {kind}" for kind, value in best.items())
            lines.append(f"{name}, {unit.removesuffix('_ms')} time: {ratios}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder with *_w1.png to *_w6.png files")
    parser.add_argument("--sites", type=int, default=288, help=f"multiple of {BATCH}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, help="empty folder for the data; default: temporary")
    options = parser.parse_args()
    images = read_images(options.images)
    packages = (
        "numpy", "jax", "deflate", "torch", "pillow", "opencv-python-headless",
        "tensorflow",
    )  # fmt: skip
    print(describe(packages, data=f"{len(images)} sites of {image_size(images)} px repeated",
                   sites=options.sites, rounds=options.rounds, batch=BATCH,
                   GLIBC_TUNABLES=os.environ.get("GLIBC_TUNABLES", "not set")))  # fmt: skip
    with nullcontext(options.work) if options.work else tempfile.TemporaryDirectory() as work:
        Path(work).mkdir(parents=True, exist_ok=True)
        tasks = prepare(images, options.sites, Path(work))
        timings = compare(tasks, options.sites, BASELINE, options.rounds)
    print(markdown(timings, "site"))
    print(summary(timings))


if __name__ == "__main__":
    main()

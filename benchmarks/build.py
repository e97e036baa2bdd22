"""Sites a second of `tfds build` beside a plain copy of the same files.

    python -m benchmarks.build [--images DIR] [--sites 96] [--rounds 3] [--cores 1 2]

Both run in an interpreter that is already up, restricted to the given number of cores; what they
write goes to the page cache. Also the release and the dataset that the other benchmarks read.
"""

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.timing import Task, compare, describe, markdown, remote

if TYPE_CHECKING:
    from rxrx1_jax.data.stream import Stream

REAL_IMAGES = Path(__file__).parents[2] / "shared/realdata/images"
SYNTHETIC_SIZE, SYNTHETIC_SITES = 512, 8  # pixels; sites drawn, then repeated
RELEASE_SITES = 125_510  # of the whole RxRx1
HEADER = "site_id,well_id,cell_type,dataset,experiment,plate,well,site,well_type,sirna,sirna_id"


def read_images(folder: Path | None) -> list[list[bytes]]:
    """The six PNG files of each site below `folder`; None: the real images, or else drawn ones.

    A site is six files *_w1.png to *_w6.png. Raises ValueError where there is none.
    """
    if folder is None and not REAL_IMAGES.is_dir():
        return _drawn_images()
    folder = folder or REAL_IMAGES
    stems = [str(path)[: -len("1.png")] for path in sorted(folder.rglob("*_w1.png"))]
    if not stems:
        raise ValueError(f"{folder}: no *_w1.png; expected six PNG files *_w1 to *_w6 a site")
    return [[Path(f"{stem}{c}.png").read_bytes() for c in range(1, 7)] for stem in stems]


def _drawn_images() -> list[list[bytes]]:
    import cv2

    from tfds_builder.rxrx1 import synthetic

    screen = synthetic.Screen(size=SYNTHETIC_SIZE, field=SYNTHETIC_SIZE)
    sites = synthetic.screen_sites(screen)
    chosen = sites[:: len(sites) // SYNTHETIC_SITES][:SYNTHETIC_SITES]
    planes = [synthetic.render_site(screen, site) for site in chosen]
    return [[cv2.imencode(".png", plane)[1].tobytes() for plane in six] for six in planes]


def write_release(root: Path, images: Sequence[Sequence[bytes]], count: int) -> list[list[Path]]:
    """Writes an official-layout release of `count` sites that repeats `images`; the six files each.

    One experiment of at most 4 x 308 wells, one site a well, in each plate one control well.
    """
    wells = [f"{row}{column:02d}" for row in "BCDEFGHIJKLMNO" for column in range(2, 24)]
    lines, files = [HEADER], []
    for k in range(count):
        number, well = divmod(k, len(wells))
        if number >= 4 * 9:
            raise ValueError(f"{count} sites: expected at most {4 * 9 * len(wells)}")
        experiment, plate, control = f"HUVEC-0{number // 4 + 1}", number % 4 + 1, well == 0
        well_id = f"{experiment}_{plate}_{wells[well]}"
        what = "negative_control,EMPTY,1138" if control else f"treatment,s{well},{well}"
        lines.append(
            f"{well_id}_1,{well_id},HUVEC,train,{experiment},{plate},{wells[well]},1,{what}"
        )
        folder = root / "images" / experiment / f"Plate{plate}"
        folder.mkdir(parents=True, exist_ok=True)
        files.append([folder / f"{wells[well]}_s1_w{c}.png" for c in range(1, 7)])
        for path, png in zip(files[-1], images[k % len(images)], strict=True):
            path.write_bytes(png)
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")
    return files


def build_dataset(release: Path, data_dir: Path, size: int) -> Path:
    """Builds the release of `size` px images with our builder; the dataset's folder."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow_datasets as tfds

    from tfds_builder.rxrx1 import Builder, Rxrx1Config

    tfds.disable_progress_bar()
    builder = Builder(config=Rxrx1Config(name="benchmark", size=size), data_dir=data_dir)
    settings = tfds.download.DownloadConfig(manual_dir=str(release))
    with contextlib.redirect_stdout(sys.stderr):  # TFDS prints; tables have stdout to themselves
        builder.download_and_prepare(download_config=settings)
    return Path(builder.data_path)


def stream_of(dataset: Path, **changes: Any) -> "Stream":
    """All sites as the training set: what is trained on does not matter here, how fast does."""
    from rxrx1_jax.data.images import Vocabulary
    from rxrx1_jax.data.normalisation import plate_control
    from rxrx1_jax.data.records import Records
    from rxrx1_jax.data.splits import Split
    from rxrx1_jax.data.stream import Stream

    images: Any = Records(dataset)
    everything = np.arange(len(images))
    none = everything[:0]
    split = Split(everything, none, none, none, {})
    vocabulary = Vocabulary.of(images.sites, np.unique(images.sites["sirna_id"]))
    return Stream(images, split, vocabulary, plate_control(), **changes)


def image_size(images: Sequence[Sequence[bytes]]) -> int:
    """Width in pixels of the first image, from the PNG's header."""
    return int.from_bytes(images[0][0][16:20], "big")


def _use_cores(count: int) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def make_build(release: Path, work: Path, size: int, cores: int) -> Task:
    """A task that builds the dataset and deletes it."""
    _use_cores(cores)  # before TensorFlow is imported and sizes its thread pools

    def task() -> None:
        with tempfile.TemporaryDirectory(dir=work) as data_dir:
            build_dataset(release, Path(data_dir), size)

    return task


def make_copy(release: Path, work: Path, cores: int) -> Task:
    """A task that copies every file of the release and deletes the copies."""
    _use_cores(cores)

    def task() -> None:
        with tempfile.TemporaryDirectory(dir=work) as copy:
            shutil.copytree(release, Path(copy) / "release", copy_function=shutil.copyfile)

    return task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder with *_w1.png to *_w6.png files")
    parser.add_argument("--sites", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    images = read_images(options.images)
    size = image_size(images)
    packages = ("numpy", "opencv-python-headless", "deflate", "tensorflow-datasets")
    data = f"{len(images)} sites of {size} px repeated"
    print(describe(packages, data=data, sites=options.sites, rounds=options.rounds))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        release = work / "release"
        write_release(release, images, options.sites)
        tasks = {}
        for cores in options.cores:
            tasks[f"copy, {cores} core(s)"] = remote(make_copy, release, work, cores)
            tasks[f"tfds build, {cores} core(s)"] = remote(make_build, release, work, size, cores)
        timings = compare(tasks, options.sites, next(iter(tasks)), options.rounds)
    print(markdown(timings, "site"))
    for t in timings:
        hours, cpu_hours = (ms * RELEASE_SITES / 3.6e6 for ms in (t.wall_ms, t.cpu_ms))
        print(f"{t.name}: {1000 / t.wall_ms:.1f} sites a second; {RELEASE_SITES:,} sites would"
              f" take {hours:.2f} hours and {cpu_hours:.2f} CPU hours")  # fmt: skip


if __name__ == "__main__":
    main()

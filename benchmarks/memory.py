"""Memory of a process that reads training batches: flat over time, and a formula of the settings.

    python -m benchmarks.memory [--images DIR] [--settings 16x2 16x8 32x4] [--minutes 0.5]
    nice -n 19 python -m benchmarks.memory --settings 16x4 --minutes 60 --share 0.1

Every setting, batch size x prefetch, is read in an interpreter of its own. `--share` slows the
reading down to that share of one core. Formula: as planes `prefetch` batches being read, a finished
one and one on the device, as floats (four times as large) the consumer's and the one being made;
over a base, which is the process after a batch of one site.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from benchmarks.build import build_dataset, image_size, read_images, stream_of, write_release
from benchmarks.timing import describe

MB = 1e6


def read(
    dataset: Path, batch: int, prefetch: int, minutes: float, share: float, every: float
) -> Iterator[str]:
    """Reads augmented batches for `minutes`; Markdown rows with the RSS at minutes 1, every, ...

    every: minutes between rows; each has the largest RSS since the row before.
    """
    import jax

    from rxrx1_jax.data.samplers import shuffled
    from rxrx1_jax.data.stream import Host

    def batches(size: int, ahead: int) -> Iterator[jax.Array]:
        stream = stream_of(dataset, host=Host(prefetch=ahead))
        rows, order = stream.split.train, shuffled()(stream.images.sites, stream.split, size, 0)
        store = stream.store(rows)
        make = jax.jit(lambda store, draw: stream.batch(store, draw, 0, True)["image"])
        for draw in stream.draws(order, rows, 0, sys.maxsize):
            yield make(store, draw)

    process = psutil.Process()
    planes = next(batches(1, 1)).nbytes // 4  # of a site
    base = process.memory_info().rss
    expected = planes * batch * (prefetch + 2 + 2 * 4)
    images = batches(batch, prefetch)
    started, cpu_started = time.monotonic(), time.process_time()
    due, most, sites = min(1.0, every), 0, 0
    while due <= minutes:
        next(images).block_until_ready()
        sites += batch
        rss = process.memory_info().rss
        most = max(most, rss)
        elapsed = time.monotonic() - started
        if elapsed >= 60 * due:
            yield (
                f"| {batch} x {prefetch} | {due:.4g} | {sites:,} | {rss / MB:.0f} | {most / MB:.0f}"
                f" | {(base + expected) / MB:.0f} = {base / MB:.0f} + {expected / MB:.0f} |"
            )
            most = 0
            due = every if due < every else due + every
        time.sleep(max(0.0, (time.process_time() - cpu_started) / share - elapsed))


def _print_rows(*arguments) -> None:
    for row in read(*arguments):
        print(row, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder with *_w1.png to *_w6.png files")
    parser.add_argument("--sites", type=int, default=96)
    parser.add_argument("--settings", nargs="+", default=["16x2", "16x8", "32x4"])
    parser.add_argument("--minutes", type=float, default=0.5, help="of reading, per setting")
    parser.add_argument("--every", type=float, default=10.0, help="minutes between rows")
    parser.add_argument("--share", type=float, default=2.0, help="of one core, at most")
    options = parser.parse_args()
    images = read_images(options.images)
    data = f"{len(images)} sites of {image_size(images)} px repeated"
    packages = ("numpy", "jax", "deflate")
    print(describe(packages, data=data, sites=options.sites, minutes=options.minutes))
    every = min(options.every, options.minutes)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as work:
        write_release(Path(work) / "release", images, options.sites)
        arguments = (Path(work) / "release", Path(work) / "data", image_size(images))
        with context.Pool(1) as pool:  # TensorFlow stays out of the processes that are measured
            dataset = pool.apply(build_dataset, arguments)
        print("| batch x prefetch | minute | sites read | RSS, MB | largest since | formula, MB |")
        print("|---|---|---|---|---|---|", flush=True)
        for setting in options.settings:
            batch, prefetch = map(int, setting.split("x"))
            reading = (dataset, batch, prefetch, options.minutes, options.share, every)
            process = context.Process(target=_print_rows, args=reading)
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(process.exitcode)


if __name__ == "__main__":
    main()

"""Control statistics: the mean and standard deviation that standardise a plate.

The paper standardises intensities "by the mean and standard deviation of the control intensities
per channel per plate". Pixels of positive and negative controls are pooled: untreated wells alone
are 1.0-2.7 times brighter than their plate at large. Sums are exact integers, so the figures
depend neither on the order of the files nor on the number of threads.
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from .release import ReleaseError, Site, usable_cpus

CONTROL_TYPES = ("positive_control", "negative_control")
_LEVELS = np.arange(256, dtype=np.int64)

T = TypeVar("T")
R = TypeVar("R")


class ControlSums(NamedTuple):
    """Exact pixel sums per channel, over the sites of one group of wells."""

    pixels: int  # of one channel
    sum: tuple[int, ...]  # [6]
    sum_of_squares: tuple[int, ...]  # [6]


Key = tuple[str, int, str]  # experiment, plate, well_type


def image_sums(image: np.ndarray) -> ControlSums:
    """Sums over the pixels of one image, uint8 [C, H, W]."""
    histograms = [np.bincount(plane.ravel(), minlength=256) for plane in image]
    return ControlSums(
        image[0].size,
        tuple(int(h @ _LEVELS) for h in histograms),
        tuple(int(h @ _LEVELS**2) for h in histograms),
    )


def pool(parts: Iterable[ControlSums]) -> ControlSums:
    """Sums of a union of disjoint groups of pixels."""
    counts, sums, squares = zip(*parts, strict=True)
    return ControlSums(
        sum(counts),
        tuple(sum(channel) for channel in zip(*sums, strict=True)),
        tuple(sum(channel) for channel in zip(*squares, strict=True)),
    )


def mean_and_std(sums: ControlSums) -> tuple[np.ndarray, np.ndarray]:
    """Mean and population standard deviation, float32 [6] each, in counts (0..255).

    S1/n and sqrt((n*S2 - S1^2) / n^2) in Python integers: rounded once, no cancellation. A
    constant channel has a standard deviation of zero; it is left to consumers to guard it.
    """
    n = sums.pixels
    mean = [s1 / n for s1 in sums.sum]
    std = [
        math.sqrt((n * s2 - s1 * s1) / (n * n))
        for s1, s2 in zip(sums.sum, sums.sum_of_squares, strict=True)
    ]
    return np.array(mean, np.float32), np.array(std, np.float32)


def control_sums(
    sites: Sequence[Site], read: Callable[[Site], np.ndarray], progress: bool = True
) -> dict[Key, ControlSums]:
    """Reads all control sites: {(experiment, plate, well_type): sums}, groups with a site only.

    Args:
      sites: any sites; treatments are passed over.
      read: site -> uint8 [6, H, W].
      progress: shows a bar.
    """
    controls = [site for site in sites if site.well_type in CONTROL_TYPES]
    totals: dict[Key, ControlSums] = {}
    results = map_in_order(lambda site: image_sums(read(site)), controls)
    bar = tqdm(results, "Reading controls", len(controls), unit=" sites", disable=not progress)
    for site, sums in zip(controls, bar, strict=True):
        key = (site.experiment, site.plate, site.well_type)
        totals[key] = pool((totals[key], sums)) if key in totals else sums
    return totals


def plate_statistics(
    sites: Sequence[Site], sums: Mapping[Key, ControlSums]
) -> dict[tuple[str, int], tuple[np.ndarray, np.ndarray]]:
    """Control mean and std of every plate: {(experiment, plate): (float32 [6], float32 [6])}.

    A plate without controls takes the pooled controls of its experiment, and the log says so.

    Raises:
      ReleaseError: an experiment has no control at all.
    """
    statistics = {}
    for experiment, plate in sorted({(site.experiment, site.plate) for site in sites}):
        groups = [s for (e, p, _), s in sums.items() if e == experiment and p == plate]
        if not groups:
            groups = [s for (e, _, _), s in sums.items() if e == experiment]
            if not groups:
                raise ReleaseError(
                    f"experiment {experiment} has no control wells, so its intensities cannot be"
                    " standardised; expected positive_control or negative_control rows in"
                    " metadata.csv: add them, or remove the experiment"
                )
            logging.warning(
                "%s plate %d has no control wells: the controls of the whole experiment serve",
                experiment,
                plate,
            )
        statistics[experiment, plate] = mean_and_std(pool(groups))
    return statistics


def sums_to_json(sums: Mapping[Key, ControlSums]) -> dict[str, dict[str, dict[str, dict]]]:
    """{experiment: {str(plate): {well_type: {"count", "sum", "sum_of_squares"}}}}."""
    tree: dict[str, dict[str, dict[str, dict]]] = {}
    for (experiment, plate, well_type), group in sorted(sums.items()):
        tree.setdefault(experiment, {}).setdefault(str(plate), {})[well_type] = {
            "count": group.pixels,
            "sum": list(group.sum),
            "sum_of_squares": list(group.sum_of_squares),
        }
    return tree


def map_in_order(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`map` over a pool of threads, in order, with a bounded look-ahead.

    Unlike `Executor.map` it holds few results at a time, whatever the number of items. An
    exception, or a consumer that stops early, cancels what has not begun.
    """
    threads = usable_cpus()
    executor = ThreadPoolExecutor(threads)
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(executor.submit(function, item))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)

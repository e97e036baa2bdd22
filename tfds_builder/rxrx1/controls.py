"""Control statistics: the mean and standard deviation that standardise a plate.

The paper standardises intensities "by the mean and standard deviation of the control intensities
per channel per plate". Pixels of positive and negative controls are pooled, both sites of a well:
untreated wells alone are 1.0-2.7 times brighter than their plate at large. Sums are exact
integers, so the figures depend neither on the order of the sites nor on the number of threads.

A part of a release may have plates, even experiments, without any control. What serves a plate is
the first usable of SOURCES; a group of wells is usable if none of its channels is constant.
"""

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from .machine import map_in_order
from .release.metadata import Site

CONTROL_TYPES = ("positive_control", "negative_control")
SOURCES = {  # of the statistics of a plate, best first
    "plate_controls": "its own controls",
    "experiment_controls": "the controls of its experiment",
    "plate_sites": "all its sites",
    "experiment_sites": "all sites of its experiment",
}
_LEVELS = np.arange(256, dtype=np.int64)

Key = tuple[str, int, str]  # experiment, plate, well_type
Plate = tuple[str, int]  # experiment, plate
MeanStd = tuple[np.ndarray, np.ndarray]  # float32 [C] each, counts


class PixelSums(NamedTuple):
    """Exact pixel sums per channel, over the sites of one group of wells."""

    pixels: int  # of one channel
    sum: tuple[int, ...]  # [C]
    sum_of_squares: tuple[int, ...]  # [C]


@dataclass(frozen=True)
class Statistics:
    """What standardises the images of a dataset. Equal for any order of the sites.

    Attributes:
      sums: exact sums of all controls, by plate and well_type; of treatments too in experiments
        whose controls are not usable. Everything else follows from them.
      plate: mean and population standard deviation of each plate, float32 [C] each, in counts.
      source: which of SOURCES they come from.
    """

    sums: Mapping[Key, PixelSums]
    plate: Mapping[Plate, MeanStd]
    source: Mapping[Plate, str]

    def to_json(self) -> dict[str, Any]:
        """Two entries of metadata.json.

        control_pixels: {experiment: {plate: {well_type: {count, sum [C], sum_of_squares [C]}}}},
          integers.
        control_statistics: the same without arithmetic, {mean [C], std [C]} each:
          plate {experiment: {plate: ...}} and experiment {experiment: ...} with their source;
          negative_control {plate, experiment}: untreated wells alone, where there are any.
        Decimals are the shortest that give the float32 of the records back.
        """
        pixels: dict[str, dict] = {}
        plates: dict[str, dict] = {}
        untreated: dict[str, dict] = {}
        for (experiment, plate, well_type), group in sorted(self.sums.items()):
            pixels.setdefault(experiment, {}).setdefault(str(plate), {})[well_type] = {
                "count": group.pixels,
                "sum": list(group.sum),
                "sum_of_squares": list(group.sum_of_squares),
            }
            if well_type == "negative_control":
                untreated.setdefault(experiment, {})[str(plate)] = _entry(mean_and_std(group))
        for (experiment, plate), statistics in sorted(self.plate.items()):
            entry = _entry(statistics, self.source[experiment, plate])
            plates.setdefault(experiment, {})[str(plate)] = entry
        names = sorted(plates)
        negative = {name: _groups(self.sums, name, types=("negative_control",)) for name in names}
        return {
            "control_pixels": pixels,
            "control_statistics": {
                "plate": plates,
                "experiment": {name: _entry(*_choose(self.sums, name)) for name in names},
                "negative_control": {
                    "plate": untreated,
                    "experiment": {
                        name: _entry(mean_and_std(pool(groups)))
                        for name, groups in negative.items()
                        if groups
                    },
                },
            },
        }


def read_statistics(
    sites: Sequence[Site], read: Callable[[Site], np.ndarray], progress: bool = True
) -> Statistics:
    """Reads the control sites, and all sites of experiments without usable controls.

    One warning tells which plates are not standardised by controls of their own.

    Args:
      sites: all sites of the dataset.
      read: site -> uint8 [C, H, W]; called from several threads.
      progress: shows a bar.
    """
    controls = [site for site in sites if site.well_type in CONTROL_TYPES]
    sums = _read_sums(controls, read, "Reading controls", progress)
    # Where the pooled controls of an experiment are not usable, those of none of its plates are.
    names = sorted({site.experiment for site in sites})
    lacking = {name for name in names if not usable(_groups(sums, name, types=CONTROL_TYPES))}
    others = [s for s in sites if s.experiment in lacking and s.well_type not in CONTROL_TYPES]
    if others:
        label = f"Reading {len(lacking)} experiments without usable controls"
        sums |= _read_sums(others, read, label, progress)
    statistics = choose_statistics({(site.experiment, site.plate) for site in sites}, sums)
    _warn(statistics)
    return statistics


def choose_statistics(plates: Iterable[Plate], sums: Mapping[Key, PixelSums]) -> Statistics:
    """The statistics that follow from the sums, for plates that have sums in their experiment."""
    chosen = {(name, number): _choose(sums, name, number) for name, number in sorted(plates)}
    return Statistics(
        dict(sums),
        {plate: statistics for plate, (statistics, _) in chosen.items()},
        {plate: source for plate, (_, source) in chosen.items()},
    )


def sums_from_json(tree: Mapping[str, Mapping]) -> dict[Key, PixelSums]:
    """`Statistics.sums` from metadata.json's control_pixels."""
    return {
        (experiment, int(plate), well_type): PixelSums(
            group["count"], tuple(group["sum"]), tuple(group["sum_of_squares"])
        )
        for experiment, plates in tree.items()
        for plate, groups in plates.items()
        for well_type, group in groups.items()
    }


def image_sums(image: np.ndarray) -> PixelSums:
    """Sums over the pixels of one image, uint8 [C, H, W]."""
    histograms = [np.bincount(plane.ravel(), minlength=256) for plane in image]
    return PixelSums(
        image[0].size,
        tuple(int(h @ _LEVELS) for h in histograms),
        tuple(int(h @ _LEVELS**2) for h in histograms),
    )


def pool(parts: Iterable[PixelSums]) -> PixelSums:
    """Sums of a union of disjoint groups of pixels."""
    counts, sums, squares = zip(*parts, strict=True)
    return PixelSums(
        sum(counts),
        tuple(sum(channel) for channel in zip(*sums, strict=True)),
        tuple(sum(channel) for channel in zip(*squares, strict=True)),
    )


def mean_and_std(sums: PixelSums) -> MeanStd:
    """Mean and population standard deviation, float32 [C] each, in counts (0..255).

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


def usable(groups: Sequence[PixelSums]) -> bool:
    """Whether the groups together hold pixels, and more than one value in every channel."""
    if not groups:
        return False
    n, first, second = pool(groups)
    return all(n * s2 > s1 * s1 for s1, s2 in zip(first, second, strict=True))


def _choose(
    sums: Mapping[Key, PixelSums], experiment: str, plate: int | None = None
) -> tuple[MeanStd, str]:
    """Statistics and source of one plate, or (plate None) of a whole experiment."""
    every = {
        "plate_controls": _groups(sums, experiment, plate, CONTROL_TYPES),
        "experiment_controls": _groups(sums, experiment, None, CONTROL_TYPES),
        "plate_sites": _groups(sums, experiment, plate),
        "experiment_sites": _groups(sums, experiment),
    }
    found = {
        source: every[source]
        for source in SOURCES
        if every[source] and (plate is not None or source.startswith("experiment"))
    }
    # With a channel that is constant all over the experiment, the best source still serves.
    source = next((s for s, groups in found.items() if usable(groups)), next(iter(found)))
    return mean_and_std(pool(found[source])), source


def _groups(
    sums: Mapping[Key, PixelSums],
    experiment: str,
    plate: int | None = None,
    types: Sequence[str] | None = None,
) -> list[PixelSums]:
    return [
        group
        for (e, p, well_type), group in sums.items()
        if e == experiment and plate in (None, p) and (types is None or well_type in types)
    ]


def _read_sums(
    sites: Sequence[Site], read: Callable[[Site], np.ndarray], label: str, progress: bool
) -> dict[Key, PixelSums]:
    totals: dict[Key, PixelSums] = {}
    results = map_in_order(lambda site: image_sums(read(site)), sites)
    bar = tqdm(results, label, len(sites), unit=" sites", disable=not progress)
    for site, sums in zip(sites, bar, strict=True):
        key = (site.experiment, site.plate, site.well_type)
        totals[key] = pool((totals[key], sums)) if key in totals else sums
    return totals


def _entry(statistics: MeanStd, source: str | None = None) -> dict[str, Any]:
    mean, std = ([float(str(value)) for value in part] for part in statistics)
    return {"mean": mean, "std": std} | ({"source": source} if source else {})


def _warn(statistics: Statistics) -> None:
    """Logs which plates fell back on what, and why."""
    by_source: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    reasons: Counter[str] = Counter()
    constant = []
    for (experiment, plate), source in statistics.source.items():
        if source != "plate_controls":
            by_source[source][experiment].append(plate)
            own = _groups(statistics.sums, experiment, plate, CONTROL_TYPES)
            reasons["with a constant channel in them" if own else "without control wells"] += 1
        if not statistics.plate[experiment, plate][1].all():
            constant.append(f"{experiment} plate {plate}")
    if by_source:
        why = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        served = "; ".join(
            f"{SOURCES[source]}: "
            + ", ".join(f"{name} {'+'.join(map(str, plates))}" for name, plates in found.items())
            for source, found in by_source.items()
        )
        count = sum(reasons.values())
        logging.warning(
            "%d of %d plates have no usable controls of their own (%s). What serves them: %s",
            count, len(statistics.source), why, served,
        )  # fmt: skip
    if constant:
        logging.warning(
            "%d plates keep a standard deviation of zero, a channel of their whole experiment is"
            " constant: %s",
            len(constant), ", ".join(constant),
        )  # fmt: skip

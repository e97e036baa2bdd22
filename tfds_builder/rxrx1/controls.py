"""Control statistics: the mean and standard deviation that standardise a plate.

The paper standardises intensities "by the mean and standard deviation of the control intensities
per channel per plate". Pixels of positive and negative controls are pooled, both sites of a well:
untreated wells alone are 1.0-2.7 times brighter than their plate at large. Sums are exact, so the
figures depend neither on the order of the sites nor on the number of threads.

A part of a release may have plates, even experiments, without any control. What serves a plate is
the first usable of SOURCES; a group of wells is usable if none of its channels is constant.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
_LEVELS = np.arange(256)

Sums = np.ndarray  # int64 [3, C]: pixels, their sum and the sum of their squares, of each channel
Key = tuple[str, int, str]  # experiment, plate, well_type
Plate = tuple[str, int]  # experiment, plate
MeanStd = tuple[np.ndarray, np.ndarray]  # float32 [C] each, counts


@dataclass(frozen=True)
class Statistics:
    """What standardises the images of a dataset. Equal for any order of the sites.

    Attributes:
      sums: of all controls, by plate and well_type; of treatments too in experiments whose controls
        are not usable. Everything else follows from them.
      plate: mean and population standard deviation of each plate.
      source: which of SOURCES they come from.
    """

    sums: Mapping[Key, Sums]
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
        pixels: dict[str, dict] = defaultdict(lambda: defaultdict(dict))
        plates: dict[str, dict] = defaultdict(dict)
        untreated: dict[str, dict] = defaultdict(dict)
        for (experiment, plate, well_type), group in sorted(self.sums.items()):
            count, first, second = group.tolist()
            entry = {"count": count[0], "sum": first, "sum_of_squares": second}
            pixels[experiment][str(plate)][well_type] = entry
            if well_type == "negative_control":
                untreated[experiment][str(plate)] = group
        for (experiment, plate), statistics in sorted(self.plate.items()):
            plates[experiment][str(plate)] = _entry(*statistics, self.source[experiment, plate])
        whole = _choose(self.sums, self.plate, "experiment")

        def moments(group: Sums) -> dict[str, Any]:
            return _entry(*mean_and_std(group))

        return {
            "control_pixels": pixels,
            "control_statistics": {
                "plate": plates,
                "experiment": {name: _entry(*chosen) for (name, _), chosen in whole.items()},
                "negative_control": {
                    "plate": {
                        name: {plate: moments(group) for plate, group in of.items()}
                        for name, of in untreated.items()
                    },
                    "experiment": {e: moments(sum(of.values())) for e, of in untreated.items()},
                },
            },
        }


def read_statistics(sites: Sequence[Site], read: Callable[[Site], np.ndarray]) -> Statistics:
    """Reads the control sites, and all sites of experiments without usable controls.

    `read` (site -> uint8 [C, H, W]) is called from several threads. One warning tells which plates
    are not standardised by controls of their own.
    """
    controls = [site for site in sites if site.well_type in CONTROL_TYPES]
    sums = _read_sums(controls, read, "Reading controls")
    # Where the pooled controls of an experiment are not usable, those of none of its plates are.
    served = _choose(sums, {key[:2] for key in sums}, "experiment").items()
    usable = {experiment for (experiment, _), (_, std, _) in served if std.all()}
    lacking = {site.experiment for site in sites} - usable
    others = [s for s in sites if s.experiment in lacking and s.well_type not in CONTROL_TYPES]
    if others:
        label = f"Reading {len(lacking)} experiments without usable controls"
        sums |= _read_sums(others, read, label)
    statistics = choose_statistics({(site.experiment, site.plate) for site in sites}, sums)
    _warn(statistics)
    return statistics


def choose_statistics(plates: Iterable[Plate], sums: Mapping[Key, Sums]) -> Statistics:
    """The statistics that follow from the sums, for plates that have sums in their experiment."""
    chosen = _choose(sums, plates, "plate")
    return Statistics(
        dict(sums),
        {plate: (mean, std) for plate, (mean, std, _) in chosen.items()},
        {plate: source for plate, (_, _, source) in chosen.items()},
    )


def sums_from_json(tree: Mapping[str, Mapping]) -> dict[Key, Sums]:
    """`Statistics.sums` from metadata.json's control_pixels."""
    return {
        (experiment, int(plate), well_type): np.array(
            [[group["count"]] * len(group["sum"]), group["sum"], group["sum_of_squares"]]
        )
        for experiment, plates in tree.items()
        for plate, groups in plates.items()
        for well_type, group in groups.items()
    }


def pixel_sums(image: np.ndarray) -> Sums:
    """Sums over the pixels of one image, uint8 [C, H, W]."""
    histograms = np.stack([np.bincount(plane.ravel(), minlength=256) for plane in image])
    return np.stack([histograms.sum(1), histograms @ _LEVELS, histograms @ _LEVELS**2])


def mean_and_std(sums: Sums) -> MeanStd:
    """Mean and population standard deviation, float32 [C] each, in counts (0..255).

    S1/n and sqrt((n*S2 - S1^2) / n^2) in Python integers: rounded once, no cancellation. A
    constant channel has a standard deviation of zero; it is left to consumers to guard it.
    """
    n, first, second = sums.astype(object)
    variance = ((n * second - first * first) / (n * n)).astype(np.float64)
    return (first / n).astype(np.float32), np.sqrt(variance).astype(np.float32)


def _choose(
    sums: Mapping[Key, Sums], plates: Iterable[Plate], by: str
) -> dict[Plate, tuple[np.ndarray, np.ndarray, str]]:
    """Mean, std and source of each plate, or of its experiment (`by` "plate" or "experiment")."""
    chosen = {}
    for plate in sorted(plates):
        for source in SOURCES if by == "plate" else ("experiment_controls", "experiment_sites"):
            place = plate if source.startswith("plate") else plate[:1]
            groups = [
                group
                for key, group in sums.items()
                if key[: len(place)] == place
                and (key[2] in CONTROL_TYPES or source.endswith("sites"))
            ]
            if groups:
                mean, std = mean_and_std(np.sum(groups, axis=0))
                # With a channel that is constant all over, the best source still serves.
                if std.all() or plate not in chosen:
                    chosen[plate] = mean, std, source
                if std.all():
                    break
    return chosen


def _read_sums(
    sites: Sequence[Site], read: Callable[[Site], np.ndarray], label: str
) -> dict[Key, Sums]:
    totals: dict[Key, Sums] = {}
    results = map_in_order(lambda site: pixel_sums(read(site)), sites)
    bar = tqdm(results, label, len(sites), unit=" sites")
    for site, sums in zip(sites, bar, strict=True):
        key = (site.experiment, site.plate, site.well_type)
        totals[key] = totals.get(key, 0) + sums
    return totals


def _entry(mean: np.ndarray, std: np.ndarray, source: str = "") -> dict[str, Any]:
    figures = ([float(str(value)) for value in part] for part in (mean, std))
    return dict(zip(("mean", "std"), figures, strict=True)) | ({"source": source} if source else {})


def _warn(statistics: Statistics) -> None:
    """Logs which plates fell back on what, and why."""
    served: dict[str, list[str]] = defaultdict(list)
    for (experiment, plate), source in statistics.source.items():
        if source != "plate_controls":
            own = any((experiment, plate, kind) in statistics.sums for kind in CONTROL_TYPES)
            why = "a channel of their controls is constant" if own else "they have no control wells"
            served[f"{SOURCES[source]}, since {why}"].append(f"{experiment} {plate}")
    if served:
        logging.warning(
            "%d of %d plates have no usable controls of their own. What serves them: %s",
            sum(map(len, served.values())), len(statistics.source),
            "; ".join(f"{source}: {', '.join(plates)}" for source, plates in served.items()),
        )  # fmt: skip
    constant = [f"{e} {p}" for (e, p), (_, std) in statistics.plate.items() if not std.all()]
    if constant:
        logging.warning(
            "%d plates keep a standard deviation of zero, a channel of their whole experiment is"
            " constant: %s",
            len(constant), ", ".join(constant),
        )  # fmt: skip

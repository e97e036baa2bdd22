"""Normalisation: whose pixels give the mean and standard deviation of each channel of a site."""

import copy
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from tqdm import tqdm

from rxrx1_jax.config import load
from rxrx1_jax.data.records import DatasetError, Records

# Whose pixels give the mean and std. Controls: positive and negative wells pooled.
#   plate_control: the controls of the site's plate (the paper's)
#   experiment_control: the controls of the site's experiment
#   global_control: the controls of all experiments with a training site
#   plate_negative_control: the untreated wells of the site's plate
#   plate_control_robust: as plate_control, but median and 1.4826 times the median deviation
#   site: the site itself
#   none: mean 0, std 255
NORMALISATIONS = (
    "plate_control", "experiment_control", "global_control", "plate_negative_control",
    "plate_control_robust", "site", "none",
)  # fmt: skip
CONTROL_TYPES = ("positive_control", "negative_control")

# Counts. Rounding to 8 bits alone gives a std of 1/sqrt(12); less is a constant channel.
STD_FLOOR = np.float32(12**-0.5)
NORMAL_MAD = 1.4826  # std of a normal distribution over its median absolute deviation
READ_THREADS = 8

Statistics = tuple[np.ndarray, np.ndarray]  # mean and std, float32 [n, 6] each, counts
Plate = tuple[str, int]  # experiment, plate

# Control histograms that have been read, int64 [6, 256]: evaluation asks for them every time.
_histograms: weakref.WeakKeyDictionary[Records, dict[Plate, np.ndarray]] = (
    weakref.WeakKeyDictionary()
)


def pixel_statistics(records: Records, rows: np.ndarray, kind: str) -> Statistics | None:
    """Mean and std, float32 [n, 6] each in counts, that normalise the records `rows` [n].

    `global_control` pools the controls of the experiments that contain `rows`: pass training rows.
    None for "site", whose statistics are the image's own. A std is at least STD_FLOOR. Sums are
    exact integers: mean = S1/n, std = sqrt(n*S2 - S1^2) / n.

    A plate without control wells (of the type) takes those of its experiment; the dataset's builder
    sees to plate_control. plate_control_robust reads the control images, once; the rest needs none.

    A dotted `kind` names a factory of a function (records, rows) -> (mean, std) of the
    shape above. Its records have no siRNA of treatment sites (sirna_id -1, sirna "").

    Raises ValueError for an unknown kind and for what a dotted one may not return, DatasetError
    where an experiment has no controls (of the type).
    """
    if "." in kind.partition("(")[0]:
        return _users(records, rows, kind)
    if kind not in NORMALISATIONS:
        raise ValueError(f"normalisation {kind!r}: expected one of {', '.join(NORMALISATIONS)}")
    shape = (len(rows), records.image_shape[0])
    if kind == "site":
        return None
    if kind == "none":
        return np.zeros(shape, np.float32), np.full(shape, 255, np.float32)
    if kind == "plate_control":
        mean, std = (records.sites[field][rows] for field in ("control_mean", "control_std"))
        return mean, np.maximum(std, STD_FLOOR)
    if kind in ("plate_negative_control", "plate_control_robust"):
        plates, codes = np.unique(records.sites[["experiment", "plate"]][rows], return_inverse=True)
        of_plates = _untreated if kind == "plate_negative_control" else _robust
        statistics = np.array(of_plates(records, plates.tolist()), np.float32)  # [p, 2, 6]
        return statistics[codes, 0], np.maximum(statistics[codes, 1], STD_FLOOR)
    experiments, codes = np.unique(records.sites["experiment"][rows], return_inverse=True)
    names = experiments.tolist()
    groups = [[name] for name in names] if kind == "experiment_control" else [names] * len(names)
    statistics = np.array([_pooled(records, group) for group in groups], np.float32)  # [e, 2, 6]
    return statistics[codes, 0], np.maximum(statistics[codes, 1], STD_FLOOR)


def _pooled(records: Records, experiments: list[str]) -> tuple[list[float], list[float]]:
    """Mean and std [6] of all control pixels of the experiments, rounded once."""
    tree = records.metadata.get("control_pixels", {})
    parts = []
    for name in experiments:
        plates = tree.get(name, {}).values()
        found = [plate[kind] for plate in plates for kind in CONTROL_TYPES if kind in plate]
        # An experiment without controls: the builder kept the sums of all its sites.
        found = found or [group for plate in plates for group in plate.values()]
        if not found:
            raise DatasetError(
                f"{records.path}/metadata.json: no control pixels of experiment {name}; expected"
                " count, sum and sum_of_squares a plate: choose normalisation plate_control, or"
                " build the dataset again"
            )
        parts += found
    return _mean_std(parts)


def _mean_std(parts: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Mean and std [6] of the pixels of groups of metadata.json's control_pixels."""
    n = sum(part["count"] for part in parts)
    first = [sum(values) for values in zip(*(part["sum"] for part in parts), strict=True)]
    second = [sum(values) for values in zip(*(p["sum_of_squares"] for p in parts), strict=True)]
    std = [((n * s2 - s1 * s1) / (n * n)) ** 0.5 for s1, s2 in zip(first, second, strict=True)]
    return [s1 / n for s1 in first], std


def _untreated(records: Records, plates: list[Plate]) -> list[tuple[list[float], list[float]]]:
    """Mean and std [6] of the untreated wells of each plate, or else of its experiment."""
    tree = records.metadata.get("control_pixels", {})
    found = []
    for experiment, plate in plates:
        untreated = {
            number: groups["negative_control"]
            for number, groups in tree.get(experiment, {}).items()
            if "negative_control" in groups
        }
        if not untreated:
            raise DatasetError(
                f"{records.path}/metadata.json: no pixels of untreated wells in experiment"
                f" {experiment}; expected those of a plate at least: choose normalisation"
                " plate_control, or leave the experiment out"
            )
        own = untreated.get(str(plate))
        found.append(_mean_std([own] if own else list(untreated.values())))
    return found


def _robust(records: Records, plates: list[Plate]) -> list[np.ndarray]:
    """Median and NORMAL_MAD times the MAD, [2, 6], of each plate's controls or its experiment's."""
    known = _histograms.setdefault(records, {})
    sites = records.sites
    of_experiment = {}
    for experiment in sorted({name for name, _ in plates}):
        rows = np.flatnonzero(
            (sites["experiment"] == experiment) & np.isin(sites["well_type"], CONTROL_TYPES)
        )
        if not len(rows):
            raise DatasetError(
                f"{records.path}: no control site in experiment {experiment}; expected some: choose"
                " normalisation plate_control, or leave the experiment out"
            )
        of_experiment[experiment] = rows
    wanted = {}  # rows to read of each plate
    for experiment, plate in plates:
        rows = of_experiment[experiment]
        own = rows[sites["plate"][rows] == plate]
        for number in {plate} if len(own) else set(sites["plate"][rows].tolist()):
            if (experiment, number) not in known:
                wanted[experiment, number] = rows[sites["plate"][rows] == number]
    _read_histograms(records, wanted, known)

    found: list[np.ndarray] = []
    for experiment, plate in plates:
        numbers = [plate]
        if (experiment, plate) not in known:  # a plate without controls
            numbers = np.unique(sites["plate"][of_experiment[experiment]]).tolist()
        histograms = np.sum([known[experiment, number] for number in numbers], 0)
        found.append(np.array([median_and_deviation(counts) for counts in histograms]).T)
    return found


def _read_histograms(
    records: Records, wanted: dict[Plate, np.ndarray], known: dict[Plate, np.ndarray]
) -> None:
    """Adds the histograms of the plates' sites to `known`; the sums are exact in any order."""

    def histogram(row: int) -> np.ndarray:
        return np.stack([np.bincount(plane.ravel(), minlength=256) for plane in records[row]])

    total = sum(len(rows) for rows in wanted.values())
    with (
        ThreadPoolExecutor(READ_THREADS, "read") as pool,
        tqdm(total=total, desc="Reading controls", unit=" sites", disable=None) as bar,
    ):
        for plate, rows in wanted.items():
            counts = np.zeros((records.image_shape[0], 256), np.int64)
            for one in pool.map(histogram, rows.tolist()):
                counts += one
                bar.update()
            known[plate] = counts


def median_and_deviation(counts: np.ndarray) -> tuple[float, float]:
    """Median and NORMAL_MAD times the median absolute deviation from it, of a histogram [256].

    As np.median of the pixels themselves: of an even number, the mean of the two in the middle.
    """
    values = np.arange(256.0)
    median = _weighted_median(values, counts)
    return median, NORMAL_MAD * _weighted_median(np.abs(values - median), counts)


def _weighted_median(values: np.ndarray, counts: np.ndarray) -> float:
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(counts[order])
    middle = np.array([(reached[-1] - 1) // 2, reached[-1] // 2])
    return float(values[order][np.searchsorted(reached, middle, side="right")].mean())


def _users(records: Records, rows: np.ndarray, kind: str) -> Statistics:
    """The statistics of a function of the user's, checked."""
    function: Callable[[Records, np.ndarray], Statistics] = load("data.normalisation", kind)
    masked = copy.copy(records)
    masked.sites = records.sites.copy()
    treated = masked.sites["well_type"] == "treatment"
    masked.sites["sirna_id"][treated], masked.sites["sirna"][treated] = -1, ""
    returned = function(masked, rows.copy())
    shape = (len(rows), records.image_shape[0])
    expected = f"normalisation {kind}: expected (mean, std), two float arrays of shape {shape}"
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise ValueError(f"{expected}, got {type(returned).__name__}")
    for name, part in zip(("mean", "std"), returned, strict=True):
        array = np.asarray(part)
        if array.shape != shape or not np.issubdtype(array.dtype, np.floating):
            raise ValueError(f"{expected}; {name} is {array.dtype} {array.shape}")
        wrong = ~np.isfinite(array) | ((array < 0) if name == "std" else False)
        if wrong.any():
            row, channel = np.argwhere(wrong)[0].tolist()
            raise ValueError(
                f"{expected}, finite and no std below 0; {name} of site"
                f" {records.sites['site_id'][rows[row]]}, channel {channel + 1}, is"
                f" {array[row, channel]}"
            )
    mean, std = (np.asarray(part, np.float32) for part in returned)
    return mean, np.maximum(std, STD_FLOOR)

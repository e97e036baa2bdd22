"""Normalisation: whose pixels give the mean and standard deviation of each channel of a site.

A factory returns `normalise(images, rows, training) -> (mean, std)`, float [m, C] each in counts,
for the sites `rows` [m]; `training` holds the rows that are trained on. None stands for each
image's own pixels. `statistics` calls it.
"""

import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from rxrx1_jax.data.images import (
    CONTROL_TYPES,
    DatasetError,
    Images,
    control_statistics,
    group_statistics,
)

# Counts. Rounding to 8 bits alone gives a std of 1/sqrt(12); less is a constant channel.
STD_FLOOR = np.float32(12**-0.5)
NORMAL_MAD = 1.4826  # std of a normal distribution over its median absolute deviation
READ_THREADS = 8

Statistics = tuple[np.ndarray, np.ndarray]  # mean and std
Normalise = Callable[[Images, np.ndarray, np.ndarray], Statistics | None]
Plate = tuple[str, int]  # experiment, plate


class Blind:
    """Images whose treatment sites have no siRNA: what a normalisation is given."""

    def __init__(self, images: Images):
        self._images = images
        self.image_shape, self.about = images.image_shape, images.about
        self.sites = images.sites.copy()
        treated = self.sites["well_type"] == "treatment"
        self.sites["sirna_id"][treated], self.sites["sirna"][treated] = -1, ""

    def __len__(self) -> int:
        return len(self.sites)

    def __getitem__(self, row: int) -> np.ndarray:
        return self._images[row]


def statistics(
    normalise: Normalise, images: Blind, rows: np.ndarray, training: np.ndarray
) -> Statistics | None:
    """What `normalise` returns, checked, in float32; a std is at least STD_FLOOR.

    Raises:
      DatasetError: it is of another shape or type, or not finite.
    """
    returned = normalise(images, rows.copy(), training.copy())
    if returned is None:
        return None
    shape = (len(rows), images.image_shape[0])
    expected = f"data.normalisation: expected (mean, std), two float arrays of shape {shape}"
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise DatasetError(f"{expected}, or None, got {type(returned).__name__}")
    for name, part in zip(("mean", "std"), returned, strict=True):
        array = np.asarray(part)
        if array.shape != shape or not np.issubdtype(array.dtype, np.floating):
            raise DatasetError(f"{expected}; {name} is {array.dtype} {array.shape}")
        wrong = ~np.isfinite(array) | ((array < 0) if name == "std" else False)
        if wrong.any():
            row, channel = np.argwhere(wrong)[0].tolist()
            raise DatasetError(
                f"{expected}, finite and no std below 0; {name} of site"
                f" {images.sites['site_id'][rows[row]]}, channel {channel + 1}, is"
                f" {array[row, channel]}"
            )
    mean, std = (np.asarray(part, np.float32) for part in returned)
    return mean, np.maximum(std, STD_FLOOR)


def plate_control() -> Normalise:
    """The paper's: positive and negative control wells of the site's plate, pooled."""

    def normalise(images: Images, rows: np.ndarray, training: np.ndarray) -> Statistics:
        return images.sites["control_mean"][rows], images.sites["control_std"][rows]

    return normalise


def experiment_control() -> Normalise:
    """The controls of the site's experiment, by the rule of `images.control_statistics`."""

    def normalise(images: Images, rows: np.ndarray, training: np.ndarray) -> Statistics:
        sites = images.sites
        used = np.isin(sites["experiment"], np.unique(sites["experiment"][rows]))
        mean, std = np.zeros((2, len(used), images.image_shape[0]), np.float32)
        mean[used], std[used] = control_statistics(sites[used], _pixels(images), "experiment")
        return mean[rows], std[rows]

    return normalise


def global_control() -> Normalise:
    """The controls of all experiments with a training site; of one without any, all its sites."""

    def normalise(images: Images, rows: np.ndarray, training: np.ndarray) -> Statistics:
        sites = images.sites
        control = np.isin(sites["well_type"], CONTROL_TYPES)
        bare = ~np.isin(sites["experiment"], np.unique(sites["experiment"][control]))
        trained = np.isin(sites["experiment"], np.unique(sites["experiment"][training]))
        pool = sites[trained & (control | bare)]
        mean, std = group_statistics(pool, np.zeros(len(pool), np.int64), 1, _pixels(images))
        return np.repeat(mean, len(rows), 0), np.repeat(std, len(rows), 0)

    return normalise


def plate_negative_control() -> Normalise:
    """The untreated wells of the site's plate; of a plate without any, those of its experiment."""

    def normalise(images: Images, rows: np.ndarray, training: np.ndarray) -> Statistics:
        sites = images.sites
        untreated = sites["well_type"] == "negative_control"
        _require(images, rows, untreated, "untreated wells")
        mean = np.full((len(rows), images.image_shape[0]), np.nan)
        std = mean.copy()
        for field in ("experiment", ["experiment", "plate"]):  # the latter where there is one
            names, group = np.unique(sites[field], return_inverse=True)
            found = group_statistics(
                sites[untreated], group[untreated], len(names), _pixels(images)
            )
            own = ~np.isnan(found[0][group[rows], 0])
            mean[own], std[own] = (part[group[rows]][own] for part in found)
        return mean, std

    return normalise


def plate_control_robust() -> Normalise:
    """As plate_control, but the median and 1.4826 times the median absolute deviation.

    Reads the control images, once. Of a plate without controls those of its experiment serve.
    """
    # Histograms that have been read, int64 [C, 256]: each evaluation asks for them.
    known: weakref.WeakKeyDictionary[Images, dict[Plate, np.ndarray]] = (
        weakref.WeakKeyDictionary()
    )

    def normalise(images: Images, rows: np.ndarray, training: np.ndarray) -> Statistics:
        plates, codes = np.unique(
            images.sites[["experiment", "plate"]][rows], return_inverse=True
        )
        found = _robust(images, rows, plates.tolist(), known.setdefault(images, {}))
        return found[codes, 0], found[codes, 1]

    return normalise


def site() -> Normalise:
    """The site itself."""
    return lambda images, rows, training: None


def none() -> Normalise:
    """Mean 0, std 255."""

    def normalise(images: Images, rows: np.ndarray, training: np.ndarray) -> Statistics:
        shape = (len(rows), images.image_shape[0])
        return np.zeros(shape, np.float32), np.full(shape, 255, np.float32)

    return normalise


def _pixels(images: Images) -> int:
    return images.image_shape[1] * images.image_shape[2]


def _require(images: Images, rows: np.ndarray, there: np.ndarray, what: str) -> None:
    """Raises DatasetError unless every experiment of `rows` has a site of those `there` [n]."""
    experiments = images.sites["experiment"]
    lacking = np.setdiff1d(experiments[rows], experiments[there])
    if len(lacking):
        raise DatasetError(
            f"{images.about['name']}: no {what} in experiment {lacking[0]}; expected some: choose"
            " normalisation plate_control, or leave the experiment out"
        )


def _robust(
    images: Images, rows: np.ndarray, plates: list[Plate], known: dict[Plate, np.ndarray]
) -> np.ndarray:
    """Median and NORMAL_MAD times the MAD, [p, 2, C], of each plate's controls."""
    sites = images.sites
    control = np.isin(sites["well_type"], CONTROL_TYPES)
    _require(images, rows, control, "controls")
    numbers: dict[str, list[int]] = {}  # plates with controls, of each experiment
    for name, number in np.unique(sites[["experiment", "plate"]][control]).tolist():
        numbers.setdefault(name, []).append(number)
    serving = [
        [(name, n) for n in numbers[name] if plate not in numbers[name] or n == plate]
        for name, plate in plates
    ]
    wanted = {
        (name, number): np.flatnonzero(
            control & (sites["experiment"] == name) & (sites["plate"] == number)
        )
        for name, number in {plate for group in serving for plate in group} - known.keys()
    }
    _read_histograms(images, wanted, known)
    histograms = [np.sum([known[plate] for plate in group], 0) for group in serving]
    return np.array(
        [np.array([median_and_deviation(counts) for counts in one]).T for one in histograms]
    )


def _read_histograms(
    images: Images, wanted: dict[Plate, np.ndarray], known: dict[Plate, np.ndarray]
) -> None:
    """Adds the histograms of the plates' sites to `known`; the sums are exact in any order."""

    def histogram(row: int) -> np.ndarray:
        return np.stack([np.bincount(plane.ravel(), minlength=256) for plane in images[row]])

    total = sum(len(rows) for rows in wanted.values())
    with (
        ThreadPoolExecutor(READ_THREADS, "read") as pool,
        tqdm(total=total, desc="Reading controls", unit=" sites", disable=None) as bar,
    ):
        for plate, rows in wanted.items():
            counts = np.zeros((images.image_shape[0], 256), np.int64)
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

"""Normalisation: whose pixels give the mean and standard deviation of each channel of a site."""

import numpy as np

from rxrx1_jax.records import DatasetError, Records

# Whose pixels give the mean and std. Controls: positive and negative wells pooled.
#   plate_control: the controls of the site's plate (the paper's)
#   experiment_control: the controls of the site's experiment
#   global_control: the controls of all experiments with a training site
#   site: the site itself
#   none: mean 0, std 255
NORMALISATIONS = ("plate_control", "experiment_control", "global_control", "site", "none")
CONTROL_TYPES = ("positive_control", "negative_control")

# Counts. Rounding to 8 bits alone gives a std of 1/sqrt(12); less is a constant channel.
STD_FLOOR = np.float32(12**-0.5)


def pixel_statistics(
    records: Records, rows: np.ndarray, kind: str
) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean and std, float32 [n, 6] each in counts, that normalise the records `rows` [n].

    `global_control` pools the controls of the experiments that contain `rows`: pass training rows.
    None for "site", whose statistics are the image's own. A std is at least STD_FLOOR. Sums are
    exact integers: mean = S1/n, std = sqrt(n*S2 - S1^2) / n.

    Raises ValueError for an unknown kind, DatasetError where an experiment has no controls.
    """
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
    n = sum(part["count"] for part in parts)
    first = [sum(values) for values in zip(*(part["sum"] for part in parts), strict=True)]
    second = [sum(values) for values in zip(*(p["sum_of_squares"] for p in parts), strict=True)]
    std = [((n * s2 - s1 * s1) / (n * n)) ** 0.5 for s1, s2 in zip(first, second, strict=True)]
    return [s1 / n for s1 in first], std

"""Checks a built dataset: is everything there, undamaged, and what the release says?

The size of every file is compared. Records are read whole, compared with their checksums,
inflated and looked at in one experiment of each cell type, or in all of them. Sums of control
pixels are taken again from the stored images and must equal those in metadata.json exactly.
"""

import functools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from .. import controls
from . import sites as tables
from . import stored

# Sites of the whole release: metadata.csv of August 2020, and its experiments as parted by WILDS
# v1.0 (https://github.com/p-lambda/wilds, wilds/datasets/rxrx1_dataset.py).
OFFICIAL_SITES = {"train": 81_224, "test": 44_286}
WILDS_SITES = {"train": 81_224, "val": 9_854, "test": 34_432}
FAULTS_SHOWN = 10


class Check(NamedTuple):
    """One line of the report."""

    name: str
    found: str
    faults: list[str]


def verify(builder: tfds.core.DatasetBuilder, everything: bool = False) -> list[Check]:
    """All checks, in the order in which they are best read.

    Args:
      builder: from `stored.open_dataset`.
      everything: read all experiments, not one of each cell type.

    Raises:
      DatasetError: a dataset without a table of sites.
    """
    experiments = sorted(builder.info.splits)
    if not everything:
        first = {name.rpartition("-")[0]: name for name in reversed(experiments)}
        experiments = sorted(first.values())
    return [
        _check_files(builder),
        _check_partitions(builder),
        *_check_contents(builder, experiments),
    ]


def report(builder: tfds.core.DatasetBuilder, checks: list[Check]) -> str:
    """The checks as a table, what is wrong below it."""
    info = builder.info
    sites = sum(split.num_examples for split in info.splits.values())
    pixels = " x ".join(map(str, info.features["image"].shape))
    width = max(len(check.name) for check in checks)
    middle = max(len(check.found) for check in checks)
    lines = [
        f"{info.full_name} in {builder.data_path}",
        f"{sites:,} sites of {pixels} in {len(info.splits)} experiments,"
        f" {info.file_format.value} files",
        "",
    ]
    for name, found, faults in checks:
        verdict = f"FAILED ({len(faults)})" if faults else "ok"
        lines.append(f"{name:{width}}  {found:{middle}}  {verdict}")
    for name, _, faults in checks:
        if faults:
            lines += ["", f"{name}:", *(f"  {fault}" for fault in faults[:FAULTS_SHOWN])]
            if len(faults) > FAULTS_SHOWN:
                lines.append(f"  ... and {len(faults) - FAULTS_SHOWN} more")
    return "\n".join(lines)


def _check_files(builder: tfds.core.DatasetBuilder) -> Check:
    """Every file is there and has its size."""
    sizes = dict(stored.table_entry(builder)["files"])
    names = sorted(builder.info.splits)
    files = [file for name in names for file in stored.experiment_files(builder, name)]
    faults = []
    for file in files:
        found = file.stat().st_size if file.exists() else "no"
        if found != sizes.get(file.name):
            faults.append(f"{file}: {found} bytes, expected {sizes.get(file.name)}")
    return Check("files", f"{len(files) - len(faults)} of {len(files)}", faults)


def _check_partitions(builder: tfds.core.DatasetBuilder) -> Check:
    """Every experiment is of one partition; the whole release has the official counts."""
    counts = {name: split.num_examples for name, split in builder.info.splits.items()}
    partitions = builder.info.metadata["partitions"]
    listed = sorted(name for names in partitions.values() for name in names)
    faults = []
    if listed != sorted(counts):
        differ = sorted(set(listed) ^ set(counts)) or "some twice"
        faults.append(f"metadata.json: partitions list other experiments than there are: {differ}")
    sizes = {part: sum(counts.get(n, 0) for n in names) for part, names in partitions.items()}
    official = WILDS_SITES if "val" in sizes else OFFICIAL_SITES
    if builder.info.metadata["source"] == "synthetic":
        return Check("partitions", ", ".join(f"{part} {n:,}" for part, n in sizes.items()), faults)
    faults += [
        f"{part}: {sizes.get(part, 0):,} sites, more than the {count:,} of the official release"
        for part, count in official.items()
        # Later Kaggle files hold four more, and any part of a release is a legal dataset.
        if sizes.get(part, 0) > count and builder.info.metadata["layout"] != "kaggle"
    ]
    text = ", ".join(f"{part} {sizes.get(part, 0):,} of {n:,}" for part, n in official.items())
    return Check("official release", text, faults)


def _check_contents(builder: tfds.core.DatasetBuilder, experiments: list[str]) -> Iterator[Check]:
    """Reads all records of the experiments."""
    info = builder.info
    found: dict[str, list[str]] = defaultdict(list)
    records = plates = rows = 0
    listed = [name for name, _ in stored.table_entry(builder)["files"]]
    try:
        table = stored.read_table(builder)
    except (stored.DatasetError, OSError) as error:
        table = None
        found["table of sites"].append(str(error))
    for experiment in tqdm(experiments, "Reading", unit=" experiments"):
        entries, faults = tables.read_experiment(builder, experiment)
        records += len(entries)
        for name, texts in faults.items():
            found[name] += texts
        if any(faults.values()):
            text = f"{experiment}: not compared, records of it are faulty"
            found["control statistics"].append(text)
        elif entries:
            found["features"] += _partition_faults(experiment, entries, info.metadata)
            found["control statistics"] += _statistics_faults(experiment, entries, info)
            plates += len({fields["plate"] for _, fields, _ in entries})
            if table is not None:
                files = list(stored.experiment_files(builder, experiment))
                found["table of sites"] += tables.table_faults(table, files, listed, entries)
                rows += len(entries)
    shown = f"{records:,} records, {len(experiments)} of {len(info.splits)} experiments"
    for name, text in (
        ("checksums", shown), ("features", shown),
        ("images", " x ".join(map(str, info.features["image"].shape)) + " each"),
        ("control statistics", f"{plates} plates, taken again"),
        ("table of sites", f"{rows:,} rows"),
    ):  # fmt: skip
        yield Check(name, text, found[name])


def _partition_faults(
    experiment: str, entries: Sequence[tables.Entry], metadata: Mapping[str, Any]
) -> list[str]:
    """An experiment is in one official partition, the one that metadata.json lists it in."""
    found = {fields["dataset"] for _, fields, _ in entries}
    listed = {p for p, names in metadata["partitions"].items() if experiment in names}
    if found == listed:
        return []
    return [f"{experiment}: its sites say dataset {found}, metadata.json's partitions {listed}"]


def _statistics_faults(
    experiment: str, entries: Sequence[tables.Entry], info: tfds.core.DatasetInfo
) -> list[str]:
    """Stored sums and statistics against those of the stored images."""
    pixels = math.prod(info.features["image"].shape[1:])
    sums = controls.sums_from_json(info.metadata["control_pixels"])
    sums = {key: group for key, group in sums.items() if key[0] == experiment}
    types = {*controls.CONTROL_TYPES, *(well_type for _, _, well_type in sums)}
    found: dict[controls.Key, np.ndarray] = {}
    for _, fields, image in entries:
        if fields["well_type"] in types:
            key = (experiment, fields["plate"], fields["well_type"])
            count = [pixels] * len(image.pixel_sum)
            found[key] = found.get(key, 0) + np.array([count, image.pixel_sum, image.pixel_sum2])
    faults = []
    for key in sorted(found.keys() | sums.keys()):
        ours, said = (of[key].tolist() if key in of else None for of in (found, sums))
        if ours != said:
            faults.append(
                f"{experiment} plate {key[1]}, {key[2]}: the images sum up to {ours},"
                f" metadata.json's control_pixels say {said}"
            )
    if faults or not found:
        return faults
    plates = {(experiment, fields["plate"]) for _, fields, _ in entries}
    statistics = controls.choose_statistics(plates, found)
    for _, fields, _ in entries:
        mean, std = statistics.plate[experiment, fields["plate"]]
        stored_mean, stored_std = fields["control_mean"], fields["control_std"]
        if not (np.array_equal(mean, stored_mean) and np.array_equal(std, stored_std)):
            faults.append(
                f"{fields['site_id']}: control_mean {stored_mean} and control_std {stored_std}, the"
                f" pixels give {mean} and {std}"
            )
    taken = statistics.to_json()["control_statistics"]
    for name in ("plate", "experiment", "negative_control plate", "negative_control experiment"):
        expected, listed = (
            functools.reduce(lambda part, key: part.get(key, {}), (*name.split(), experiment), tree)
            for tree in (taken, info.metadata["control_statistics"])
        )
        if expected != listed:
            faults.append(
                f"{experiment}: metadata.json's control_statistics, {name}: {listed}, the pixels"
                f" give {expected}"
            )
    return faults

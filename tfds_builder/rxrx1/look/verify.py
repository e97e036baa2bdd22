"""Checks a built dataset: is everything there, undamaged, and what the release says?

The size of every file is compared. Records are read whole, compared with their checksums,
inflated and looked at in one experiment of each cell type, or in all of them. Sums of control
pixels are taken again from the stored images and must equal those in metadata.json exactly.
"""

import functools
import math
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
    files = [
        f for name in sorted(builder.info.splits) for f in stored.experiment_files(builder, name)
    ]
    faults = []
    for file in files:
        try:
            found = file.stat().st_size
        except OSError as error:
            faults.append(f"{file}: {error.strerror}")
            continue
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
    damaged: list[str] = []
    insane: list[str] = []
    images: list[str] = []
    statistics: list[str] = []
    wrong_rows: list[str] = []
    records = plates = rows = 0
    listed = dict(stored.table_entry(builder)["files"])
    try:
        table = stored.read_table(builder)
    except (stored.DatasetError, OSError) as error:
        table = None
        wrong_rows.append(str(error))
    total = sum(info.splits[name].num_examples for name in experiments)
    with tqdm(total=total, desc="Reading", unit=" sites") as bar:
        for experiment in experiments:
            before = len(damaged) + len(insane) + len(images)
            sites: dict[str, Mapping[str, Any]] = {}
            entries: list[tables.Entry] = []
            files = stored.experiment_files(builder, experiment)
            for file, expected in files.items():
                number = -1
                try:
                    found = stored.read_sites(file, info.features["image"].shape)
                    for number, (fields, image, fault) in enumerate(found):
                        bar.update()
                        key = str(fields.get("site_id", "no site_id"))
                        where = f"{file}, record {number}, {key}"
                        if key in sites:
                            insane.append(f"{where}: the second record of this site")
                        sites[key] = fields
                        if fields:
                            insane += tables.site_faults(fields, where, experiment, info)
                        if image is None:
                            (images if fields else insane).append(f"{where}: {fault}")
                        else:
                            entries.append((file, fields, image))
                    if number + 1 != expected:
                        damaged.append(f"{file}: {number + 1} records, expected {expected}")
                except (stored.DatasetError, OSError) as error:
                    damaged.append(str(error))
                records += number + 1
            if len(damaged) + len(insane) + len(images) > before:
                statistics.append(f"{experiment}: not compared, records of it are faulty")
                continue
            insane += _partition_faults(experiment, sites, info.metadata)
            statistics += _statistics_faults(experiment, entries, info)
            plates += len({fields["plate"] for fields in sites.values()})
            if table is not None and entries:
                wrong_rows += tables.table_faults(table, list(files), list(listed), entries)
                rows += len(entries)
    shown = f"{records:,} records, {len(experiments)} of {len(info.splits)} experiments"
    yield Check("checksums", shown, damaged)
    yield Check("features", shown, insane)
    yield Check("images", " x ".join(map(str, info.features["image"].shape)) + " each", images)
    yield Check("control statistics", f"{plates} plates, taken again", statistics)
    yield Check("table of sites", f"{rows:,} rows", wrong_rows)


def _partition_faults(
    experiment: str, sites: Mapping[str, Mapping[str, Any]], metadata: Mapping[str, Any]
) -> list[str]:
    """An experiment is in one official partition, the one that metadata.json lists it in."""
    found = {fields["dataset"] for fields in sites.values()}
    listed = {p for p, names in metadata["partitions"].items() if experiment in names}
    if not sites or found == listed:
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
            first = np.array(image.pixel_sum)
            site = np.stack([np.full_like(first, pixels), first, image.pixel_sum2])
            found[key] = found[key] + site if key in found else site
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

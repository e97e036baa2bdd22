"""Kaggle's pixel_stats.csv and metadata -> a table of sites, without images.

The competition published mean and standard deviation of every plane, a row each: six rows a site.
What needs sums of pixels alone runs on it: `methods.lda12.intensities`, the statistics of controls.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from rxrx1_jax.data.images import METADATA, DatasetError, Sites, control_statistics, structured
from rxrx1_jax.data.table_metadata import read_metadata

PIXELS = 512 * 512  # of a plane of the competition
COLUMNS = {"id_code": pa.string(), "site": pa.int32(), "channel": pa.int32(),
           "mean": pa.float64(), "std": pa.float64()}  # fmt: skip


def read_pixel_stats(stats: str | Path, metadata: str | Path, pixels: int = PIXELS) -> Sites:
    """The sites of both files, by site id, with sums of pixels and statistics of plate controls.

    Args:
      stats: Kaggle's pixel_stats.csv, or one like it; .gz too.
      metadata: a file of `table_metadata.read_metadata`.
      pixels: of a plane.

    Raises DatasetError: a missing column, a site that is not in the metadata, or one without a row
    for each channel; OSError.
    """
    table = _read(stats)
    sites = np.sort(read_metadata(metadata), order="site_id")
    code, site = table["id_code"].to_numpy(zero_copy_only=False), table["site"].to_numpy()
    names, row = np.unique(
        np.char.add(np.char.add(code.astype(str), "_"), site.astype(str)), return_inverse=True
    )
    place = np.minimum(np.searchsorted(sites["site_id"], names), len(sites) - 1)
    missing = sites["site_id"][place] != names
    if missing.any():
        raise DatasetError(f"{stats}: site {names[missing.argmax()]} is not in {metadata}")
    channel = table["channel"].to_numpy() - 1
    channels = int(channel.max()) + 1
    count = np.zeros((len(names), channels), np.int64)
    np.add.at(count, (row, channel), 1)
    odd = (count != 1).any(1)
    if channel.min() < 0 or odd.any():
        raise DatasetError(
            f"{stats}: site {names[odd.argmax()]} has {count[odd.argmax()].sum()} rows; expected"
            f" one of each channel, 1 to {channels}"
        )
    mean, std = np.zeros(count.shape), np.zeros(count.shape)
    mean[row, channel], std[row, channel] = table["mean"].to_numpy(), table["std"].to_numpy()
    bad = ~((mean >= 0) & (mean <= 255) & (std >= 0) & (std <= 255)).all(1)
    if bad.any():
        raise DatasetError(f"{stats}: site {names[bad.argmax()]}: expected mean and std, 0 to 255")
    sites = sites[place]
    columns: dict[str, Any] = {name: sites[name].tolist() for name in METADATA}
    columns["pixel_sum"] = np.rint(mean * pixels)
    columns["pixel_sum2"] = np.rint((std**2 + mean**2) * pixels)
    blank = np.zeros(count.shape)
    found = structured(columns | {"control_mean": blank, "control_std": blank})
    found["control_mean"], found["control_std"] = control_statistics(found, pixels)
    return found


def _read(path: str | Path) -> pa.Table:
    options = pyarrow.csv.ConvertOptions(column_types=COLUMNS, include_columns=list(COLUMNS))
    try:
        table = pyarrow.csv.read_csv(path, convert_options=options)
    except (KeyError, pa.ArrowException) as error:
        said = str(error).strip("'\"").splitlines()[0]
        raise DatasetError(f"{path}: {said}; expected columns {', '.join(COLUMNS)}") from error
    if not len(table):
        raise DatasetError(f"{path}: no rows; expected some")
    return table

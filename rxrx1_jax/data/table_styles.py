"""Embeddings written as other libraries read them with their defaults.

    official      Parquet: site_id or well_id, feature_0, feature_1 ... as Recursion publishes them
    pycytominer   Parquet: Metadata_Plate, Metadata_Well ..., Cells_feature_0 ...; Metadata_Plate
                  names the experiment too, as a barcode does: HUVEC-01_1
    h5ad          AnnData: metadata as obs, features as X

`tables.read` reads each of them again. `embeddings.write` is the form of our own runs.
"""

import os
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rxrx1_jax.config import user_path
from rxrx1_jax.data import h5ad
from rxrx1_jax.data.embeddings import FEATURE, Embeddings
from rxrx1_jax.data.files import replacing
from rxrx1_jax.data.images import METADATA

STYLES = {"official": ".parquet", "pycytominer": ".parquet", "h5ad": ".h5ad"}  # and the suffix
_CAPITALS = ("experiment", "plate", "well", "site")  # as CellProfiler spells them


def write(embeddings: Embeddings, path: str | os.PathLike, style: str = "official") -> None:
    """Writes ids, features and, but for `official`, metadata; a whole file or none.

    Args:
      embeddings: of sites or wells.
      path: the file, by the suffix of its style.
      style: one of STYLES.

    Raises ValueError: an unknown style, another suffix, h5py is not installed; OSError.
    """
    path = user_path(path)
    if style not in STYLES or path.suffix != STYLES[style]:
        expected = ", ".join(f"{name} ({suffix})" for name, suffix in STYLES.items())
        raise ValueError(f"{path}: style {style!r}; expected one of {expected}, with its suffix")
    sites, x = embeddings.sites, embeddings.x
    of_sites = {"site_id", "site"} if embeddings.unit == "well" else set()
    given = [name for name in METADATA if name in {*(sites.dtype.names or ())} - of_sites]
    given.sort(key=lambda name: name != embeddings.id)  # it is the index of an .h5ad
    names = [f"{FEATURE}{i}" for i in range(x.shape[1])]
    with replacing(path) as partial:
        if style == "h5ad":
            h5ad.write(partial, {name: sites[name] for name in given}, x, names)
            return
        if style == "official":
            columns: dict[str, Any] = {embeddings.id: sites[embeddings.id].tolist()}
        else:
            columns = {_cytominer(name): sites[name].tolist() for name in given}
            if {"experiment", "plate"} <= {*given}:
                plates = zip(sites["experiment"].tolist(), sites["plate"].tolist(), strict=True)
                columns["Metadata_Plate"] = [f"{name}_{plate}" for name, plate in plates]
            names = [f"Cells_{name}" for name in names]
        columns |= {name: np.ascontiguousarray(x[:, i]) for i, name in enumerate(names)}
        pq.write_table(pa.table(columns), partial, compression="zstd")


def _cytominer(name: str) -> str:
    return f"Metadata_{name.capitalize() if name in _CAPITALS else name}"

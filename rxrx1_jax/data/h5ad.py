"""AnnData's .h5ad files, by h5py alone: `obs` and `X` in, and out again.

The format: anndata.readthedocs.io, "On-disk format". The library itself wants pandas < 3.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.sparse

from rxrx1_jax.data.images import DatasetError


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise DatasetError(".h5ad needs h5py; install it: pip install 'rxrx1_jax[h5ad]'") from error
    return h5py


def read(path: Path) -> pa.Table:
    """The columns of obs, its index by its own name, then those of X.

    Raises DatasetError: no obs or X, or in a way that is not known.
    """
    with _h5py().File(path, "r") as file:
        missing = [name for name in ("obs", "X", "var") if name not in file]
        if missing or "_index" not in file["obs"].attrs or "__categories" in file["obs"]:
            raise DatasetError(
                f"no {missing[0] if missing else 'obs of anndata 0.8 or later'}; expected an .h5ad"
                " file of AnnData with obs, var and X; write it again with a newer anndata"
            )
        obs, var, x = file["obs"], file["var"], file["X"]
        columns = {name: _column(obs[name]) for name in obs}
        names = _column(var[var.attrs["_index"]])
        if isinstance(x, _h5py().Dataset):
            values = x[()]
        else:
            parts = [x[name][()] for name in ("data", "indices", "indptr")]
            kind = getattr(scipy.sparse, x.attrs["encoding-type"])
            values = kind(tuple(parts), shape=x.attrs["shape"]).toarray()
    return pa.table(columns | {str(name): values[:, i] for i, name in enumerate(names)})


def _column(stored: Any) -> Any:
    """A column of obs or var: plain, categorical, or with a mask of what is missing."""
    if hasattr(stored, "shape"):
        is_text = _h5py().check_string_dtype(stored.dtype) is not None
        return pa.array((stored.asstr() if is_text else stored)[()])
    if "categories" in stored:
        codes = stored["codes"][()]
        codes = pa.array(codes, mask=codes < 0)
        return _column(stored["categories"]).take(codes)
    return pa.array(_column(stored["values"]).to_numpy(False), mask=stored["mask"][()])


def write(path: Path, obs: dict[str, np.ndarray], x: np.ndarray, features: list[str]) -> None:
    """Writes obs, whose first column is the index, and X.

    Args:
      obs: columns [n], text or whole numbers.
      x: f32 [n, d].
      features: the names of its columns.
    """
    index = next(iter(obs))
    with _h5py().File(path, "w") as file:
        _mark(file, "anndata", "0.1.0")
        _mark(file.create_dataset("X", data=x), "array", "0.2.0")
        _frame(file.create_group("obs"), index, obs)
        _frame(file.create_group("var"), "_index", {"_index": np.array(features)})
        for name in ("layers", "obsm", "obsp", "uns", "varm", "varp"):
            _mark(file.create_group(name), "dict", "0.1.0")


def _frame(group: Any, index: str, columns: dict[str, np.ndarray]) -> None:
    _mark(group, "dataframe", "0.2.0")
    group.attrs["_index"] = index
    order = [name for name in columns if name != index]
    group.attrs.create("column-order", order, dtype=_h5py().string_dtype())
    for name, values in columns.items():
        if values.dtype.kind == "U":
            text = _h5py().string_dtype()
            data = group.create_dataset(name, data=values.astype(object), dtype=text)
            _mark(data, "string-array", "0.2.0")
        else:
            _mark(group.create_dataset(name, data=values), "array", "0.2.0")


def _mark(element: Any, kind: str, version: str) -> None:
    element.attrs["encoding-type"], element.attrs["encoding-version"] = kind, version

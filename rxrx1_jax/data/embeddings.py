"""Embeddings of sites or wells, with what is known of each: the hand-off from runs to methods.

`write` and `read` keep them as embeddings.parquet: a row per site, its metadata, then feature_0,
feature_1, ... So pandas needs no other table:

    table = pandas.read_parquet("RUN/embeddings.parquet")
    x = table.filter(regex="^feature_").to_numpy()

Log-probabilities go to a file beside it (embeddings_log_probs.parquet) and only on request, for
they can be as large as the embeddings. Its columns are the id and class_<sirna_id>.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rxrx1_jax.config import described, user_path
from rxrx1_jax.data.files import replacing
from rxrx1_jax.data.images import METADATA, NUMBERS, TEXT, structured

UNITS = ("site", "well")
FEATURE, CLASS = "feature_", "class_"
DIGEST = "digest"  # of all columns, so that an edited file is not taken for a run's


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """A row per site or well, from a run or from anyone.

    Attributes:
      sites: structured array [n]; columns of `images.METADATA`, at least the id of the unit.
      x: f32 [n, d].
      log_probs: f32 [n, K] of a network, or None.
      classes: i32 [K] sirna_ids of the columns of log_probs, or None.
      unit: "site" or "well": what a row is.
      source: what made them, text to text: run, step, weights ...
      role: str [n], train, val, test, context or another set of a split; None where unknown.

    Raises:
      ValueError: sizes, types or ids that do not fit, values that are not finite; one line.
    """

    sites: np.ndarray
    x: np.ndarray
    log_probs: np.ndarray | None = None
    classes: np.ndarray | None = None
    unit: str = "site"
    source: Mapping[str, str] = dataclasses.field(default_factory=dict)
    role: np.ndarray | None = None

    def __post_init__(self) -> None:
        n = len(self.sites)
        if self.unit not in UNITS:
            raise ValueError(f"unit is {self.unit!r}; expected one of {', '.join(UNITS)}")
        if self.id not in (self.sites.dtype.names or ()):
            raise ValueError(f"sites have no column {self.id}; expected it, for unit={self.unit!r}")
        if not n or self.x.ndim != 2 or self.x.shape[0] != n or self.x.dtype != np.float32:
            raise ValueError(
                f"x is {self.x.dtype} {list(self.x.shape)}; expected float32 [{n}, d], a row per"
                f" {self.unit} and at least one"
            )
        if (self.log_probs is None) != (self.classes is None):
            raise ValueError("log_probs and classes go together; expected both or neither")
        if self.log_probs is not None and self.classes is not None:
            k = len(self.classes)
            if self.log_probs.shape != (n, k) or len(np.unique(self.classes)) != k:
                raise ValueError(
                    f"log_probs are {list(self.log_probs.shape)}; expected [{n}, {k}], a column per"
                    " class, and classes that differ"
                )
        if self.role is not None and self.role.shape != (n,):
            raise ValueError(f"role is {list(self.role.shape)}; expected [{n}]")
        ids, count = np.unique(self.sites[self.id], return_counts=True)
        if len(ids) < n:
            raise ValueError(f"{self.id} {ids[count.argmax()]} has {count.max()} rows; expected 1")
        check_finite("x", self.x, self.sites[self.id])
        if self.log_probs is not None:
            check_finite("log_probs", self.log_probs, self.sites[self.id])

    @property
    def id(self) -> str:
        """The column that names a row."""
        return f"{self.unit}_id"


def check_finite(name: str, values: np.ndarray, ids: np.ndarray | None = None) -> None:
    """Raises ValueError that names the first row of `values` [n, ...] that is not finite."""
    finite = np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
    if not finite.all():
        row = finite.argmin()
        raise ValueError(
            f"{name} of {f'row {row}' if ids is None else ids[row]} is not finite"
            f" ({(~finite).sum()} of {len(finite)} rows); expected finite numbers: has training"
            " diverged?"
        )


def write(embeddings: Embeddings, path: str | os.PathLike, log_probs: bool = False) -> None:
    """Writes the table, and on request the log-probabilities beside it; whole files or none."""
    path, given = user_path(path), embeddings.sites.dtype.names or ()
    columns = {name: embeddings.sites[name].tolist() for name in METADATA if name in given}
    about = {"unit": embeddings.unit, "source": json.dumps(dict(embeddings.source))}
    if log_probs:
        if embeddings.log_probs is None or embeddings.classes is None:
            raise ValueError(f"{path}: no log_probs to write; expected embeddings of a network")
        names = [f"{CLASS}{sirna}" for sirna in embeddings.classes.tolist()]
        of_class = dict(zip(names, embeddings.log_probs.T, strict=True))
        _replace(log_probs_path(path), {embeddings.id: columns[embeddings.id], **of_class}, about)
    if embeddings.role is not None:
        columns["role"] = embeddings.role.tolist()
    features = {f"{FEATURE}{i}": column for i, column in enumerate(embeddings.x.T)}
    _replace(path, columns | features, about)


def read(path: str | os.PathLike, log_probs: bool = False) -> Embeddings:
    """What `write` wrote; of log-probabilities, on request, those of the same source.

    Raises ValueError, OSError: a file that is missing or not of this kind; one line.
    """
    path = user_path(path)
    with _of(path):
        table = _table(path)
        about = _about(table.schema)
        unit, source = about.get("unit", "site"), json.loads(about.get("source", "{}"))
        features = [name for name in table.column_names if name.removeprefix(FEATURE).isdigit()]
        names = [f"{FEATURE}{i}" for i in range(len(features))]
        if not names or set(names) != set(features):
            raise ValueError(f"expected columns {FEATURE}0, {FEATURE}1, ... without a gap")
        sites, x = sites_of(table), _matrix(table, names)
        role = np.array(_texts(table, "role")) if "role" in table.column_names else None
    scores, classes = None, None
    if log_probs:
        with _of(log_probs_path(path)):
            beside, row_id = _table(log_probs_path(path)), f"{unit}_id"
            same = _about(beside.schema) == about
            if not same or beside[row_id].to_pylist() != table[row_id].to_pylist():
                raise ValueError(f"not made with {path.name}; embed again")
            of_class = [name for name in beside.column_names if name.startswith(CLASS)]
            classes = np.array([int(name.removeprefix(CLASS)) for name in of_class], np.int32)
            scores = _matrix(beside, of_class)
    with _of(path):
        return Embeddings(sites, x, scores, classes, unit, source, role)


def source_of(path: str | os.PathLike) -> Mapping[str, str]:
    """The source of a written file, without its rows; empty if there is no such file."""
    path = user_path(path)
    if not path.exists():
        return {}
    with _of(path):
        return json.loads(_about(pq.read_schema(path)).get("source", "{}"))


def log_probs_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}_log_probs.parquet")


def sites_of(table: pa.Table) -> np.ndarray:
    """The columns of metadata that a table has, as a structured array."""
    columns: dict[str, Any] = {}
    for name in (name for name in METADATA if name in table.column_names):
        columns[name] = _texts(table, name) if name in TEXT else table[name].to_numpy()
        if name in NUMBERS and columns[name].dtype.kind not in "iu":  # floats, where one is missing
            raise ValueError(f"column {name}: expected a whole number in every row")
    if not columns:
        raise ValueError("no columns of metadata; expected site_id or well_id")
    return structured(columns)


def _texts(table: pa.Table, name: str) -> list[str]:
    texts = table[name].to_pylist()
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"column {name}: expected text in every row")
    return texts


def _matrix(table: pa.Table, names: list[str]) -> np.ndarray:
    out = np.empty((table.num_rows, len(names)), np.float32)
    for i, name in enumerate(names):
        kind = table[name].type
        if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
            raise ValueError(f"column {name} is {kind}; expected numbers")
        out[:, i] = table[name].to_numpy()
    return out


def _replace(path: Path, columns: Mapping[str, Any], about: Mapping[str, str]) -> None:
    arrays = {
        name: pa.array(values, pa.int32() if name in NUMBERS else None)
        for name, values in columns.items()
    }
    table = pa.table(arrays)
    about = {**about, DIGEST: _digest(table)}
    with replacing(path) as partial:
        pq.write_table(table.replace_schema_metadata(about), partial, compression="zstd")


def _table(path: Path) -> pa.Table:
    """What `_replace` wrote, as it was written, or anybody's table. Raises ValueError."""
    table = pq.read_table(path)
    given = (table.schema.metadata or {}).get(DIGEST.encode(), b"").decode()
    if given and given != _digest(table):
        raise ValueError("its content is not what was written; embed again")
    return table


def _digest(table: pa.Table) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_string(column.type):
            data = "\n".join(map(str, column.to_pylist())).encode()
        else:
            data = column.to_numpy().tobytes()
        digest.update(f"{name} {column.type}\n".encode() + data)
    return digest.hexdigest()


@contextlib.contextmanager
def _of(path: Path) -> Iterator[None]:
    """What is wrong with a file is said with its path, in one line."""
    try:
        yield
    except (pa.ArrowException, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {described(error)}") from error


def _about(schema: pa.Schema) -> dict[str, str]:
    given = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
    return {key: given[key] for key in ("unit", "source") if key in given}

"""log_probs.parquet: what a network says of each class, for each site. Needs no JAX.

A row per site: the columns of COLUMNS, role, and log_probs, a list of K float32. The schema's
metadata hold `classes`, the sirna_id of each place of the list, and `source`, which made them (JSON
both). With pandas and NumPy:

    table = pandas.read_parquet("RUN/log_probs.parquet")
    x = numpy.stack(table["log_probs"])  # [n, K]

Row groups have ROWS rows, and are read one by one: the memory taken is theirs.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rxrx1_jax.config import described
from rxrx1_jax.data.embeddings import check_finite
from rxrx1_jax.data.files import replacing
from rxrx1_jax.data.images import METADATA, NUMBERS, structured

NAME = "log_probs.parquet"
ROWS = 4096
COLUMNS = (*METADATA, "release_row")


class LogProbs(NamedTuple):
    """An open file.

    Attributes:
      sites: structured [n] with COLUMNS.
      role: str [n], of each site in the split; "other": in none of its sets.
      classes: i32 [K] sirna_ids.
      source: what made them, text to text.
    """

    path: Path
    sites: np.ndarray
    role: np.ndarray
    classes: np.ndarray
    source: Mapping[str, str]

    def parts(self) -> Iterator[np.ndarray]:
        """The rows in order, float32 [ROWS or fewer, K] at a time. Raises ValueError, one line."""
        first = 0
        with _of(self.path), pq.ParquetFile(self.path) as file:
            for group in range(file.num_row_groups):
                column = file.read_row_group(group, ["log_probs"])["log_probs"].combine_chunks()
                part = column.flatten().to_numpy().reshape(-1, len(self.classes))
                check_finite("log_probs", part, self.sites["site_id"][first : first + len(part)])
                first += len(part)
                yield part

    def of(self, keep: np.ndarray) -> np.ndarray:
        """float32 [m, K] of the rows where keep, bool [n], is true."""
        out, first, filled = np.empty((keep.sum(), len(self.classes)), np.float32), 0, 0
        for part in self.parts():
            kept = part[keep[first : first + len(part)]]
            out[filled : filled + len(kept)] = kept
            first, filled = first + len(part), filled + len(kept)
        return out

    def best(self) -> np.ndarray:
        """sirna_ids i32 [n] of the likeliest class; the first among equals."""
        return self.classes[np.concatenate([part.argmax(axis=1) for part in self.parts()])]


def write(
    path: Path, sites: np.ndarray, role: np.ndarray, classes: np.ndarray,
    parts: Iterable[np.ndarray], source: Mapping[str, str],
) -> None:  # fmt: skip
    """Writes the file whole or not at all.

    parts: of the rows in order, float32 [any number, K] each.
    """
    kind = pa.list_(pa.float32(), len(classes))
    about = {"classes": json.dumps(classes.tolist()), "source": json.dumps(dict(source))}
    columns = {
        name: pa.array(sites[name].tolist(), pa.int32() if name in NUMBERS else pa.string())
        for name in COLUMNS
    } | {"role": pa.array(role.tolist())}
    table, first = pa.table(columns), 0
    schema = table.schema.append(pa.field("log_probs", kind)).with_metadata(about)
    with (
        replacing(path) as partial,
        pq.ParquetWriter(partial, schema, compression="zstd", use_dictionary=list(columns)) as out,
    ):
        for part in parts:
            flat = pa.array(np.ascontiguousarray(part, np.float32).reshape(-1))
            listed = pa.FixedSizeListArray.from_arrays(flat, type=kind)
            rows = table.slice(first, len(part)).append_column(schema.field("log_probs"), listed)
            out.write_table(rows.replace_schema_metadata(about), ROWS)
            first += len(part)
        if first != len(table):
            raise ValueError(f"{path}: {first} rows of log-probabilities, expected {len(table)}")


def read(path: Path) -> LogProbs:
    """What `write` wrote, all but the matrix. Raises ValueError, OSError: not such a file."""
    with _of(path):
        schema = pq.read_schema(path)
        about = schema.metadata or {}
        classes = np.array(json.loads(about[b"classes"]), np.int32)
        source = json.loads(about[b"source"])
        if schema.field("log_probs").type != pa.list_(pa.float32(), len(classes)):
            raise ValueError(f"log_probs: expected lists of {len(classes)} float32, one per class")
        table = pq.read_table(path, columns=[*COLUMNS, "role"])
        sites = structured({name: table[name].to_pylist() for name in COLUMNS})
        return LogProbs(path, sites, np.array(table["role"].to_pylist()), classes, source)


def source_of(path: Path) -> Mapping[str, str]:
    """The source of a written file, without its rows; empty where there is none that is whole."""
    try:
        return json.loads((pq.read_schema(path).metadata or {})[b"source"])
    except (OSError, KeyError, ValueError, pa.ArrowException):
        return {}


@contextlib.contextmanager
def _of(path: Path) -> Iterator[None]:
    """What is wrong with a file is said with its path, in one line."""
    try:
        yield
    except (pa.ArrowException, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {described(error)}; remove it, and predict again") from error

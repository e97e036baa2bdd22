"""A table in any usual file -> its columns. The content says what a file is, not its name.

CSV, TSV, and either in gzip or zip; Parquet; .h5ad (`h5ad.py`).
"""

import csv
import gzip
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from rxrx1_jax.config import described
from rxrx1_jax.data import h5ad
from rxrx1_jax.data.images import DatasetError
from rxrx1_jax.data.table_columns import known_as

EXPECTED = "expected a table of embeddings: CSV, TSV, Parquet or .h5ad, or CSV in gzip or zip"
NO_ROWS = "no rows below the names of the columns; expected some; get the file again"
_TEXTS = (".csv", ".tsv", ".txt")
_MEMBERS = (*_TEXTS, ".parquet")


def read_table(path: Path) -> pa.Table:
    """The columns of a file; text as strings, a column of vectors as a column per number.

    Raises DatasetError: not a table, damaged, empty, names that are there twice; OSError.
    """
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"{path}: {found}; {EXPECTED}; name the file")
    with path.open("rb") as file:
        start = file.read(8)
    if not start:
        raise DatasetError(f"{path}: the file is empty; {EXPECTED}; get it again")
    try:
        if start == b"\x89HDF\r\n\x1a\n":
            table = h5ad.read(path)
        elif start.startswith(b"PK\x03\x04"):
            table = _zip(path)
        elif start.startswith(b"\x1f\x8b"):
            table = _text(pa.py_buffer(gzip.decompress(path.read_bytes())))
        elif start.startswith(b"PAR1"):
            table = pq.read_table(path)
        else:
            table = _text(pa.memory_map(str(path)).read_buffer())
        return _plain(table)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error
    except (
        pa.ArrowException, EOFError, LookupError, OSError, RuntimeError, ValueError,
        zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        raise DatasetError(f"{path}: {described(error)}; {EXPECTED}; get it again") from error


def _zip(path: Path) -> pa.Table:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.startswith("__MACOSX")]
        tables = [name for name in names if name.lower().endswith(_MEMBERS)]
        named = [name for name in tables if Path(name).stem == "embeddings"]
        chosen = named if named else tables
        if len(chosen) != 1 or Path(chosen[0]).name == "metadata.csv":
            shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if names[4:] else "")
            raise DatasetError(
                f"the archive holds {shown or 'nothing'}; expected one table, as"
                " rxrx1/embeddings.csv of rxrx1-dl-embeddings.zip; take it out, or get that archive"
            )
        data = pa.py_buffer(archive.read(chosen[0]))
    if chosen[0].lower().endswith(_TEXTS):
        return _text(data)
    return pq.read_table(pa.BufferReader(data))


def _text(data: pa.Buffer) -> pa.Table:
    """CSV or TSV; columns of ids and other metadata stay text, so that 01 is not 1."""
    if not data.size:
        raise DatasetError(f"the table in it is empty; {EXPECTED}; get it again")
    start, newline, _ = memoryview(data)[: 1 << 24].tobytes().partition(b"\n")
    try:
        line = start.decode("utf-8-sig").rstrip("\r")
    except UnicodeDecodeError:
        raise DatasetError(f"no text in UTF-8; {EXPECTED}; save it as one of these") from None
    if not line.replace("\t", "").isprintable():
        raise DatasetError(f"it starts with {line[:20]!r}; {EXPECTED}")
    delimiter = max(",\t;", key=line.count)
    if delimiter not in line:
        raise DatasetError(f"one column, {line[:60]!r}; {EXPECTED}, with ids and features")
    if not newline:
        raise DatasetError(NO_ROWS)
    names = next(csv.reader([line], delimiter=delimiter))
    kinds = {name: pa.string() for name in names if known_as(name)}
    return pyarrow.csv.read_csv(
        pa.BufferReader(data),
        parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter),
        convert_options=pyarrow.csv.ConvertOptions(column_types=kinds),
    )


def _plain(table: pa.Table) -> pa.Table:
    """Text as strings, and columns of lists as a column per number."""
    names = table.column_names
    twice = [name for name in names if names.count(name) > 1] if len({*names}) < len(names) else []
    if twice:
        raise DatasetError(f"column {twice[0]!r} is there twice; expected once")
    if not len(table):
        raise DatasetError(NO_ROWS)
    columns: dict[str, pa.ChunkedArray] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        kind = column.type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            kind = pa.string()
        column = column if kind == column.type else column.cast(kind)
        if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(
            kind
        ):  # fmt: skip
            lengths = pc.unique(pc.list_value_length(column)).to_pylist()
            if len(lengths) != 1 or not lengths[0]:
                raise DatasetError(
                    f"column {name} has vectors of {len(lengths)} lengths; expected one length"
                )
            flat = pc.list_flatten(column).to_numpy().reshape(len(column), -1)
            columns |= {f"{name}_{i}": pa.chunked_array([part]) for i, part in enumerate(flat.T)}
        else:
            columns[name] = column
    return pa.table(columns).replace_schema_metadata(table.schema.metadata)


def matrix(table: pa.Table, names: list[str], rows: np.ndarray) -> np.ndarray:
    """f32 [len(rows), len(names)]: the rows of these columns; what is missing is NaN."""
    out = np.empty((len(rows), len(names)), np.float32)
    with np.errstate(over="ignore"):  # too large for float32: infinite, and refused as that
        for i, name in enumerate(names):
            column = table[name]
            if pa.types.is_decimal(column.type) or column.null_count:
                column = column.cast(pa.float64())
            out[:, i] = column.to_numpy()[rows]
    return out

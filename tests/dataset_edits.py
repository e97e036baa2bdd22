"""Edits of a built dataset, as a disk or another program would make them."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def edit_json(path: Path, change: Callable[[dict], object]) -> None:
    """Writes a description again after `change` of it."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_bytes(path: Path, change: Callable[[bytearray], object]) -> None:
    """Writes a file again after `change` of its bytes."""
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


def flip(at: int) -> Callable[[bytearray], object]:
    return lambda data: data.__setitem__(at, data[at] ^ 1)


def cut(count: int) -> Callable[[bytearray], object]:
    return lambda data: data.__delitem__(slice(-count, None))


def edit_table(folder: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Writes `change` of the table of sites, and its digest into metadata.json."""
    path = folder / "sites.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    edit_json(folder / "metadata.json", lambda metadata: metadata["table"].update(sha256=digest))


def edit_column(name: str, change: Callable[[list], list]) -> Callable[[pa.Table], pa.Table]:
    """For `edit_table`: a column holds `change` of its values."""

    def edit(table: pa.Table) -> pa.Table:
        at, values = table.column_names.index(name), table[name].to_pylist()
        return table.set_column(at, name, pa.array(change(values), table.schema.field(name).type))

    return edit

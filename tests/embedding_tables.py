"""The tiny release's sites with random embeddings, as columns, and files of such columns."""

import csv
import io
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tiny_release import tiny_rows, write_metadata

from rxrx1_jax.data.images import METADATA

ROWS = tiny_rows()
N, D = len(ROWS), 5
X = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
FEATURES = {f"feature_{i}": X[:, i] for i in range(D)}
NUMBERS = ("plate", "site", "sirna_id")
TRUTH = {
    name: [int(row[name]) if name in NUMBERS else row[name] for row in ROWS] for name in METADATA
}

IDS = {"site_id": TRUTH["site_id"]}
PLACES = {name: TRUTH[name] for name in ("experiment", "plate", "well", "site")}


def metadata_file(folder: Path) -> Path:
    write_metadata(folder / "meta", ROWS)
    return folder / "meta" / "metadata.csv"


def text(columns, delimiter=",") -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return out.getvalue().encode()


def parquet(columns) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


def zipped(members) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def changed(**columns) -> dict:
    return IDS | FEATURES | columns


def rows(keep, **columns) -> dict:
    return {
        name: [value for value, kept in zip(column, keep, strict=True) if kept]
        for name, column in changed(**columns).items()
    }

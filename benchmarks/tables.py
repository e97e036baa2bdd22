"""Time and memory of reading tables of embeddings with their metadata, at the size of the release.

    python -m benchmarks.tables [--experiments 51] [--features 128 384]

The ids are those of the release's plan (51 experiments, 4 plates, 308 wells, 2 sites), the numbers
are random, with seven digits. Each table is read once, in a process of its own.
"""

import argparse
import csv
import resource
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from benchmarks.timing import describe
from rxrx1_jax.data import table_metadata, table_styles, tables
from rxrx1_jax.data.embeddings import Embeddings
from rxrx1_jax.data.images import METADATA

EXPERIMENTS = {"HUVEC": 24, "RPE": 11, "HEPG2": 11, "U2OS": 5}
WELLS = [f"{row}{column:02}" for row in "BCDEFGHIJKLMNO" for column in range(2, 24)]
TREATMENTS = 277  # of a plate


def metadata_rows(experiments: int) -> Iterator[tuple]:
    names = [f"{cell}-{i:02}" for cell, n in EXPERIMENTS.items() for i in range(1, n + 1)]
    for name in names[:experiments]:
        for plate in range(1, 5):
            for place, well in enumerate(WELLS):
                kind, sirna_id = "treatment", place + TREATMENTS * (plate - 1)
                if place >= TREATMENTS:
                    kind, sirna_id = "positive_control", 1108 + place - TREATMENTS
                if place == len(WELLS) - 1:
                    kind, sirna_id = "negative_control", 1138
                sirna = "EMPTY" if sirna_id == 1138 else f"s{sirna_id}"
                well_id = f"{name}_{plate}_{well}"
                for site in (1, 2):
                    yield (
                        f"{well_id}_{site}", well_id, name.split("-")[0], "train", name, plate,
                        well, site, kind, sirna, sirna_id,
                    )  # fmt: skip


def write_tables(folder: Path, metadata: Path, features: int) -> list[Path]:
    """The same embeddings as CSV, zip, Parquet and .h5ad."""
    sites = table_metadata.read_metadata(metadata)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(len(sites), features)).round(7).astype(np.float32)
    stem = folder / f"{features}"
    table = pa.table({"site_id": sites["site_id"].tolist()} | {
        f"feature_{i}": column for i, column in enumerate(x.T)
    })  # fmt: skip
    paths = [stem.with_suffix(suffix) for suffix in (".csv", ".zip", ".parquet", ".h5ad")]
    pyarrow.csv.write_csv(table, paths[0])
    with zipfile.ZipFile(paths[1], "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(paths[0], "rxrx1/embeddings.csv")
    pq.write_table(table, paths[2])
    table_styles.write(Embeddings(sites, x), paths[3], "h5ad")
    return paths


def read(path: str, metadata: str) -> None:
    """Prints the shape, the CPU seconds and the peak memory of one reading, in this process."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    rows, features = tables.read(path, metadata).embeddings.x.shape
    after = resource.getrusage(resource.RUSAGE_SELF)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    peak = after.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    print(f"| {rows:,} x {features} | {seconds:.1f} | {peak:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--experiments", type=int, default=sum(EXPERIMENTS.values()))
    parser.add_argument("--features", type=int, nargs="+", default=[128, 384])
    options = parser.parse_args()
    print(describe(("numpy", "pyarrow", "h5py"), experiments=options.experiments))
    print("| table | MB | sites x features | CPU s | peak GB |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        metadata = folder / "metadata.csv"
        with metadata.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([METADATA, *metadata_rows(options.experiments)])
        for features in options.features:
            for path in write_tables(folder, metadata, features):
                asked = f"{str(path)!r}, {str(metadata)!r}"
                program = f"from benchmarks.tables import read; read({asked})"
                command = [sys.executable, "-c", program]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                size = path.stat().st_size / 1e6
                print(f"| {path.suffix[1:]} | {size:.0f} {done.stdout.strip()}", flush=True)
                path.unlink()


if __name__ == "__main__":
    main()

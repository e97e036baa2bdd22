"""The two archives that Recursion publishes, with made-up numbers in place of its embeddings.

    python tests/official_tables.py FOLDER [METADATA.csv.gz]

The sites are those of the metadata (the real one, where it is at hand), else of a synthetic screen.
"""

import gzip
import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from rxrx1_jax.data.images import METADATA, NUMBERS, structured

REAL = Path(__file__).parents[2] / "shared" / "realdata" / "metadata_reconstructed.csv.gz"
SIZE = 8**0.5  # of the vector of a siRNA
ARCHIVES = {"rxrx1-metadata.zip": "rxrx1/metadata.csv",
            "rxrx1-dl-embeddings.zip": "rxrx1/embeddings.csv"}  # fmt: skip


def synthetic_sites(**design: int) -> np.ndarray:
    """The sites of a synthetic screen; design: as of `Screen`."""
    from rxrx1_jax.data.builder.synthetic.screen import Screen, screen_sites

    columns = zip(*screen_sites(Screen(**design)), strict=True)
    return structured(dict(zip(METADATA, columns, strict=True)))


def made_up(sites: np.ndarray, dim: int, batch: float = 2.0, seed: int = 0) -> np.ndarray:
    """f32 [n, dim]: a vector per siRNA, three quarters of it shared by the cell types, one per
    experiment (times `batch`), one per plate, and noise. siRNAs are as far apart whatever dim."""
    rng = np.random.default_rng(seed)

    def effect(*names: str) -> np.ndarray:
        code = np.unique(sites[list(names)], return_inverse=True)[1]
        return rng.standard_normal((code.max() + 1, dim), np.float32)[code]

    sirna = 0.75**0.5 * effect("sirna_id") + 0.5 * effect("sirna_id", "cell_type")
    shift = batch * (effect("experiment") + 0.25 * effect("experiment", "plate"))
    return SIZE / dim**0.5 * sirna + shift + rng.standard_normal((len(sites), dim), np.float32)


def write_archives(folder: Path, sites: np.ndarray, x: np.ndarray) -> None:
    ids = {"site_id": sites["site_id"].tolist()}
    features = pa.table(ids | {f"feature_{i}": column for i, column in enumerate(x.T)})
    metadata = pa.table({name: sites[name].tolist() for name in METADATA})
    for (name, member), table in zip(ARCHIVES.items(), (metadata, features), strict=True):
        text = io.BytesIO()
        options = pyarrow.csv.WriteOptions(quoting_style="none")
        pyarrow.csv.write_csv(table, text, options)
        with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(member, text.getvalue())


def main(folder: str, metadata: str = "") -> None:
    if metadata:
        with gzip.open(metadata) as file:
            kinds = {name: pa.int32() if name in NUMBERS else pa.string() for name in METADATA}
            options = pyarrow.csv.ConvertOptions(column_types=kinds, include_columns=METADATA)
            table = pyarrow.csv.read_csv(file, convert_options=options)
        sites = structured({name: table[name].to_pylist() for name in METADATA})
    else:
        sites = synthetic_sites()
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_archives(Path(folder), sites, made_up(sites, 128))


if __name__ == "__main__":
    main(*sys.argv[1:])

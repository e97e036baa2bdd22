"""Tables of embeddings from anywhere: every way to write one table gives the same embeddings."""

import gzip
import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from embedding_tables import (
    FEATURES,
    IDS,
    PLACES,
    ROWS,
    TRUTH,
    D,
    N,
    X,
    metadata_file,
    parquet,
    rows,
    text,
    zipped,
)
from tiny_release import tiny_wilds_rows, write_kaggle_tables, write_metadata, zip_files

from rxrx1_jax.data import embeddings as embeddings_lib
from rxrx1_jax.data import tables
from rxrx1_jax.data.images import METADATA
from rxrx1_jax.data.splits import make_split

SHUFFLED = np.random.default_rng(1).permutation(N)


@pytest.fixture
def metadata(tmp_path) -> Path:
    return metadata_file(tmp_path)


def of_pandas(index) -> bytes:
    frame = pytest.importorskip("pandas").DataFrame(FEATURES)
    out = io.BytesIO()
    frame.set_axis(index(frame)).to_parquet(out)
    return out.getvalue()


PATHS = [
    f"images/{e}/Plate{p}/{w}_s{s}.png" for e, p, w, s in zip(*PLACES.values(), strict=True)
]
PYCYTOMINER = {
    "Metadata_Batch": TRUTH["experiment"], "Metadata_Plate": [f"Plate{p}" for p in TRUTH["plate"]],
    "Metadata_Well": [w.replace("0", "").lower() if w[1] == "0" else w for w in TRUTH["well"]],
    "Metadata_Site": TRUTH["site"], "Metadata_sirna_id": TRUTH["sirna_id"],
    **{f"Cells_{name}": column for name, column in FEATURES.items()},
}  # fmt: skip
WAYS = {
    "csv": lambda: text(IDS | FEATURES),
    "bom, crlf": lambda: b"\xef\xbb\xbf" + text(IDS | FEATURES).replace(b"\n", b"\r\n"),
    "tsv": lambda: text(IDS | FEATURES, "\t"),
    "semicolons": lambda: text(IDS | FEATURES, ";"),
    "gzip": lambda: gzip.compress(text(IDS | FEATURES)),
    "official zip": lambda: zipped({"rxrx1/embeddings.csv": text(IDS | FEATURES), "LICENSE": b"x"}),
    "zip of a table": lambda: zipped({"dino.csv": text(IDS | FEATURES), "__MACOSX/dino.csv": b"x"}),
    "parquet": lambda: parquet(IDS | FEATURES),
    "float64": lambda: parquet(IDS | {n: x.astype(np.float64) for n, x in FEATURES.items()}),
    "vectors": lambda: parquet(IDS | {"embedding": list(X)}),
    "fixed vectors": lambda: parquet(
        IDS | {"e": pa.FixedSizeListArray.from_arrays(pa.array(X.reshape(-1)), D)}
    ),
    "categories": lambda: parquet(
        {"site_id": pa.array(TRUTH["site_id"]).dictionary_encode()} | FEATURES
    ),
    "index": lambda: of_pandas(lambda frame: TRUTH["site_id"]),
    "named index": lambda: of_pandas(lambda frame: pandas().Index(TRUTH["site_id"], name="id")),
    "index of three": lambda: of_pandas(
        lambda frame: pandas().MultiIndex.from_arrays(list(PLACES.values()), names=list(PLACES))
    ),
    "index in a csv": lambda: text({"": TRUTH["site_id"]} | FEATURES),
    "places": lambda: text(PLACES | FEATURES),
    "pycytominer": lambda: text(PYCYTOMINER),
    "plates by name": lambda: parquet(
        {
            "Metadata_Plate": [
                f"{e}_{p}" for e, p in zip(TRUTH["experiment"], TRUTH["plate"], strict=True)
            ],
            "Metadata_Well": TRUTH["well"], "Metadata_Site": [f"s{s}" for s in TRUTH["site"]],
        } | FEATURES  # fmt: skip
    ),
    "well_id and site": lambda: text(
        {"well_id": TRUTH["well_id"], "site": TRUTH["site"]} | FEATURES
    ),
    "paths": lambda: text({"image": PATHS} | FEATURES),
}


def pandas():
    return pytest.importorskip("pandas")


@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_the_same_embeddings(way, metadata, tmp_path):
    (tmp_path / "table").write_bytes(WAYS[way]())
    found = tables.read(tmp_path / "table", metadata)
    np.testing.assert_array_equal(found.embeddings.x, X)
    assert found.embeddings.unit == "site"
    for name in METADATA:
        assert found.embeddings.sites[name].tolist() == TRUTH[name], name


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int16"])
def test_numbers_of_any_size(dtype, metadata, tmp_path):
    given = (100 * X).astype(dtype)
    columns = {f"f{i}": given[SHUFFLED, i] for i in range(D)}
    ids = np.array(TRUTH["site_id"])[SHUFFLED].tolist()
    (tmp_path / "e.parquet").write_bytes(parquet({"site_id": ids} | columns))
    found = tables.read(tmp_path / "e.parquet", metadata)
    assert found.remarks == []
    np.testing.assert_array_equal(found.embeddings.x, given.astype(np.float32))
    assert found.embeddings.sites["site_id"].tolist() == TRUTH["site_id"]


def wells() -> tuple[list[str], np.ndarray]:
    """The wells in the order of the metadata, and the mean of their sites."""
    ids = list(dict.fromkeys(TRUTH["well_id"]))
    mean = [X[np.array(TRUTH["well_id"]) == well].mean(0) for well in ids]
    return ids, np.array(mean, np.float32)


@pytest.mark.parametrize("way", ["well_id", "Metadata_id_code", "image", "columns"])
def test_a_row_per_well(way, metadata, tmp_path):
    ids, mean = wells()
    columns = {way: ids}
    if way == "columns":
        parts = zip(*(well.split("_") for well in ids), strict=True)
        columns = dict(zip(("Experiment", "Plate", "Well"), parts, strict=True))
    features = {f"f{i}": mean[:, i] for i in range(D)}
    (tmp_path / "e.parquet").write_bytes(parquet(columns | features))
    found, remarks = tables.read(tmp_path / "e.parquet", metadata)
    assert found.unit == "well" and remarks == ([] if way != "columns" else remarks)
    np.testing.assert_array_equal(found.x, mean)
    assert found.sites["well_id"].tolist() == found.sites["site_id"].tolist() == ids
    assert set(found.sites["site"]) == {1}
    place = [TRUTH["well_id"].index(well) for well in ids]
    assert found.sites["sirna_id"].tolist() == [TRUTH["sirna_id"][i] for i in place]
    split = make_split(found.sites, "official")
    known = [TRUTH["sirna_id"][i] for i in place if TRUTH["well_type"][i] == "treatment"]
    assert len(split.train) + len(split.test) == sum(sirna >= 0 for sirna in known)


def write_kinds(folder: Path) -> dict[str, Path]:
    """Every file and folder that metadata may be given as."""
    write_metadata(folder / "official", ROWS)
    write_metadata(folder / "wilds", tiny_wilds_rows())
    whole = (folder / "official/metadata.csv").read_bytes()
    (folder / "m.csv.gz").write_bytes(gzip.compress(whole))
    zip_files(folder / "rxrx1-metadata.zip", folder / "official", ["metadata.csv"])
    write_kaggle_tables(folder / "kaggle", ROWS)
    write_kaggle_tables(folder / "later", ROWS, later=True)
    write_metadata(folder / "later", ROWS)
    zip_files(folder / "kaggle.zip", folder / "kaggle", os.listdir(folder / "kaggle"))
    return {
        "folder": folder / "official", "zip": folder / "rxrx1-metadata.zip",
        "gzip": folder / "m.csv.gz", "wilds": folder / "wilds/metadata.csv",
        "kaggle": folder / "kaggle", "kaggle table": folder / "kaggle/train_controls.csv",
        "kaggle zip": folder / "kaggle.zip", "later": folder / "later/train.csv",
    }  # fmt: skip


def test_metadata_of_every_release(tmp_path):
    (tmp_path / "e.csv").write_bytes(text(IDS | FEATURES))
    for kind, path in write_kinds(tmp_path).items():
        found, remarks = tables.read(tmp_path / "e.csv", path)
        row = {name: i for i, name in enumerate(TRUTH["site_id"])}
        place = [row[name] for name in found.sites["site_id"].tolist()]
        assert sorted(place) == list(range(N)), kind
        np.testing.assert_array_equal(found.x, X[place])
        hidden = {"kaggle", "kaggle table", "kaggle zip"}  # labels of the test treatments
        for i, site in zip(place, found.sites, strict=True):
            is_test = site["dataset"] == "test" and site["well_type"] == "treatment"
            secret = kind in hidden and is_test
            assert site["sirna_id"] == (-1 if secret else TRUTH["sirna_id"][i]), kind
        assert {"val"} <= set(found.sites["dataset"]) or kind != "wilds"
        # Kaggle lists wells, so the site that the tiny release lacks is expected there.
        assert len(remarks) == (kind[:5] in ("kaggl", "later"))


def test_metadata_within_the_table(tmp_path):
    columns = {f"Metadata_{name}": TRUTH[name] for name in METADATA} | FEATURES
    (tmp_path / "e.csv").write_bytes(text(columns))
    found = tables.read(tmp_path / "e.csv").embeddings
    for name in METADATA:
        assert found.sites[name].tolist() == TRUTH[name], name
    few = {name: TRUTH[name] for name in ("site_id", "well_type", "sirna_id")}
    (tmp_path / "few.csv").write_bytes(text(few | FEATURES))
    found = tables.read(tmp_path / "few.csv").embeddings
    for name in set(METADATA) - {"dataset", "sirna"}:
        assert found.sites[name].tolist() == TRUTH[name], name
    np.testing.assert_array_equal(found.x, X)
    own = tmp_path / "embeddings.parquet"
    embeddings_lib.write(found, own)
    again, remarks = tables.read(own)
    assert remarks == [] and again.source == found.source
    np.testing.assert_array_equal(again.x, X)


LEFT_OUT = {
    "sirna_id": TRUTH["sirna_id"], "Metadata_Count": list(range(N)), "label": TRUTH["sirna_id"],
    "gene": TRUTH["sirna"], "batch": TRUTH["experiment"], "taken": [True] * N,
    "fixed": [1.5] * N, "empty": [""] * N,
    "by_plate": [hash((e, p)) for e, p in zip(TRUTH["experiment"], TRUTH["plate"], strict=True)],
    "by_sirna": [7.0 * s for s in TRUTH["sirna_id"]],
    "by_well": [ord(well[0]) for well in TRUTH["well"]],
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_is_no_feature_is_left_out_by_name(name, metadata, tmp_path):
    (tmp_path / "e.csv").write_bytes(text(IDS | FEATURES | {name: LEFT_OUT[name]}))
    found, remarks = tables.read(tmp_path / "e.csv", metadata)
    assert found.x.shape == (N, D)
    assert len(remarks) == 1 and name in remarks[0]


def test_missing_and_extra_rows_are_counted(metadata, tmp_path):
    columns = rows([i not in (3, 20) for i in range(N)])
    columns["site_id"] += ["RPE-01_1_B02_1"]
    for i in range(D):
        columns[f"feature_{i}"] += [np.nan]  # of a row that no site has
    (tmp_path / "e.csv").write_bytes(text(columns))
    found, remarks = tables.read(tmp_path / "e.csv", metadata)
    kept = np.delete(np.arange(N), [3, 20])
    np.testing.assert_array_equal(found.x, X[kept])
    missing, extra = remarks
    assert missing.startswith(f"2 of {N} ") and TRUTH["site_id"][3] in missing
    assert extra.startswith(f"1 of {N - 1} ") and "RPE-01_1_B02_1" in extra
    only = [e == "HUVEC-01" for e in TRUTH["experiment"]]
    (tmp_path / "e.csv").write_bytes(text(rows(only)))
    found, remarks = tables.read(tmp_path / "e.csv", metadata)
    assert len(found.x) == sum(only) and remarks[0].startswith(f"{N - sum(only)} of {N} ")


REAL = Path(__file__).parents[3] / "shared" / "realdata"


@pytest.mark.skipif(not REAL.is_dir(), reason="the real metadata is not here")
@pytest.mark.parametrize("source", ["release", "kaggle"])
def test_real_metadata(source, tmp_path):
    metadata = REAL / "metadata_reconstructed.csv.gz"
    if source == "kaggle":
        metadata = tmp_path / "kaggle"
        metadata.mkdir()
        for packed in (REAL / "kaggle").iterdir():
            (metadata / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))
    with gzip.open(REAL / "metadata_reconstructed.csv.gz", "rt") as file:
        ids = [line.split(",", 1)[0] for line in file][1:]
    x = np.random.default_rng(0).normal(size=len(ids)).astype(np.float32)
    (tmp_path / "e.parquet").write_bytes(parquet({"site_id": ids, "feature_0": x}))
    found, remarks = tables.read(tmp_path / "e.parquet", metadata)
    assert len(found.x) == 125510 and not remarks
    at = {site: i for i, site in enumerate(ids)}
    place = [at[site] for site in found.sites["site_id"].tolist()]
    np.testing.assert_array_equal(found.x[:, 0], x[place])
    treatments = found.sites["well_type"] == "treatment"
    known = found.sites["sirna_id"] >= 0
    train = found.sites["dataset"] == "train"
    assert (train & treatments & known).sum() == 73030 and (train | known | treatments).all()
    assert source == "release" or not (known & treatments & ~train).any()

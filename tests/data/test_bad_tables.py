"""Bad tables of embeddings: each is refused in one line."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from embedding_tables import (
    FEATURES,
    IDS,
    PLACES,
    TRUTH,
    N,
    X,
    changed,
    metadata_file,
    parquet,
    rows,
    text,
    zipped,
)

from rxrx1_jax.data import tables

SIDES = {name: TRUTH[name] for name in ("site_id", "well_type", "sirna_id")}


@pytest.fixture
def metadata(tmp_path) -> Path:
    return metadata_file(tmp_path)
def locked(archive: bytes) -> bytes:
    """Its first member needs a password, say its header and the table of contents."""
    found = bytearray(archive)
    found[6] |= 1
    found[found.index(b"PK\x01\x02") + 8] |= 1
    return bytes(found)


EXPERIMENTS = list(enumerate(TRUTH["experiment"]))


def spoilt(value, at: int = 7):
    return [value if i == at else float(x) for i, x in enumerate(X[:, 0])]


FIRST = TRUTH["site_id"][7]
WELLS = list(dict.fromkeys(TRUTH["well_id"]))
HALF = WELLS[::3]
OTHERS = [f"RPE-01_1_{row}{column:02}_1" for row in "BCDE" for column in range(2, 24)][:N]
BAD = {  # file, words that the refusal must have
    "no bytes": (lambda: b"", ["empty"]),
    "no rows": (lambda: text(changed()).split(b"\n")[0] + b"\n", ["no rows"]),
    "a picture": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(100), ["CSV"]),
    "cut off": (lambda: parquet(changed())[:-30], ["get it again"]),
    "cut off gzip": (lambda: gzip.compress(text(changed()))[:-30], ["get it again"]),
    "a damaged h5ad": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(50), ["get it again"]),
    "a locked zip": (lambda: locked(zipped({"e.csv": text(changed())})), ["password"]),
    "a gzip of nothing": (lambda: gzip.compress(b""), ["empty"]),
    "an empty zip": (lambda: zipped({}), ["CSV"]),
    "utf-16": (lambda: text(changed()).decode().encode("utf-16"), ["UTF-8"]),
    "a page": (lambda: b"<html>\n404</html>", ["<html>"]),
    "one line": (lambda: b"site_id,feature_0", ["no rows"]),
    "one column": (lambda: b"site_id\nHUVEC-01_1_B02_1\n", ["site_id"]),
    "a longer row": (lambda: text(changed()) + b"HUVEC-01_1_B05_1,1,2,3,4,5,6,7\n", ["columns"]),
    "a name twice": (lambda: text(changed()).replace(b"ture_1", b"ture_0", 1), ["feature_0"]),
    "zip of others": (lambda: zipped({"a.png": b"x", "b.png": b"x"}), ["a.png", "embeddings.csv"]),
    "zip of metadata": (lambda: zipped({"rxrx1/metadata.csv": b"x"}), ["metadata.csv", "rxrx1-dl"]),
    "zip of two": (lambda: zipped({"a.csv": b"x", "b.csv": b"x"}), ["a.csv, b.csv"]),
    "no ids": (lambda: text(FEATURES), ["feature_0", "site_id", "Metadata_Plate"]),
    "another screen": (
        lambda: text(changed(site_id=[f"BR0011_{i}_B02_1" for i in range(N)])),
        [f"0 of {N}", "BR0011_0_B02_1", TRUTH["site_id"][0]],
    ),
    "labels for ids": (
        lambda: text(changed(site_id=TRUTH["sirna"])), [f"0 of {N}", "EMPTY", TRUTH["site_id"][0]],
    ),
    "mostly another screen": (
        lambda: text(changed(site_id=TRUTH["site_id"][:9] + OTHERS[9:])),
        [f"9 of {N}", OTHERS[9]],
    ),
    "duplicates": (
        lambda: text(changed(site_id=[*TRUTH["site_id"][:-2], *TRUTH["site_id"][:2]])),
        ["2 sites", TRUTH["site_id"][0]],
    ),
    "two sites a well": (
        lambda: text({"well_id": TRUTH["well_id"]} | FEATURES), ["several", "column site"],
    ),
    "sites and wells": (
        lambda: text(changed(site_id=[*TRUTH["well_id"][:1], *TRUTH["site_id"][1:]])), ["a well"],
    ),
    "one site": (lambda: text(rows([s == 1 for s in TRUTH["site"]])), ["site 2", "0 of"]),
    "half of the wells": (
        lambda: text({"well_id": HALF} | {name: x[: len(HALF)] for name, x in FEATURES.items()}),
        ["2 of 6 wells", "well_type"],
    ),
    "no treatments": (
        lambda: text(rows([t != "treatment" for t in TRUTH["well_type"]])), ["treatment"],
    ),
    "a third of an experiment": (
        lambda: text(rows([e != "HUVEC-02" or i % 3 == 0 for i, e in EXPERIMENTS])),
        ["HUVEC-02"],
    ),
    "constant": (lambda: text(IDS | {"a": [1] * N, "b": [2] * N}), ["constant", "a, b"]),
    "text alone": (lambda: parquet(IDS | {"a": [f"{x}" for x in X[:, 0]]}), [f"a holds {X[0, 0]}"]),
    "no features": (lambda: text(IDS | {"sirna_id": TRUTH["sirna_id"]}), ["sirna_id"]),
    "nan": (lambda: text(changed(feature_0=spoilt("nan"))), ["1 of", FIRST, "feature_0"]),
    "infinite": (lambda: parquet(changed(feature_0=spoilt(np.inf))), ["1 of", FIRST, "feature_0"]),
    "too large": (lambda: parquet(changed(feature_0=spoilt(1e300))), ["1 of", FIRST, "feature_0"]),
    "a gap": (lambda: text(changed(feature_0=spoilt(""))), ["1 of", FIRST, "feature_0"]),
    "text": (lambda: text(changed(feature_0=spoilt("n.a."))), ["feature_0", "n.a.", "row 8"]),
    "decimal commas": (lambda: text(changed(), ";").replace(b".", b","), ["feature_4 holds -0,"]),
    "ragged vectors": (
        lambda: parquet(IDS | {"e": [[0.0] * (1 + i % 2) for i in range(N)]}), ["column e"],
    ),
    "no such plate": (lambda: text(PLACES | {"plate": ["A"] * N} | FEATURES), ["plate", "'A'"]),
    "no such well": (lambda: text(PLACES | {"well": ["top"] * N} | FEATURES), ["well", "'top'"]),
    "no such site": (lambda: text(PLACES | {"site": ["x"] * N} | FEATURES), ["site", "'x'"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_are_refused_in_one_line(case, metadata, tmp_path):
    data, words = BAD[case]
    (tmp_path / "t.csv").write_bytes(data())
    with pytest.raises(ValueError) as refusal:
        tables.read(tmp_path / "t.csv", metadata)
    said = str(refusal.value)
    assert said.startswith(f"{tmp_path}/t.csv") and "\n" not in said and "expected" in said
    assert [word for word in words if word not in said] == [], said


def test_files_that_are_not_there(metadata, tmp_path):
    for path, word in ((tmp_path, "a folder"), (tmp_path / "none.csv", "no such file")):
        with pytest.raises(OSError, match=word) as refusal:
            tables.read(path, metadata)
        assert str(refusal.value).startswith(f"{path}: ")


BAD_METADATA = {
    "none": (IDS | FEATURES, ["well_type", "sirna_id", "rxrx1-metadata.zip"]),
    "names for ids": (SIDES | {"sirna_id": TRUTH["sirna"]} | FEATURES, ["sirna_id", "metadata"]),
    "types": (SIDES | {"well_type": ["poscon"] * N} | FEATURES, ["poscon", "positive_control"]),
    "ids": (SIDES | {"site_id": list(range(N))} | FEATURES, ["'0'", "HUVEC-01_1_B02_1"]),
}


@pytest.mark.parametrize("case", BAD_METADATA)
def test_bad_metadata_within_a_table(case, tmp_path):
    columns, words = BAD_METADATA[case]
    (tmp_path / "t.csv").write_bytes(text(columns))
    with pytest.raises(ValueError) as refusal:
        tables.read(tmp_path / "t.csv")
    said = str(refusal.value)
    assert "t.csv" in said and "\n" not in said and "expected" in said
    assert [word for word in words if word not in said] == [], said

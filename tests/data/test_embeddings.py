"""The hand-off of embeddings: pandas reads the file, bad tables and files are refused."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rxrx1_jax.data import embeddings as lib
from rxrx1_jax.data.embeddings import Embeddings, read, write

LAYOUT = [
    ("site_id", "U24"), ("well_id", "U20"), ("cell_type", "U5"), ("experiment", "U8"),
    ("plate", "i4"), ("well", "U3"), ("site", "i4"), ("well_type", "U16"), ("sirna", "U8"),
    ("sirna_id", "i4"), ("control_mean", "f4", (6,)),
]  # fmt: skip
SOURCE = {"run": "runs/demo", "step": "40"}


@pytest.fixture
def made() -> Embeddings:
    rows = [(f"R-01_{p}_{w}_{s}", f"R-01_{p}_{w}", "RPE", "R-01", p, w, s, "treatment", "s7", 7,
             (0,) * 6) for p in (1, 2) for w in ("B02", "O23") for s in (1, 2)]  # fmt: skip
    rng = np.random.default_rng(0)
    x, log_probs = (rng.normal(size=(8, d)).astype(np.float32) for d in (12, 3))
    role = np.array(["train"] * 6 + ["test", "context"])
    return Embeddings(
        np.array(rows, LAYOUT), x, log_probs, np.array([3, 7, 10], np.int32), source=SOURCE,
        role=role,
    )  # fmt: skip


def test_pandas_needs_no_other_table(made, tmp_path):
    pandas = pytest.importorskip("pandas")
    write(made, tmp_path / "embeddings.parquet", log_probs=True)
    table = pandas.read_parquet(tmp_path / "embeddings.parquet")
    features = [f"feature_{i}" for i in range(12)]
    assert list(table) == [*made.sites.dtype.names[:-1], "role", *features]
    for name in made.sites.dtype.names[:-1]:
        assert table[name].tolist() == made.sites[name].tolist()
    assert table["role"].tolist() == made.role.tolist()
    np.testing.assert_array_equal(table.filter(regex="^feature_").to_numpy(), made.x)
    scores = pandas.read_parquet(tmp_path / "embeddings_log_probs.parquet")
    assert list(scores) == ["site_id", "class_3", "class_7", "class_10"]
    np.testing.assert_array_equal(scores.to_numpy()[:, 1:].astype(np.float32), made.log_probs)
    assert {path.suffix for path in tmp_path.iterdir()} == {".parquet"}


def test_what_is_written_is_read(made, tmp_path):
    path = tmp_path / "embeddings.parquet"
    assert lib.source_of(path) == {}
    write(made, path, log_probs=True)
    assert lib.source_of(path) == SOURCE
    back = read(path, log_probs=True)
    for name in ("x", "log_probs", "classes", "role"):
        np.testing.assert_array_equal(getattr(back, name), getattr(made, name))
    for name in made.sites.dtype.names[:-1]:
        np.testing.assert_array_equal(back.sites[name], made.sites[name])
    assert (back.unit, back.source) == ("site", SOURCE)
    assert read(path).log_probs is None
    wells = dataclasses.replace(
        made, sites=made.sites[::2], x=made.x[::2], log_probs=None, classes=None, role=None,
        unit="well",
    )  # fmt: skip
    write(wells, path)
    assert read(path).unit == "well" and read(path).role is None


def test_log_probs_of_another_source_are_refused(made, tmp_path):
    path = tmp_path / "embeddings.parquet"
    write(made, path)
    with pytest.raises(OSError):
        read(path, log_probs=True)
    write(made, path, log_probs=True)
    write(dataclasses.replace(made, source={"step": "41"}), path)
    with pytest.raises(ValueError, match="embeddings_log_probs"):
        read(path, log_probs=True)
    with pytest.raises(ValueError, match="log_probs"):
        write(dataclasses.replace(made, log_probs=None, classes=None), path, log_probs=True)


NAN = np.full((8, 12), np.nan, np.float32)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"unit": "plate"}, "plate"),
        ({"unit": "well"}, "well_id"),  # two rows per well
        ({"x": np.zeros((7, 12), np.float32)}, "7"),
        ({"x": np.zeros((8, 12))}, "float64"),
        ({"x": NAN}, "x of R-01_1_B02_1"),
        ({"log_probs": NAN[:, :3]}, "log_probs of R-01_1_B02_1"),
        ({"classes": None}, "classes"),
        ({"classes": np.array([3, 7, 7])}, "classes"),
        ({"log_probs": NAN[:, :2]}, "log_probs"),
        ({"role": np.array(["train"])}, "role"),
        ({"sites": np.zeros(8, [("plate", "i4")])}, "site_id"),
        ({"sites": np.zeros(8, LAYOUT)}, "8 rows"),
    ],
)
def test_tables_that_do_not_fit(made, changes, named):
    with pytest.raises(ValueError, match=named) as refusal:
        dataclasses.replace(made, **changes)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"site_id": ["a"], "feature_0": [1.0], "feature_2": [1.0]}, "feature_0"),
        ({"site_id": ["a"]}, "feature_0"),
        ({"feature_0": [1.0]}, "site_id"),
        ({"site_id": ["a", None], "feature_0": [1.0, 2.0]}, "site_id"),
        ({"site_id": [1, 2], "feature_0": [1.0, 2.0]}, "site_id"),
        ({"site_id": ["a"], "plate": [None], "feature_0": [1.0]}, "plate"),
        ({"site_id": ["a", "b"], "plate": [1, None], "feature_0": [1.0, 2.0]}, "plate"),
        ({"site_id": ["a"], "plate": ["1"], "feature_0": [1.0]}, "plate"),
        ({"site_id": ["a"], "feature_0": [None]}, "feature_0"),
        ({"site_id": ["a", "b"], "feature_0": [1.0, None]}, "x of b"),
        ({"site_id": ["a", "b"], "feature_0": [1.0, np.inf]}, "x of b"),
        ({"site_id": ["a"], "feature_0": ["1.0"]}, "feature_0 is string"),
        ({"site_id": ["a"], "feature_0": [[1.0]]}, "feature_0 is list"),
        ({"site_id": ["a", "a"], "feature_0": [1.0, 2.0]}, "site_id a has 2 rows"),
        ({"site_id": ["a"], "feature_0": [1.0], "role": [None]}, "role"),
        ({"site_id": [], "feature_0": []}, "feature_0"),
    ],
)
def test_files_that_do_not_fit(tmp_path, columns, named):
    pq.write_table(pa.table(columns), tmp_path / "e.parquet")
    with pytest.raises(ValueError, match=f"e.parquet: .*{named}") as error:
        read(tmp_path / "e.parquet")
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read(made, tmp_path):
    write(made, tmp_path / "e.parquet", log_probs=True)
    whole = (tmp_path / "e.parquet").read_bytes()
    for damaged in (b"no table", b"", whole[:-20], whole[:200]):
        (tmp_path / "e.parquet").write_bytes(damaged)
        for function in (read, lib.source_of):
            with pytest.raises(ValueError, match="e.parquet: "):
                function(tmp_path / "e.parquet")
    (tmp_path / "e.parquet").write_bytes(whole)
    table = pq.read_table(tmp_path / "e.parquet")
    labels = pa.array([0] * 8, pa.int32())
    place = table.column_names.index("sirna_id")
    for edited in (table.set_column(place, "sirna_id", labels), table[1:], table.drop(["plate"])):
        pq.write_table(edited, tmp_path / "edited.parquet")
        with pytest.raises(ValueError, match="edited.parquet: "):
            read(tmp_path / "edited.parquet")
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "e_log_probs.parquet")
    with pytest.raises(ValueError, match="e_log_probs.parquet: "):
        read(tmp_path / "e.parquet", log_probs=True)
    with pytest.raises(OSError):
        read(tmp_path / "f.parquet")

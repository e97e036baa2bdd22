"""Tables for other libraries: each opens ours with its own defaults, and computes what NumPy does.

The libraries are not all in the environment of the tests: pandas 3 and anndata exclude each other.
"""

import sys
import types
from pathlib import Path

import numpy as np
import pytest
from embedding_tables import IDS, TRUTH, D, N, X, metadata_file, text

from rxrx1_jax.data import tables
from rxrx1_jax.data.embeddings import Embeddings
from rxrx1_jax.data.images import METADATA
from rxrx1_jax.data.table_metadata import as_wells, read_metadata
from rxrx1_jax.data.table_styles import STYLES, write

SIRNA = np.array(TRUTH["sirna_id"])
PLANTED = (SIRNA[:, None] == np.unique(SIRNA)).astype(np.float32) * 10 + np.tile(X, 2)[:, :7]


@pytest.fixture
def metadata(tmp_path) -> Path:
    return metadata_file(tmp_path)


@pytest.fixture
def sites(metadata) -> Embeddings:
    return Embeddings(read_metadata(metadata), X)


@pytest.fixture
def wells(metadata) -> Embeddings:
    found = as_wells(read_metadata(metadata))
    return Embeddings(found, X[: len(found)], unit="well")


@pytest.mark.parametrize("unit", ["sites", "wells"])
@pytest.mark.parametrize("style", STYLES)
def test_what_is_written_is_read(style, unit, metadata, request, tmp_path):
    given = request.getfixturevalue(unit)
    path = tmp_path / f"e{STYLES[style]}"
    write(given, path, style)
    found, _ = tables.read(path, metadata)
    assert found.unit == given.unit
    np.testing.assert_array_equal(found.x, given.x)
    np.testing.assert_array_equal(found.sites, given.sites)
    if style == "official":
        pandas = pytest.importorskip("pandas")
        names = [given.id, *(f"feature_{i}" for i in range(D))]
        assert list(pandas.read_parquet(path)) == names
    else:
        alone, _ = tables.read(path)  # its own metadata
        np.testing.assert_array_equal(alone.sites, given.sites)


@pytest.mark.parametrize(
    ("name", "style", "named"),
    [("e.parquet", "csv", "csv"), ("e.parquet", "h5ad", ".h5ad"), ("e.csv", "official", "parquet")],
)
def test_styles_have_a_suffix(sites, name, style, named, tmp_path):
    with pytest.raises(ValueError, match=named):
        write(sites, tmp_path / name, style)
    assert not (tmp_path / name).exists()


def plates() -> list[str]:
    return [f"{e}_{p}" for e, p in zip(TRUTH["experiment"], TRUTH["plate"], strict=True)]


@pytest.fixture
def profiles(sites, tmp_path):
    pandas = pytest.importorskip("pandas")
    write(sites, tmp_path / "p.parquet", "pycytominer")
    return pandas.read_parquet(tmp_path / "p.parquet")


def test_pycytominer(profiles, metadata, tmp_path):
    pycytominer = pytest.importorskip("pycytominer")
    names = [f"Cells_feature_{i}" for i in range(D)]
    normalised = pycytominer.normalize(profiles)
    expected = (X - X.mean(0)) / X.std(0)
    np.testing.assert_allclose(normalised[names].to_numpy(), expected, atol=1e-5)
    assert normalised["Metadata_Plate"].tolist() == plates()
    median = pycytominer.aggregate(profiles)  # by Metadata_Plate and Metadata_Well
    assert len(median) == len(set(TRUTH["well_id"]))
    for row in median.itertuples():
        mine = np.array(TRUTH["well_id"]) == f"{row.Metadata_Plate}_{row.Metadata_Well}"
        np.testing.assert_allclose(row[-D:], np.median(X[mine], axis=0), rtol=1e-6)
    median.to_csv(tmp_path / "wells.csv.gz", index=False)
    back = tables.read(tmp_path / "wells.csv.gz", metadata).embeddings
    wells = median["Metadata_Plate"] + "_" + median["Metadata_Well"]
    row = {well: i for i, well in enumerate(wells)}
    place = [row[well] for well in back.sites["well_id"].tolist()]
    assert back.unit == "well" and sorted(place) == list(range(len(median)))
    np.testing.assert_allclose(back.x, median[names].to_numpy()[place], rtol=1e-6)
    profiles["Cells_feature_1"] = 0.0
    chosen = pycytominer.feature_select(profiles)
    assert [name for name in chosen if name.startswith("Cells_")] == names[:1] + names[2:]


def test_copairs(sites, tmp_path):
    pandas = pytest.importorskip("pandas")
    copairs = pytest.importorskip("copairs.map")
    write(Embeddings(sites.sites, PLANTED), tmp_path / "p.parquet", "pycytominer")
    table = pandas.read_parquet(tmp_path / "p.parquet")
    features = table.filter(regex="^Cells_").to_numpy()
    found = copairs.average_precision(
        table.filter(regex="^Metadata_"), features, pos_sameby=["Metadata_sirna_id"],
        pos_diffby=["Metadata_Plate"], neg_sameby=[],
        neg_diffby=["Metadata_sirna_id"],
    )  # fmt: skip
    known = found["n_pos_pairs"] > 0
    assert known.sum() > N // 2 and found["average_precision"][known].min() == 1


def test_efaar(profiles, monkeypatch):
    scvi = types.ModuleType("scvi.model")
    scvi.SCVI = None  # of a function that is not called here
    monkeypatch.setitem(sys.modules, "scvi", types.ModuleType("scvi"))
    monkeypatch.setitem(sys.modules, "scvi.model", scvi)
    efaar = pytest.importorskip("efaar_benchmarking.efaar")
    metadata, x = profiles.filter(regex="^Metadata_"), profiles.filter(regex="^Cells_").to_numpy()
    asked = dict(pert_col="Metadata_well_type", control_key="positive_control")
    scaled = efaar.centerscale_on_controls(x, metadata, **asked)
    control = np.array(TRUTH["well_type"]) == "positive_control"
    expected = (X - X[control].mean(0)) / X[control].std(0)
    np.testing.assert_allclose(scaled, expected, atol=1e-5)
    assert np.isfinite(efaar.tvn_on_controls(x, metadata, **asked)).all()
    means = efaar.aggregate(x, metadata, "Metadata_sirna_id")
    for sirna, row in zip(
        means.metadata["Metadata_sirna_id"], means.features.to_numpy(), strict=True
    ):
        np.testing.assert_allclose(row, X[SIRNA == sirna].mean(0), atol=1e-6)


def test_anndata_and_scanpy(sites, wells, tmp_path):
    anndata = pytest.importorskip("anndata")
    for given in (sites, wells):
        write(given, tmp_path / "e.h5ad", "h5ad")
        opened = anndata.read_h5ad(tmp_path / "e.h5ad")
        np.testing.assert_array_equal(opened.X, given.x)
        assert opened.obs_names.tolist() == given.sites[given.id].tolist()
        for name in opened.obs:
            assert opened.obs[name].tolist() == given.sites[name].tolist()
        assert len(opened.obs.columns) == len(METADATA) - (1 if given is sites else 3)
        assert opened.var_names.tolist() == [f"feature_{i}" for i in range(D)]
    scanpy = pytest.importorskip("scanpy")
    write(sites, tmp_path / "e.h5ad", "h5ad")
    opened = scanpy.read_h5ad(tmp_path / "e.h5ad")
    scanpy.pp.pca(opened)
    centred = X - X.mean(0)
    first = np.linalg.svd(centred, full_matrices=False)[1][0]
    norm = np.linalg.norm(opened.obsm["X_pca"][:, 0])
    np.testing.assert_allclose(norm, first, rtol=1e-4)


FORMS = {  # how anndata keeps columns and X
    "plain": lambda obs, x: (obs, x),
    "categories": lambda obs, x: (obs.astype("category"), x),
    "sparse": lambda obs, x: (obs, pytest.importorskip("scipy.sparse").csr_matrix(x)),
    "by column": lambda obs, x: (obs, pytest.importorskip("scipy.sparse").csc_matrix(x)),
    "float64": lambda obs, x: (obs, x.astype(np.float64)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("where", ["index", "columns"])
def test_files_of_anndata_are_read(where, form, metadata, tmp_path):
    anndata, pandas = pytest.importorskip("anndata"), pytest.importorskip("pandas")
    names = METADATA if where == "columns" else ["sirna", "plate"]
    index = TRUTH["site_id"] if where == "index" else list(map(str, range(N)))
    obs, x = FORMS[form](pandas.DataFrame({n: TRUTH[n] for n in names}, index), X)
    anndata.AnnData(x, obs).write_h5ad(tmp_path / "e.h5ad")
    found = tables.read(tmp_path / "e.h5ad", metadata).embeddings
    np.testing.assert_array_equal(found.x, X)
    assert found.sites["sirna_id"].tolist() == TRUTH["sirna_id"]


def test_bad_h5ad(metadata, monkeypatch, tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "e.h5ad"
    with h5py.File(path, "w") as file:
        file["X"] = X
    for words in ("obs", "h5ad]"):
        with pytest.raises(ValueError, match=words) as refusal:
            tables.read(path, metadata)
        assert "\n" not in str(refusal.value) and str(path) in str(refusal.value)
        monkeypatch.setitem(sys.modules, "h5py", None)  # as if not installed
    (tmp_path / "t.csv").write_bytes(text(IDS | {"a": X[:, 0]}))
    assert tables.read(tmp_path / "t.csv", metadata).embeddings.x.shape == (N, 1)

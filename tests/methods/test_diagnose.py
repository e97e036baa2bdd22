"""Diagnosis of embeddings: a planted batch effect is seen, its removal too, and biology with it."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rxrx1_jax import diagnose
from rxrx1_jax.data.records import DatasetError, Records

pytest_plugins = ["dataset_fixture"]


@pytest.fixture(scope="module")
def controls():
    """Ten siRNAs on one plate of each of four experiments, two wells of two sites each."""
    rows = [
        (f"{e}_1_W{k}{w}", "HUVEC", e, 1, "positive_control", k)
        for e in ("HUVEC-01", "HUVEC-02", "HUVEC-03", "HUVEC-04")
        for k in range(10)
        for w in (0, 1)
        for _ in (1, 2)
    ]
    kinds = [("well_id", "U24"), ("cell_type", "U8"), ("experiment", "U16"), ("plate", "i4"),
             ("well_type", "U16"), ("sirna_id", "i4")]  # fmt: skip
    sites = np.array(rows, kinds)
    rng = np.random.default_rng(0)
    planted = rng.normal(size=(10, 5))
    biology = planted[sites["sirna_id"]] + 0.3 * rng.normal(size=(len(sites), 5))
    batch = {e: 3 * rng.normal(size=5) for e in np.unique(sites["experiment"])}
    shift = np.array([batch[e] for e in sites["experiment"]])
    sirnas = {str(k): {"HUVEC": planted[k].tolist()} for k in range(10)}
    return sites, biology, shift, sirnas


def figures(embeddings, sites, sirnas):
    cells = diagnose.diagnose(embeddings, sites, sirnas)
    return [tuple(float(x.strip("()")) for x in cell.split()) for cell in cells]


def test_batch_effect_and_biology(controls):
    sites, biology, shift, sirnas = controls
    dirty, clean = (figures(x, sites, sirnas) for x in (biology + shift, biology))
    assert dirty[0][0] > 95 and clean[0][0] < 50 and dirty[0][1] == clean[0][1] == 25
    assert clean[1][0] > 0.9 and dirty[1][0] < 0.3
    assert clean[2][0] == 100
    assert clean[3][0] > 0.9
    shuffled = biology[np.random.default_rng(1).permutation(len(biology))]
    noise = figures(shuffled, sites, sirnas)
    assert noise[2][0] <= 30 and abs(noise[1][0] - noise[1][1]) < 0.1
    assert diagnose.diagnose(biology, sites, None)[3] == "-"


def test_one_experiment_says_nothing(controls):
    sites, biology, _, _ = controls
    one = sites["experiment"] == "HUVEC-01"
    assert diagnose.diagnose(biology[one], sites[one], None) == ["-"] * 4


def test_run_without_or_with_foreign_embeddings(tiny, tmp_path):
    with pytest.raises(DatasetError, match="--mode=embed"):
        diagnose.run_table(tmp_path)
    data = {"dir": str(tiny.dataset.parents[2]), "name": "rxrx1/tiny"}
    (tmp_path / "config.json").write_text(json.dumps({"data": data}))
    sites = Records(tiny.dataset).sites["site_id"].tolist()
    table = pa.table({"site_id": sites[::-1], "feature_0": np.zeros(len(sites), np.float32)})
    pq.write_table(table, tmp_path / "embeddings.parquet")
    with pytest.raises(DatasetError, match="another dataset"):
        diagnose.run_table(tmp_path)

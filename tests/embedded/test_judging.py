"""What is judged of a table of embeddings, against the methods called by hand."""

import dataclasses

import numpy as np
import pytest
from official_tables import made_up, synthetic_sites

from rxrx1_jax.data.embeddings import Embeddings
from rxrx1_jax.data.images import structured
from rxrx1_jax.data.splits import make_split
from rxrx1_jax.embedded import judging
from rxrx1_jax.embedded.command import asked_for, judge
from rxrx1_jax.embedded.jobs import Job
from rxrx1_jax.methods.catalogue import find
from rxrx1_jax.methods.evidence import Method, Transform
from rxrx1_jax.methods.retrieval import activity_map
from rxrx1_jax.methods.transforms import centre_scale, sphering

NAMES = ("centre_scale_plate", "sphering_train_controls")


@pytest.fixture(scope="module")
def table() -> Embeddings:
    """Two cell types, two plates per experiment, 24 siRNAs."""
    sites = synthetic_sites(huvec=5, rpe=3, hepg2=0, u2os=0, plates=2, treatments=12)
    return Embeddings(sites, made_up(sites, 8))


@pytest.fixture(scope="module")
def judged(table):
    return judge(table, asked_for(NAMES, ("batch", "random_well"), (0, 1, 2)))


def nearest_centroid(x, sites, split) -> np.ndarray:
    """sirna_id of each test site: the siRNA whose mean direction in its cell type is nearest."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    found = []
    for row in split.test:
        own = split.train[sites["cell_type"][split.train] == sites["cell_type"][row]]
        ids = np.unique(sites["sirna_id"][own])
        means = np.stack([unit[own[sites["sirna_id"][own] == k]].mean(0) for k in ids])
        found.append(ids[(means @ unit[row] / np.linalg.norm(means, axis=1)).argmax()])
    return np.array(found)


@pytest.mark.parametrize("protocol", ["batch", "random_well"])
def test_accuracies_are_those_of_the_methods_by_hand(table, judged, protocol):
    sites, control = table.sites, table.sites["well_type"] != "treatment"
    split = make_split(sites, protocol, 1)
    trained = np.isin(sites["experiment"], sites["experiment"][split.train])
    by_hand = {
        "centroids": table.x,
        "centre_scale_plate": centre_scale(table.x, sites, control, "plate"),
        "sphering_train_controls": sphering(table.x, sites, control & trained, "cell_type"),
    }
    rows = {row.name: row for row in judged.rows}
    assert set(rows) == set(by_hand)  # the reference was added
    for name, x in by_hand.items():
        right = nearest_centroid(x, sites, split) == sites["sirna_id"][split.test]
        accuracy = judged.results[Job(name, protocol, 1)]["accuracy"]
        assert accuracy["site"]["all"] == pytest.approx(right.mean())
        for part in ("cell_type", "experiment"):
            for group, value in accuracy["site"][part].items():
                assert value == pytest.approx(right[sites[part][split.test] == group].mean())
        assert rows[name].shared == pytest.approx(len(split.test) / len(split.train))
    assert rows["centre_scale_plate"].reference == "centroids"
    assert rows["centroids"].reference == ""


def test_figures_are_of_all_treatments_and_controls_after_the_transforms(table, judged):
    sites, control = table.sites, table.sites["well_type"] != "treatment"
    x = centre_scale(table.x, sites, control, "plate").astype(np.float64)
    means = []
    for cell_type in ("HUVEC", "RPE"):
        wells = np.unique(sites["well_id"][sites["cell_type"] == cell_type])
        first = np.array([np.flatnonzero(sites["well_id"] == w)[0] for w in wells])
        kept = sites["well_type"][first] != "positive_control"
        profiles = np.stack([x[sites["well_id"] == w].mean(0) for w in wells[kept]])
        of = sites[first[kept]]
        untreated = of["well_type"] == "negative_control"
        means.append(activity_map(profiles, of["sirna_id"], of["experiment"], untreated).mean)
    found = {job.method: of["figures"] for job, of in judged.results.items() if "figures" in of}
    assert set(found) == {"centroids", *NAMES}
    assert found["centre_scale_plate"][judging.ACTIVE][0] == pytest.approx(np.mean(means), rel=1e-5)
    raw, corrected = (found[name]["purity, %"][0] for name in ("centroids", "centre_scale_plate"))
    assert raw > 90 > 60 > corrected


def test_a_leaking_method_is_refused_and_the_others_go_on(table):
    def leak(x, sites, fit, by):
        return x - x.mean(0)

    methods = {
        "leaks": Method(None, (Transform(leak),), find("centroids").classify),
        "declared": Method(None, (Transform(leak),), find("centroids").classify,
                           uses=frozenset({"test_images"})),
    }  # fmt: skip
    found = judge(table, asked_for(methods, ("batch",), (0,)))
    assert [row.name for row in found.rows] == ["centroids", "declared"]
    assert "test_images" in found.results[Job("leaks", "batch", 0)]["refused"]
    assert {row.name: row.reference for row in found.rows}["declared"] == "centroids"


@pytest.mark.parametrize(
    "seen, external", [(None, True), ("batch", False), ("random_well", True)]
)
def test_embeddings_are_external_unless_their_network_never_saw_the_test_sites(
    table, seen, external
):
    role = None
    if seen:
        split = make_split(table.sites, seen, 0)
        role = np.full(len(table.sites), "other", "U16")
        role[split.train] = "train"
    known = dataclasses.replace(table, role=role)
    assert judging.is_external(known, judging.evidence_of(known, "batch", 0)) == external


def test_wells_are_judged_as_wells(table):
    """A row per well, as `data.tables` gives them: a well has its own id as site_id."""
    ids, first = np.unique(table.sites["well_id"], return_index=True)
    columns = {name: table.sites[name][first].tolist() for name in table.sites.dtype.names}
    sites = structured(columns | {"site_id": ids.tolist(), "site": [1] * len(ids)})
    x = np.stack([table.x[table.sites["well_id"] == well].mean(0) for well in ids])
    wells = Embeddings(sites, x, unit="well")
    found = judge(wells, asked_for(NAMES[:1], ("batch",), (0,)))
    for result in found.results.values():
        if "accuracy" in result:
            assert result["accuracy"]["site"] == result["accuracy"]["well"]
    assert found.rows[-1].score("batch")


@pytest.mark.parametrize("names, protocols, named", [
    (["none"], ["batch"], "none"), (["adabn_plate"], ["batch"], "adabn_plate"),
    (["centroid"], ["batch"], "centroids"), (["centroids"], ["wilds"], "wilds"),
])  # fmt: skip
def test_what_cannot_be_tried_is_named(names, protocols, named):
    with pytest.raises(ValueError, match=named):
        asked_for(names, protocols, (0,))


def test_all_rows_are_corrected_for_other_libraries(table):
    after = judging.corrected_table(table, find("centre_scale_plate"), "batch", 0)
    control = table.sites["well_type"] != "treatment"
    expected = centre_scale(table.x, table.sites, control, "plate")
    np.testing.assert_allclose(after.x, expected, atol=1e-6)
    np.testing.assert_array_equal(after.sites, table.sites)


def test_a_grid_is_chosen_from_on_validation_experiments(table):
    classify = find("centroids").classify
    nothing = Method(None, (Transform(lambda x, sites, fit, by: np.ones_like(x)),), classify)
    grid = {"grid": Method(grid=(nothing, find("centroids")))}
    assert judge_one(table, grid, 0) == "validation"
    assert judge_one(table, grid, 1) == judge_one(table, {"plain": find("centroids")}, 1)


def judge_one(table, methods, val_experiments) -> float | str:
    """Accuracy by site of the one method on fold 0, or what it was refused for."""
    try:
        found = judge(table, asked_for(methods, ("batch",), (0,), val_experiments))
    except ValueError as error:
        return "validation" if "validation" in str(error) else str(error)
    return found.rows[0].accuracy["batch"].popitem()[1]["site"]["all"]

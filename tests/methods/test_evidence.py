"""What methods are given, what they are refused for, and what each of the catalogue computes."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from arrays import EXPERIMENTS, read_out_by_hand, small_evidence

from rxrx1_jax.data.embeddings import Embeddings
from rxrx1_jax.methods import assignment, catalogue, transforms
from rxrx1_jax.methods.catalogue import CLASSIFIERS, METHODS, find, reference
from rxrx1_jax.methods.centroids import centroids
from rxrx1_jax.methods.combat_harmony import combat, harmony
from rxrx1_jax.methods.evidence import (
    BUDGETS,
    AdaBN,
    Evidence,
    Method,
    Transform,
    evidence_for,
    from_embeddings,
    scores,
)
from rxrx1_jax.methods.lda import lda
from rxrx1_jax.methods.softmax import softmax


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    """Of softmax regression: what it is fitted on matters here, not how well."""
    monkeypatch.setattr("rxrx1_jax.methods.softmax.PENALTIES", (0.1, 0.01))
    monkeypatch.setattr("rxrx1_jax.methods.softmax.STEPS", 3)


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    return small_evidence()


def another_network(method, given):
    """In place of `adabn.adapted`: other log-probabilities, a function of the site alone."""
    return given._replace(log_probs=np.roll(given.log_probs, 1, axis=1))


def scored(name, evidence):
    """{site_id: scores}; skips where a library is missing."""
    try:
        found = scores(METHODS[name], evidence, another_network)
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    ids = evidence.sites["site_id"][evidence.role == "test"].tolist()
    return dict(zip(ids, found, strict=True))


def with_val(evidence):
    """RPE-01 validates instead of testing."""
    val = (evidence.role == "test") & (evidence.sites["experiment"] == "RPE-01")
    return evidence._replace(role=np.where(val, "val", evidence.role))


@pytest.mark.parametrize("name", METHODS)
def test_labels_are_withheld_and_controls_unless_declared(evidence, name):
    method, evidence = METHODS[name], with_val(evidence)
    given = evidence_for(method, evidence)
    hidden = np.isin(given.role, ("test", "val"))
    assert hidden.sum() == np.isin(evidence.role, ("test", "val")).sum()
    assert set(given.sites["sirna_id"][hidden]) == {-1}
    assert set(given.sites["sirna"][hidden]) == {""}
    assert (given.sites["sirna_id"][~hidden] >= 0).all()
    everywhere = bool(method.uses & {"test_controls", "test_images"})
    seen = {name for name, part in EXPERIMENTS.items() if everywhere or part == "train"}
    assert set(given.sites["experiment"][given.role == "context"]) == seen
    assert (evidence.sites["sirna_id"] >= 0).all()  # untouched


@pytest.mark.parametrize("name", METHODS)
def test_no_method_depends_on_test_labels(evidence, name):
    sites = evidence.sites.copy()
    test = evidence.role == "test"
    sites["sirna_id"][test] = np.random.default_rng(1).permutation(sites["sirna_id"][test])
    shuffled = scored(name, evidence._replace(sites=sites))
    for site_id, row in scored(name, evidence).items():
        np.testing.assert_array_equal(row, shuffled[site_id])


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if "test_images" not in m.uses])
def test_without_test_images_other_test_sites_do_not_matter(evidence, name):
    """A method that does not declare them gives a well what it gives it alone."""
    alone = (evidence.role != "test") | (evidence.sites["well_id"] == "HUVEC-03_1_B00")
    single, full = scored(name, evidence.only(alone)), scored(name, evidence)
    assert set(single) == {"HUVEC-03_1_B00_1", "HUVEC-03_1_B00_2"}
    for site_id, row in single.items():
        np.testing.assert_allclose(row, full[site_id], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_without_test_controls_they_do_not_matter(evidence, name):
    unseen = np.isin(evidence.sites["experiment"], ["HUVEC-03", "RPE-01"])
    unseen &= evidence.role == "context"
    changed = np.where(unseen[:, None], 10 * evidence.x, evidence.x).astype(np.float32)
    before, after = scored(name, evidence), scored(name, evidence._replace(x=changed))
    same = all(np.allclose(before[k], after[k]) for k in before)
    assert same or METHODS[name].budget != "inductive"
    assert not (same and name in ("centre_scale_plate", "tvn_plate", "combat_experiment"))


def assigned_by_hand(assign, log_probs, evidence):
    ids = assign(log_probs, evidence.sites, evidence.classes, evidence.role)
    return np.where(ids[:, None] == evidence.classes, 0, -50)[evidence.role == "test"]


# The transform, what it is fitted by and on.
EMBEDDED = {
    "sphering_train_controls": (transforms.sphering, "cell_type", "context"),
    "centre_scale_plate": (transforms.centre_scale, "plate", "context"),
    "robust_mad_plate": (transforms.robust_mad, "plate", "context"),
    "sphering_experiment": (transforms.sphering, "experiment", "context"),
    "tvn_plate": (transforms.tvn, "plate", "context"),
    "coral_align_plate": (transforms.coral_align, "plate", "context"),
    "centre_experiment": (transforms.centre, "experiment", "treatment"),
    "regress_out_experiment": (transforms.centre, "experiment", ""),
    "combat_experiment": (combat, "experiment", ""),
    "harmony_experiment": (harmony, "experiment", ""),
}
READ_OUT = {"centroids": centroids, "lda": lda, "softmax": softmax}
ASSIGNED = {
    "assign_once": assignment.assign_once,
    "assign_plate_groups": assignment.assign_plate_groups,
    "adabn_experiment_assign": assignment.assign_once,
}


@pytest.mark.parametrize("name", METHODS)
def test_each_method_computes_what_it_says(evidence, name):
    found = np.array(list(scored(name, evidence).values()))
    method = METHODS[name]
    given = evidence_for(method, evidence)
    log_probs = given.log_probs if method.adapt is None else another_network(0, given).log_probs
    if name in EMBEDDED:
        function, by, on = EMBEDDED[name]
        context = given.role == "context"
        fit = {"": context | True, "context": context, "treatment": ~context}[on]
        expected = read_out_by_hand(function(given.x, given.sites, fit, by), given)
    elif name == "robust_mad_sphering":
        context = given.role == "context"
        x = transforms.robust_mad(given.x, given.sites, context, "plate")
        expected = read_out_by_hand(
            transforms.sphering(x, given.sites, context, "cell_type"), given
        )
    elif name in CLASSIFIERS:
        stem, _, whole = name.partition("_")
        read = given._replace(sites=given.sites.copy())
        if whole:
            read.sites["cell_type"] = "any"
        seen = given if stem == "softmax" else read  # its inner split is by cell type
        expected = READ_OUT[stem](seen)(read)[given.role == "test"]
    elif name in ASSIGNED:
        expected = assigned_by_hand(ASSIGNED[name], log_probs, given)
    else:
        expected = log_probs[given.role == "test"]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_adaptations_and_budgets_of_the_catalogue():
    assert {name: m.adapt for name, m in METHODS.items() if isinstance(m.adapt, AdaBN)} == {
        "adabn_experiment_controls": AdaBN("experiment", "control"),
        "adabn_plate_controls": AdaBN("plate", "control"),
        "adabn_experiment": AdaBN("experiment", "treatment"),
        "adabn_plate": AdaBN("plate", "all"),
        "adabn_experiment_assign": AdaBN("experiment", "treatment"),
    }
    budgets = {name: BUDGETS.index(method.budget) for name, method in METHODS.items()}
    assert list(budgets.values()) == [0] * 9 + [1] * 8 + [2] * 6 + [3] * 3
    assert Method(uses=frozenset({"external", "test_images"})).budget == "external data"
    assert all(method.about for method in METHODS.values())


@pytest.mark.parametrize("name", METHODS)
def test_a_read_out_is_compared_with_itself_without_transforms(name):
    assert reference(name) == ("centroids" if METHODS[name].transforms else "none")


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Method(uses=frozenset({"labels"})), "labels"),
        (lambda: Method(transforms=(Transform(transforms.tvn),)), "classif"),
        (lambda: Method(AdaBN("plate"), uses=frozenset({"test_controls"})), "test_images"),
        (lambda: Method(AdaBN("plate", "control")), "test_controls"),
        (lambda: AdaBN("well", "all"), "well"),
        (lambda: AdaBN("plate", "test"), "plate"),
    ],
)
def test_methods_that_cannot_be(make, named):
    with pytest.raises(ValueError, match=named):
        make()


def minus_test_mean(evidence):
    return evidence.x - evidence.x[evidence.role == "test"].mean(0)


def softmax_over_sites(evidence):
    return evidence.log_probs - evidence.log_probs.mean(0)


CHEATS = {
    "transforms": Method(transforms=(minus_test_mean,), classify=centroids),
    "classify": Method(classify=lambda seen: softmax_over_sites),
    "decide": Method(decide=softmax_over_sites),
    "fewer columns": Method(
        transforms=(lambda e: e.x[:, : 1 + (e.role == "test").sum() // 8],), classify=centroids
    ),
}


@pytest.mark.parametrize("method", CHEATS.values(), ids=CHEATS)
def test_a_stage_that_uses_other_test_images_undeclared_is_refused(evidence, method):
    with pytest.raises(ValueError, match="test_images"):
        scores(method, evidence)
    declared = dataclasses.replace(method, uses=frozenset({"test_images"}))
    assert scores(declared, evidence).shape == ((evidence.role == "test").sum(), 6)


@pytest.mark.parametrize("uses", [(), ("test_images",)])
def test_a_classifier_is_fitted_once_without_test_sites_unless_declared(evidence, uses):
    fitted = []

    def classify(seen):
        fitted.append(set(seen.role))
        return lambda given: given.log_probs

    scores(Method(classify=classify, uses=frozenset(uses)), with_val(evidence))
    roles = {"train", "context"}
    assert fitted == [roles | {"test", "val"} if uses else roles]


def test_a_table_without_a_network(evidence):
    sites, role, x, _, _ = evidence
    table = Embeddings(sites, x, role=role)
    given = from_embeddings(table)
    assert given.log_probs is None and given.classes.tolist() == list(range(6))
    np.testing.assert_allclose(
        scores(METHODS["tvn_plate"], given), scores(METHODS["tvn_plate"], evidence), rtol=1e-6
    )
    for name in ("none", "adabn_experiment"):
        with pytest.raises(ValueError, match="network"):
            scores(METHODS[name], given)
    with pytest.raises(ValueError, match="role"):
        from_embeddings(dataclasses.replace(table, role=None))
    other = np.where(role == "context", "other", role)
    assert set(from_embeddings(dataclasses.replace(table, role=other)).role) == {"train", "test"}


def test_methods_are_found_by_name(tmp_path, monkeypatch):
    assert find("centroids") is METHODS["centroids"]
    (tmp_path / "found_methods.py").write_text(
        "from rxrx1_jax.methods.evidence import Method\n"
        "mine = Method(decide=len, version=3)\nother = 1\n"
    )
    (tmp_path / "ending.py").write_text("raise SystemExit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert find("found_methods.mine").version == 3
    assert find("tvn_plate+found_methods.mine").version == 5
    names = ("centroid", "found_methods.other", "found_methods.none", "nowhere.mine", "ending.mine",
             "tvn_plate+lad")  # fmt: skip
    for name in names:
        with pytest.raises(ValueError, match=name.rpartition("+")[2]):
            catalogue.find(name)


def test_no_module_but_adabn_needs_jax():
    names = {path.stem for path in Path(catalogue.__file__).parent.glob("*.py")}
    code = "\n".join(f"import rxrx1_jax.methods.{name}" for name in names - {"adabn", "__init__"})
    code += "\nimport sys; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

"""Corrections after training: what they are given, AdaBN against NumPy, the command on a run."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from example_info import make_info

from rxrx1_jax import correct
from rxrx1_jax.methods import adabn
from rxrx1_jax.methods import evidence as corrections
from rxrx1_jax.methods.evidence import METHODS, Evidence, Method, evidence_for
from rxrx1_jax.model.networks import create_model
from rxrx1_jax.model.resnet import BATCH_NORM_EPSILON, BATCH_NORM_MOMENTUM
from rxrx1_jax.training import steps

EXPERIMENTS = {"HUVEC-01": "train", "HUVEC-02": "train", "HUVEC-03": "test", "RPE-01": "test",
               "RPE-02": "train"}  # fmt: skip
PLATES, TREATMENTS, CONTROLS = 2, 3, 3
SITE = [("site_id", "U32"), ("well_id", "U32"), ("cell_type", "U8"), ("experiment", "U16"),
        ("plate", "i4"), ("well_type", "U16"), ("sirna", "U16"), ("sirna_id", "i4")]  # fmt: skip


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    """Two plates an experiment, three siRNAs and three control wells each, two sites a well."""
    rows, role = [], []
    for experiment, part in EXPERIMENTS.items():
        turn = list(EXPERIMENTS).index(experiment)
        for plate in range(1, PLATES + 1):
            ids = [(k, "treatment") for k in range(TREATMENTS * PLATES)]
            ids = ids[(plate + turn) % PLATES :: PLATES] + [(1138, "negative_control")] * CONTROLS
            for well, (sirna_id, kind) in enumerate(ids):
                for site in (1, 2):
                    well_id = f"{experiment}_{plate}_B{well:02}"
                    name = f"s{sirna_id}"
                    rows.append((f"{well_id}_{site}", well_id, experiment.split("-")[0], experiment,
                                 plate, kind, name, sirna_id))  # fmt: skip
                    role.append(part if kind == "treatment" else "control")
    sites = np.array(rows, SITE)
    rng = np.random.default_rng(0)
    centre = rng.normal(size=(1139, 6))
    shift = {name: rng.normal(size=6) for name in EXPERIMENTS}
    embeddings = np.stack([centre[r["sirna_id"]] + shift[r["experiment"]] for r in sites])
    embeddings = (embeddings + 0.5 * rng.normal(size=embeddings.shape)).astype(np.float32)
    logits = rng.normal(size=(len(sites), TREATMENTS * PLATES)).astype(np.float32)
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    classes = np.arange(TREATMENTS * PLATES, dtype=np.int32)
    return Evidence(sites, np.array(role), embeddings, log_probs, classes)


def scores(method: Method, evidence: Evidence) -> dict[str, np.ndarray]:
    given = evidence_for(method, evidence)
    found = method.function(given)
    test = given.role == "test"
    return dict(zip(given.sites["site_id"][test].tolist(), found[test], strict=True))


def test_test_labels_are_withheld_and_controls_unless_declared(evidence):
    for method in METHODS.values():
        given = evidence_for(method, evidence)
        test = given.role == "test"
        assert test.sum() == (evidence.role == "test").sum()
        assert set(given.sites["sirna_id"][test]) == {-1}
        assert set(given.sites["sirna"][test]) == {""}
        assert (given.sites["sirna_id"][given.role == "train"] >= 0).all()
        controls = set(given.sites["experiment"][given.role == "control"])
        everywhere = bool(method.uses & {"test_controls", "test_images"})
        seen = {name for name, part in EXPERIMENTS.items() if everywhere or part == "train"}
        assert controls == seen
    assert set(evidence.sites["sirna_id"][evidence.role == "test"]) == set(range(6))  # untouched


@pytest.mark.parametrize("name", METHODS)
def test_no_method_depends_on_test_labels(evidence, name):
    sites = evidence.sites.copy()
    test = evidence.role == "test"
    sites["sirna_id"][test] = np.random.default_rng(1).permutation(sites["sirna_id"][test])
    shuffled = scores(METHODS[name], evidence._replace(sites=sites))
    for site_id, row in scores(METHODS[name], evidence).items():
        np.testing.assert_array_equal(row, shuffled[site_id])


@pytest.mark.parametrize(
    "name", [n for n, m in METHODS.items() if m.budget in ("inductive", "test controls")]
)
def test_without_test_images_other_test_sites_do_not_matter(evidence, name):
    """A method that does not declare them gives a well what it gives it alone."""
    alone = (evidence.role != "test") | (evidence.sites["well_id"] == "HUVEC-03_1_B00")
    part = [field[alone] for field in evidence[:4]]
    single = scores(METHODS[name], Evidence(*part, evidence.classes))
    assert set(single) == {"HUVEC-03_1_B00_1", "HUVEC-03_1_B00_2"}
    full = scores(METHODS[name], evidence)
    for site_id, row in single.items():
        np.testing.assert_allclose(row, full[site_id], rtol=1e-5, atol=1e-5)


def test_without_test_controls_they_do_not_matter(evidence):
    unseen = (evidence.role == "control") & np.isin(
        evidence.sites["experiment"], ["HUVEC-03", "RPE-01"]
    )
    embeddings = np.where(unseen[:, None], 1e3, evidence.embeddings).astype(np.float32)
    changed = []
    for name, method in METHODS.items():
        before, after = scores(method, evidence), scores(
            method, evidence._replace(embeddings=embeddings)
        )
        if any(not np.allclose(before[k], after[k]) for k in before):
            changed.append(name)
    assert not [n for n in changed if METHODS[n].budget == "inductive"]
    assert "centre_scale_plate" in changed and "tvn_plate" in changed


def test_budget_is_the_largest_use():
    assert METHODS["none"].budget == "inductive"
    assert METHODS["tvn_plate"].budget == "test controls"
    assert METHODS["adabn_experiment"].budget == "unlabelled test images"
    assert METHODS["adabn_experiment_assign"].budget == "design"
    assert {method.budget for method in METHODS.values()} == set(corrections.BUDGETS)
    with pytest.raises(ValueError):
        dataclasses.replace(METHODS["none"], uses=frozenset({"labels"})).budget  # noqa: B018


def test_assignment_never_gives_a_sirna_twice(evidence):
    found = scores(METHODS["assign_once"], evidence)
    wells = {site_id.rpartition("_")[0]: row.argmax() for site_id, row in found.items()}
    for experiment in ("HUVEC-03", "RPE-01"):
        given = [k for well, k in wells.items() if well.startswith(experiment)]
        assert len(set(given)) == len(given) == 6


class TwoLayers(nn.Module):
    """BatchNorm on the input, and again behind a product."""

    @nn.compact
    def __call__(self, x, batch, info):
        norm = dict(
            use_running_average=not info.train, momentum=BATCH_NORM_MOMENTUM,
            epsilon=BATCH_NORM_EPSILON,
        )  # fmt: skip
        x = nn.BatchNorm(**norm, name="bn1")(x)
        x = nn.Dense(4, name="fc")(x)
        return nn.BatchNorm(**norm, name="bn2")(x)


@pytest.fixture(scope="module")
def network():
    info = make_info(4)
    spec = steps.StepSpec(TwoLayers(), None, None, info.vocabulary, 1)
    images = np.random.default_rng(0).normal(3, 2, size=(3, 8, 5, 5, 2)).astype(np.float32)
    images *= np.array([1.0, 2.0, 0.5], np.float32)[:, None, None, None, None]  # batches differ
    variables = spec.model.init(jax.random.key(0), jnp.asarray(images[0]), {}, info)
    batches = [{"image": jnp.asarray(batch)} for batch in images]
    return spec, variables, images, batches


def test_first_layer_has_the_moments_of_all_images(network):
    spec, variables, images, batches = network
    found = adabn.adapted_statistics(spec, variables["params"], variables["batch_stats"], batches)
    pixels = images.reshape(-1, 2).astype(np.float64)
    np.testing.assert_allclose(found["bn1"]["mean"], pixels.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found["bn1"]["var"], pixels.var(0), rtol=1e-5)
    # Behind it: each batch was normalised by its own moments (NumPy, float64).
    fc = variables["params"]["fc"]
    kernel, bias = (np.asarray(fc[k], np.float64) for k in ("kernel", "bias"))
    means, seconds = [], []
    for batch in images.astype(np.float64):
        flat = batch.reshape(-1, 2)
        normal = (flat - flat.mean(0)) / np.sqrt(flat.var(0) + BATCH_NORM_EPSILON)
        product = normal @ kernel + bias
        means.append(product.mean(0))
        seconds.append(product.var(0) + product.mean(0) ** 2)
    np.testing.assert_allclose(found["bn2"]["mean"], np.mean(means, 0), atol=1e-5)
    expected = np.mean(seconds, 0) - np.mean(means, 0) ** 2
    np.testing.assert_allclose(found["bn2"]["var"], expected, rtol=1e-4)


def test_adapted_to_one_batch_the_network_treats_it_as_in_training(network):
    spec, variables, _, batches = network
    statistics = adabn.adapted_statistics(
        spec, variables["params"], variables["batch_stats"], batches[:1]
    )
    adapted = {"params": variables["params"], "batch_stats": statistics}
    evaluated = spec.model.apply(adapted, batches[0]["image"], {}, make_info(4))
    trained, _ = spec.model.apply(
        variables, batches[0]["image"], {}, make_info(4, train=True), mutable=["batch_stats"]
    )
    np.testing.assert_allclose(evaluated, trained, atol=1e-5)
    with pytest.raises(ValueError, match="no images"):
        adabn.adapted_statistics(spec, variables["params"], variables["batch_stats"], [])
    with pytest.raises(ValueError, match="BatchNorm.*model.name"):
        adabn.adapted_statistics(spec, variables["params"], {}, batches)


def test_embedding_is_what_the_last_layer_reads():
    images = jax.random.normal(jax.random.key(1), (3, 16, 16, 6))
    model, info = create_model("resnet_demo", width=8), make_info(5)
    variables = model.init(jax.random.key(0), images, {}, info)
    batch = {"image": images, "label": jnp.zeros(3, jnp.int32), "mask": jnp.ones(3, bool)}
    state = steps.TrainState(
        jnp.zeros((), jnp.int32), variables["params"], variables["batch_stats"], None
    )
    spec = steps.StepSpec(model, None, None, info.vocabulary, 1)
    found = steps.embed_step(spec, state, batch)
    fc = variables["params"]["fc"]
    logits = np.asarray(found["embedding"]) @ np.asarray(fc["kernel"]) + np.asarray(fc["bias"])
    expected = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    np.testing.assert_allclose(found["log_probs"], expected, atol=1e-5)
    plain = steps.eval_step(spec, state, batch)
    np.testing.assert_array_equal(plain["log_probs"], found["log_probs"])
    assert set(plain) == {"log_probs", "loss"}


def test_a_method_that_uses_other_test_images_undeclared_is_refused(evidence):
    def centred(evidence):
        x = evidence.embeddings - evidence.embeddings[evidence.role == "test"].mean(0)
        return corrections.centroids(evidence._replace(embeddings=x))

    with pytest.raises(ValueError, match='declare "test_images"'):
        corrections.scores(Method(centred), evidence)
    found = corrections.scores(Method(centred, uses=frozenset({"test_images"})), evidence)
    test = evidence.role == "test"
    assert found.shape == (test.sum(), len(evidence.classes))
    plain = corrections.scores(Method(corrections.network), evidence)
    np.testing.assert_array_equal(plain, evidence.log_probs[test])


def test_methods_are_found_by_name(tmp_path, monkeypatch):
    assert corrections.find("centroids") is METHODS["centroids"]
    (tmp_path / "found_methods.py").write_text(
        "from rxrx1_jax.methods.evidence import Method, network\n"
        "mine = Method(network)\nother = 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert isinstance(corrections.find("found_methods.mine"), Method)
    for name in ("centroid", "found_methods.other", "found_methods.none", "nowhere.mine"):
        with pytest.raises(ValueError, match=name):
            corrections.find(name)


def test_the_eight_orientations_are_those_of_the_square():
    images = np.random.default_rng(0).random((2, 5, 5, 3))
    found = [np.asarray(correct._turn(jnp.asarray(images), k)) for k in range(8)]
    flips = [images, images[:, ::-1], images[:, :, ::-1], images[:, ::-1, ::-1]]
    expected = [turned for x in flips for turned in (x, x.swapaxes(1, 2))]
    for image in expected:
        assert sum(np.array_equal(image.astype(np.float32), one) for one in found) == 1

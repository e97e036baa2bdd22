"""evaluate.py and predictions.py against plain Python loops."""

import math

import children
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import make_sites
from screens import tiny_config, tiny_images

from rxrx1_jax.data import splits
from rxrx1_jax.training import evaluate as ev
from rxrx1_jax.training import predictions, setup, steps


def random_case(seed: int, wells: int, k: int):
    rng = np.random.default_rng(seed)
    classes = np.sort(rng.choice(1108, k, replace=False)).astype(np.int32)
    experiments = ["HUVEC-01", "HUVEC-02", "RPE-03", "U2OS-04"]
    sites = make_sites(
        (experiments[i % 4], 1, f"W{i}", "treatment", int(rng.choice(classes)))
        for i in range(wells)
    )
    sites = np.delete(sites, np.s_[::10])  # every fifth well has its second site alone
    sites = sites[rng.permutation(len(sites))]
    logits = rng.normal(size=(len(sites), k)) + 1.5 * (sites["sirna_id"][:, None] == classes)
    logits[:3] = np.round(logits[:3])  # equal ones: the first class wins
    log_probs = (logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float32)
    loss = rng.random(len(sites)).astype(np.float32)
    return sites, classes, log_probs, loss


def batches_of(index: np.ndarray, size: int):
    """Padded, masked device batches; the padding is record 0, which must not count."""
    for start in range(0, len(index), size):
        part = index[start : start + size]
        padded = np.zeros(size, np.int32)
        padded[: len(part)] = part
        yield {
            "site_index": jnp.asarray(padded),
            "mask": jnp.asarray(np.arange(size) < len(part), jnp.float32),
        }


def lookup_step(state, batch):
    """A network that looks the answer up, so that every number is known."""
    index = batch["site_index"]
    return {**batch, "log_probs": state[0][index], "loss": state[1][index]}


@pytest.mark.parametrize("k", [2, 5, 23])
def test_table_and_accuracies_equal_plain_loops(k):
    sites, classes, log_probs, loss = random_case(k, 90, k)
    table = predictions.predictions_table(sites, classes, log_probs, loss)
    rows = table.to_pylist()
    by_well: dict[str, list[int]] = {}
    for i, site in enumerate(sites):
        by_well.setdefault(str(site["well_id"]), []).append(i)
    well_class = {}
    for well, members in by_well.items():
        n = len(members)
        means = [math.fsum(float(log_probs[i, c]) for i in members) / n for c in range(k)]
        well_class[well] = int(classes[means.index(max(means))])
    hits: dict[tuple[str, str], list[bool]] = {}
    top5 = []
    counted = set()
    for i, site in enumerate(sites):
        best = sorted(range(k), key=lambda c, i=i: -log_probs[i, c])[:5]
        assert rows[i]["top5"] == [int(classes[c]) for c in best]
        probabilities = [math.exp(log_probs[i, c]) for c in best]
        assert rows[i]["top5_probability"] == pytest.approx(probabilities)
        assert rows[i]["prediction"] == rows[i]["top5"][0] and rows[i]["loss"] == loss[i]
        assert rows[i]["label"] == site["sirna_id"]
        assert rows[i]["probability"] == rows[i]["top5_probability"][0]
        assert rows[i]["well_prediction"] == well_class[site["well_id"]]
        for name in predictions.SITE_COLUMNS:
            assert rows[i][name] == site[name].item()
        top5.append(site["sirna_id"] in rows[i]["top5"])
        right = {"site": rows[i]["prediction"] == site["sirna_id"]}
        if site["well_id"] not in counted:
            counted.add(site["well_id"])
            right["well"] = well_class[site["well_id"]] == site["sirna_id"]
        for unit, value in right.items():
            for group in ("all", str(site["cell_type"]), str(site["experiment"])):
                hits.setdefault((unit, group), []).append(bool(value))
    found = predictions.accuracies(table)
    assert found["top5"] == sum(top5) / len(top5)
    assert 0 < found["site"]["all"] < 1 and found["site"]["all"] != found["well"]["all"]
    for unit in ("site", "well"):
        flat = {"all": found[unit]["all"], **found[unit]["cell_type"], **found[unit]["experiment"]}
        assert flat == {g: sum(v) / len(v) for (u, g), v in hits.items() if u == unit}


def test_shuffled_padded_batches_are_put_in_the_order_of_the_rows():
    sites, _, log_probs, loss = random_case(1, 40, 6)
    rng = np.random.default_rng(0)
    rows = rng.permutation(len(sites))[:-7]  # neither sorted nor all of the records
    state = (jnp.asarray(log_probs), jnp.asarray(loss))
    step = jax.jit(lookup_step)
    assert len(rows) % 8, "the last batch has padding"
    found = ev.collect((step(state, b) for b in batches_of(rng.permutation(rows), 8)), rows)
    np.testing.assert_array_equal(found["log_probs"], log_probs[rows])
    np.testing.assert_array_equal(found["loss"], loss[rows])


def log_of_the_first_pixels(spec, state, batch):
    """A network whose log-probabilities are known from the pixels."""
    logits = batch["image"][:, 0, 0, : len(spec.vocabulary.classes)]
    log_probs = jax.nn.log_softmax(logits)
    right = jnp.maximum(batch["label"], 0)[:, None]
    loss = jnp.where(batch["mask"], -jnp.take_along_axis(log_probs, right, 1)[:, 0], 0)
    return {"log_probs": log_probs, "loss": loss, "embedding": batch["image"][:, 1, 1]}


@pytest.mark.parametrize("parallelism", ["jit", "pmap"])
def test_sites_are_evaluated_and_embedded(monkeypatch, parallelism):
    """Any rows, in any order and number, on all devices; the oracle is NumPy on the pixels. One
    of the experiments validates."""
    images = tiny_images(cell_type=np.full(61, "HUVEC"))
    config = tiny_config(train__parallelism=parallelism, data__val_experiments=1)
    ready = setup.prepare(config, images)
    assert len(ready.split.val)
    monkeypatch.setattr(steps, "eval_step", log_of_the_first_pixels)
    monkeypatch.setattr(steps, "embed_step", log_of_the_first_pixels)
    rows, classes = ready.split.test[::-1], ready.vocabulary.classes
    sites = images.sites
    shape = (len(images), -1, 1, 1)
    mean, std = (sites[f"control_{name}"].reshape(shape) for name in ("mean", "std"))
    normalised = (images.planes.astype(np.float64) - mean) / std
    expected = normalised[:, :3, 0, 0]
    expected -= np.log(np.exp(expected).sum(1, keepdims=True))
    state = steps.TrainState(jnp.int32(0), {}, {}, ())
    state = jax.device_put(state, ready.devices.copied)
    table, result = ev.evaluate_sites(ready, state, rows)
    assert table["site_id"].to_pylist() == sites["site_id"][rows].tolist()
    best = classes[expected[rows].argmax(1)]
    assert table["prediction"].to_pylist() == best.tolist()
    right = np.searchsorted(classes, sites["sirna_id"][rows])
    loss = -expected[rows, right]
    np.testing.assert_allclose(table["loss"], loss, rtol=1e-5)
    assert result["loss"] == pytest.approx(loss.mean(), rel=1e-5)
    assert result["accuracy"] == predictions.accuracies(table)
    every = np.arange(len(images))
    found = ev.embed(ready, state, every, {"step": "0"})
    np.testing.assert_allclose(found.x, normalised[:, :, 1, 1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.log_probs, expected, rtol=1e-5, atol=1e-5)
    roles = splits.site_roles(ready.split, len(images))
    controls = (sites["well_type"] != "treatment") & (roles == "other")
    assert found.role.tolist() == np.where(controls, "context", roles).tolist()
    assert found.source == {"step": "0"} and found.classes.tolist() == classes.tolist()


def test_wells_are_summed_in_pieces():
    rng = np.random.default_rng(0)
    wells = 2 * predictions.WELLS_AT_ONCE + 7
    well_id = rng.permutation(np.repeat([f"w{i:05}" for i in range(wells)], [1, 2, 3] * (wells // 3)
                                        + [2] * (wells % 3)))  # fmt: skip
    log_probs = rng.standard_normal((len(well_id), 5)).astype(np.float32)
    total = {name: log_probs[well_id == name].astype(np.float64).sum(0) for name in set(well_id)}
    expected = [total[name].argmax() for name in well_id]
    np.testing.assert_array_equal(predictions.well_argmax(well_id, log_probs), expected)


@pytest.mark.parametrize(
    "index, message",
    [
        ([4, 5, 7], r"1 missing \(first: record 6\)"),
        ([4, 5, 6, 7, 5], "1 .*record 5"),
        ([4, 5, 6, 7, 9], r"1 not asked for \(first: record 9\)"),
        ([], "no batch"),
    ],
)
def test_each_row_exactly_once(index, message):
    state = (jnp.zeros((10, 3)), jnp.zeros(10))
    with pytest.raises(ValueError, match=message):
        outputs = (lookup_step(state, batch) for batch in batches_of(np.array(index), 2))
        ev.collect(outputs, np.arange(4, 8))


def test_few_steps_are_in_flight(monkeypatch):
    """The device is kept busy, but batches of images do not pile up on it."""
    dispatched, fetched, ahead = [], [], []
    read = ev.local_rows

    def outputs():
        for batch in batches_of(np.arange(20), 2):
            dispatched.append(1)
            ahead.append(len(dispatched) - len(fetched) // 4)  # four arrays a step
            yield lookup_step((jnp.zeros((20, 3)), jnp.zeros(20)), batch)

    monkeypatch.setattr(ev, "local_rows", lambda array: fetched.append(1) or read(array))
    ev.collect(outputs(), np.arange(20))
    assert len(dispatched) == 10 and len(fetched) == 40
    assert max(ahead) == ev.STEPS_IN_FLIGHT + 1 and min(ahead[2:]) > 1


def test_not_finite_is_an_error_naming_the_site():
    sites, classes, log_probs, loss = random_case(2, 10, 4)
    log_probs[3, 2] = np.nan
    with pytest.raises(ValueError, match=f"site {sites['site_id'][3]}: .*not finite"):
        predictions.predictions_table(sites, classes, log_probs, loss)


def test_sizes_are_checked():
    sites, classes, log_probs, loss = random_case(2, 10, 4)
    with pytest.raises(ValueError, match="3 classes"):
        predictions.predictions_table(sites, classes[:3], log_probs, loss)


def test_two_hosts():
    for code, _, stderr in children.end(children.start("two_hosts", processes=2, devices=4)):
        assert code == 0, stderr

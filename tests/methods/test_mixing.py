"""Mixing of experiments among neighbours: a loop, harmonypy, and data whose answer is known."""

import numpy as np
import pytest

from rxrx1_jax.methods import mixing


def rows(n, shift, seed=0, experiments=4):
    rng = np.random.default_rng(seed)
    code = rng.integers(experiments, size=n)
    x = rng.normal(size=(n, 5)) + shift * rng.normal(size=(experiments, 5))[code]
    return x.astype(np.float32), np.array([f"HUVEC-{k:02}" for k in code])


@pytest.mark.parametrize("block", [mixing.BLOCK, 300])
def test_purity_is_that_of_a_loop(monkeypatch, block):
    monkeypatch.setattr(mixing, "BLOCK", block)  # 300: blocks of two rows
    x, experiment = rows(120, 0.7)
    shares, chance = [], []
    for i in range(len(x)):
        distance = np.linalg.norm(x.astype(np.float64) - x[i], axis=1)
        near = [j for j in np.argsort(distance) if j != i][:15]
        shares.append(np.mean([experiment[j] == experiment[i] for j in near]))
        chance.append(np.mean([experiment[j] == experiment[i] for j in range(len(x)) if j != i]))
    found = mixing.experiment_mixing(x, experiment)
    assert found.purity == pytest.approx(np.mean(shares))
    assert found.purity_chance == pytest.approx(np.mean(chance))


@pytest.mark.parametrize("n", [150, 400])
def test_ilisi_is_harmonypy_s(n):
    library, pandas = pytest.importorskip("harmonypy"), pytest.importorskip("pandas")
    x, experiment = rows(n, 0.7)
    oracle = library.compute_lisi(x, pandas.DataFrame({"experiment": experiment}), ["experiment"])
    assert mixing.experiment_mixing(x, experiment).ilisi == pytest.approx(oracle.mean(), rel=1e-5)


@pytest.mark.parametrize(("shift", "low", "high"), [(0.0, 0.97, 1.03), (20.0, 0.0, 0.35)])
def test_mixed_rows_are_at_chance_and_those_apart_have_one_experiment(shift, low, high):
    found = mixing.experiment_mixing(*rows(600, shift))
    assert low < found.ilisi / found.ilisi_chance < high
    assert (found.purity == 1) == (shift > 0)
    assert shift or abs(found.purity - found.purity_chance) < 0.02


def test_few_rows_and_equal_ones_are_finite():
    x, experiment = rows(4, 1.0, experiments=2, seed=1)
    assert len(set(experiment)) == 2
    for z in (x, np.ones_like(x)):
        found = mixing.experiment_mixing(z, experiment)
        assert np.isfinite(found).all() and 0 <= found.purity <= 1 <= found.ilisi <= 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda x, e: (x, np.full(len(e), "one")), "1 experiments"),
        (lambda x, e: (x[:3], e[:3]), "3"),
        (lambda x, e: (x, e[:-1]), "59"),
        (lambda x, e: (np.where(np.arange(60) == 7, np.nan, x.T).T, e), "row 7 .*finite"),
    ],
)
def test_what_has_no_answer_is_refused(change, named):
    with pytest.raises(ValueError, match=named):
        mixing.experiment_mixing(*change(*rows(60, 1.0)))

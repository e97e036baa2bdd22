"""What is drawn from the space of a method, and spaces that nothing can be drawn from."""

import hashlib

import numpy as np
import pytest
from scipy import stats

from configs import demo
from rxrx1_jax import config as config_lib
from rxrx1_jax.leaderboard import methods as methods_lib
from rxrx1_jax.leaderboard.methods import Methods, MethodsError
from rxrx1_jax.search import space

SPACE = {
    "optim.learning_rate": (0.01, 1.0, "log"),
    "optim.label_smoothing": (0.0, 0.2),
    "optim.epochs": (3, 7),
    "optim.warmup_epochs": [1.0, 2.0, 4.0],
}


def methods(search, trained=("a",)):
    return Methods({name: {} for name in trained}, {}, (), {}, {}, search)


def quantile(method, field, draw):
    name = f"{method}:{field}:{draw}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") / 2**64


def test_a_draw_is_a_function_of_names_and_number():
    one, more = methods({"a": SPACE}), methods({"b": {}, "a": dict(reversed(SPACE.items()))})
    assert space.drawn(one, "a", 0) == {}
    for draw in range(1, 30):
        found = space.drawn(one, "a", draw)
        assert found == space.drawn(more, "a", draw)
        q = {field: quantile("a", field, draw) for field in SPACE}
        rate = np.exp(np.log(0.01) + q["optim.learning_rate"] * np.log(100))
        assert found["optim.learning_rate"] == pytest.approx(rate, rel=5e-4)
        smoothing = 0.2 * q["optim.label_smoothing"]
        assert found["optim.label_smoothing"] == pytest.approx(smoothing, rel=5e-4)
        assert found["optim.epochs"] == 3 + int(5 * q["optim.epochs"])
        assert found["optim.warmup_epochs"] == [1, 2, 4][int(3 * q["optim.warmup_epochs"])]


def test_draws_have_the_distribution_of_their_space():
    """Five tests, each at 0.1 %."""
    draws = [space.drawn(methods({"a": SPACE}), "a", i) for i in range(1, 10001)]
    rate, smoothing, epochs, warmup = (np.array([d[field] for d in draws]) for field in SPACE)
    assert stats.kstest(np.log10(rate), stats.uniform(-2, 2).cdf).pvalue > 1e-3
    assert stats.kstest(smoothing, stats.uniform(0, 0.2).cdf).pvalue > 1e-3
    for values, expected in ((epochs, [3, 4, 5, 6, 7]), (warmup, [1, 2, 4])):
        found, counts = np.unique(values, return_counts=True)
        assert found.tolist() == expected and stats.chisquare(counts).pvalue > 1e-3
    assert stats.spearmanr(rate, smoothing).pvalue > 1e-3


def test_every_draw_is_a_method_with_its_own_settings_below():
    given = Methods({"a": {"optim.epochs": 9, "model.width": 8}, "b": {}}, {}, ("a",), {}, {},
                    {"a": SPACE, "b": SPACE})  # fmt: skip
    found = space.all_draws(given, 3)
    assert list(found.trained) == ["a", "b", "a-draw1", "b-draw1", "a-draw2", "b-draw2"]
    assert found.trained["a"] == given.trained["a"] and not found.gap
    assert found.trained["a-draw2"] == {"model.width": 8, **space.drawn(given, "a", 2)}


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ([], "SEARCH=.*method"),
        ({"a": [0.1]}, "SEARCH=.*method"),
        ({}, "no fields for 'a'"),
        ({"a": {}}, "no fields for 'a'"),
        ({"a": SPACE, "bb": SPACE}, "has 'bb': expected .*a"),
        ({"a": {"optim.learning_rat": [0.1]}}, "learning_rat.*expected optim.learning_rate"),
        ({"a": {"optim.lr": (0.1, 1)}}, "optim.lr.*learning_rate"),
        ({"a": {"optim.epochs": ["x"]}}, "optim.epochs='x'"),
        ({"a": {"optim.epochs": (1.5, 3)}}, "optim.epochs=1.5"),
        ({"a": {"optim.epochs": []}}, r"is \[\]: expected .*choices"),
        ({"a": {"optim.epochs": 5}}, "is 5: expected .*choices"),
        ({"a": {"optim.momentum": (0.9,)}}, r"is \(0.9,\): expected .*low, high"),
        ({"a": {"optim.momentum": (0.1, 0.9, "lin")}}, "'lin'.: expected"),
        ({"a": {"optim.momentum": (0.1, True)}}, "True.*: expected"),
        ({"a": {"optim.momentum": ("0", "1")}}, "'1'.: expected"),
        ({"a": {"optim.momentum": (0.9, 0.1)}}, "low < high"),
        ({"a": {"optim.momentum": (0.9, 0.9)}}, "low < high"),
        ({"a": {"optim.momentum": (0.1, float("nan"))}}, "low < high"),
        ({"a": {"optim.momentum": (0.1, float("inf"))}}, "low < high"),
        ({"a": {"optim.momentum": (0, 0.9, "log")}}, "low > 0"),
        ({"a": {"optim.nesterov": (0, 1)}}, "no number"),
        ({"a": {"optim.loss": ("coral", "dann")}}, "no number"),
        ({"a": {"data.fold": [0, 1]}}, "data.fold'.: .*data"),
        ({"a": {"data.name": ["rxrx1/a"]}}, "data.name'.: .*data"),
        ({"a": {"data.val_experiments": [0, 1]}}, "val_experiments'.: .*data"),
        ({"a": {"train.seed": (0, 9)}}, "train.seed'.: .*repetitions"),
    ],
)
def test_faults_of_a_space_are_named(search, said):
    with pytest.raises(MethodsError, match=f"^board.py: .*{said}") as error:
        space.check("board.py", methods(search), demo.get_config())
    assert "\n" not in str(error.value)


def test_the_spaces_of_the_project():
    config = demo.get_config()
    given = methods_lib.load("leaderboard", config)
    space.check("leaderboard", given, config)
    for changed in space.all_draws(given, 4).trained.values():
        settings = config.copy_and_resolve_references()
        config_lib.change(settings, changed)
        config_lib.check(settings)

"""The table of `python -m rxrx1_jax.correct` puts methods below what they and the training saw."""

import pytest
from finished_runs import make_predictions

from rxrx1_jax import correct
from rxrx1_jax.methods.statistics import Unit

METHODS = ("none", "adabn_plate_controls", "adabn_plate", "assign_once")


@pytest.mark.parametrize(
    "uses, sections",
    [
        ([], {"inductive": 1, "test controls": 1, "unlabelled test images": 1, "design": 1}),
        (["test_controls"], {"test controls": 2, "unlabelled test images": 1, "design": 1}),
        (["test_images"], {"unlabelled test images": 3, "design": 1}),
        (["test_controls", "test_images"], {"unlabelled test images": 3, "design": 1}),
        (["external", "test_images"],
         {"external data, unlabelled test images": 3, "external data, design": 1}),
    ],
)  # fmt: skip
def test_methods_stand_below_what_the_training_saw_too(uses, sections):
    table = make_predictions({"HUVEC": (9, 5)})
    tables = {Unit("", 0, 0): dict.fromkeys(METHODS, table)}
    found = [row[0] for row in correct.summary(tables, 0.2, uses=frozenset(uses)).rows]
    expected, names = [], iter(METHODS)
    for section, count in sections.items():
        expected += [section, *(next(names) for _ in range(count))]
    assert found == expected

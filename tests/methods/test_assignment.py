"""Decisions by well and by design: against loops, brute force, and the real metadata."""

import csv
import gzip
import itertools
from pathlib import Path

import numpy as np
import pytest
from arrays import make_sites

from rxrx1_jax.methods import assignment

REAL = Path(__file__).parents[3] / "shared/realdata/metadata_reconstructed.csv.gz"
PLATES, PER_PLATE = 3, 2
CLASSES = np.array([40, 41, 50, 51, 60, 61])  # groups 0, 1, 2


def screen(rotations, sites=(1, 2), seed=0, more=()):
    """One experiment per rotation; plate p (from 1) holds group (p - 1 + rotation) mod 3.

    more: further wells, as of `make_sites`, with one site each.
    """
    rng = np.random.default_rng(seed)
    wells = []
    for number, rotation in enumerate(rotations):
        for plate in range(PLATES):
            group = (plate + rotation) % PLATES
            sirnas = rng.permutation(CLASSES[group * PER_PLATE : (group + 1) * PER_PLATE])
            wells += [(f"E{number}", plate + 1, f"B0{well}", "treatment", sirna)
                      for well, sirna in enumerate(sirnas)]  # fmt: skip
    return np.append(make_sites(wells, sites), make_sites(more, sites=(1,)))


def noisy_scores(sites, classes=CLASSES, noise=2.0, seed=1):
    """log-softmax with some evidence for the true class."""
    rng = np.random.default_rng(seed)
    logits = noise * rng.normal(size=(len(sites), len(classes)))
    logits += 2.0 * (sites["sirna_id"][:, None] == classes)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def roles(sites, *test):
    return np.where(np.isin(sites["experiment"], test), "test", "train")


def by_well(scores, sites, classes=CLASSES):
    """The class with the highest mean over the sites of each row's well."""
    means = (scores[sites["well_id"] == well].mean(axis=0) for well in sites["well_id"])
    return np.array([classes[mean.argmax()] for mean in means])


@pytest.mark.parametrize("seed", range(8))
def test_assign_once_is_the_best_of_all_permutations(seed):
    sites = screen([0, 1, 2], seed=seed)
    scores, role = noisy_scores(sites, seed=seed), roles(sites, "E2")
    predicted = assignment.assign_once(scores, sites, CLASSES, role)
    wells = np.flatnonzero(sites["experiment"] == "E2")[::2]
    means = (scores[wells] + scores[wells + 1]) / 2
    best = max(
        itertools.permutations(range(6)), key=lambda order: means[range(6), list(order)].sum()
    )
    for sites_of in (wells, wells + 1):
        np.testing.assert_array_equal(predicted[sites_of], CLASSES[list(best)])
    train = role == "train"
    np.testing.assert_array_equal(predicted[train], by_well(scores, sites)[train])


@pytest.mark.parametrize("seed", range(8))
def test_plate_groups_are_the_best_of_all_rotations_and_permutations(seed):
    sites = screen([1, 0, 2, seed % 3], seed=seed)
    sites = np.delete(sites, [40, 41])  # a missing well of E3
    scores, role = noisy_scores(sites, seed=seed), roles(sites, "E3")
    predicted = assignment.assign_plate_groups(scores, sites, CLASSES, role)
    wells = np.flatnonzero(sites["experiment"] == "E3")[::2]
    means = (scores[wells] + scores[wells + 1]) / 2
    options = []
    for rotation in range(PLATES):
        parts = []
        for plate in range(PLATES):
            group = (plate + rotation) % PLATES
            here = np.flatnonzero(sites["plate"][wells] == plate + 1)
            columns = range(group * PER_PLATE, (group + 1) * PER_PLATE)
            parts.append(max(
                ([(well, column) for well, column in zip(here, order, strict=True)]
                 for order in itertools.permutations(columns, len(here))),
                key=lambda pairs: sum(means[pair] for pair in pairs),
            ))  # fmt: skip
        options.append(sorted(itertools.chain(*parts)))
    best = max(options, key=lambda pairs: sum(means[pair] for pair in pairs))
    np.testing.assert_array_equal(predicted[wells], CLASSES[[column for _, column in best]])


def test_groups_of_a_constructed_screen():
    rotations = [0, 2, 1, 1]
    sites = screen(rotations)
    sites["sirna_id"][:2] = 999  # one mislabelled well
    groups, rotation = assignment.sirna_groups(sites, roles(sites, "E3"))
    assert [(groups[sirna] - groups[40]) % 3 for sirna in CLASSES] == [0, 0, 1, 1, 2, 2]
    assert [(rotation[f"E{e}"] - rotation["E0"]) % 3 for e in range(3)] == rotations[:3]
    assert "E3" not in rotation


@pytest.mark.skipif(not REAL.exists(), reason="real metadata not present")
def test_groups_of_the_real_screen():
    with gzip.open(REAL, "rt", encoding="utf-8") as file:
        lines = [line for line in csv.DictReader(file) if line["site"] == "1"]
    columns = ("experiment", "plate", "well", "well_type", "sirna_id")
    sites = make_sites(([line[name] for name in columns] for line in lines), sites=(1,))
    dataset = np.array([line["dataset"] for line in lines])
    groups, _ = assignment.sirna_groups(sites, dataset)
    assert np.bincount(list(groups.values())).tolist() == [277] * 4
    known = (sites["well_type"] == "treatment") & (sites["sirna_id"] >= 0) & (dataset == "test")
    for experiment in np.unique(sites["experiment"][known]):
        here = sites[known & (sites["experiment"] == experiment)]
        group = np.array([groups[int(sirna)] for sirna in here["sirna_id"]])
        assert len(np.unique((group - here["plate"]) % 4)) == 1, experiment


BROKEN = np.where(np.arange(36) == 4, -np.inf, np.zeros((6, 36))).T


@pytest.mark.parametrize("decide", [assignment.assign_once, assignment.assign_plate_groups])
class TestAssignments:
    def test_rows_in_any_order(self, decide):
        sites = screen([0, 1, 2, 0, 1])
        scores, role = noisy_scores(sites), roles(sites, "E3", "E4")
        order = np.random.default_rng(3).permutation(len(sites))
        np.testing.assert_array_equal(
            decide(scores[order], sites[order], CLASSES, role[order]),
            decide(scores, sites, CLASSES, role)[order],
        )

    @pytest.mark.parametrize("held_out", ["test", "val"])
    def test_test_labels_are_not_read(self, decide, held_out):
        sites = screen([0, 1, 2, 0, 1])
        role = np.where(roles(sites, "E3", "E4") == "test", held_out, "train")
        scores = noisy_scores(sites)
        hidden = sites.copy()
        hidden["sirna_id"][role == held_out] = -1
        shuffled = sites.copy()
        shuffled["sirna_id"][role == held_out] = 60
        expected = decide(scores, sites, CLASSES, role)
        for other in (hidden, shuffled):
            np.testing.assert_array_equal(decide(scores, other, CLASSES, role), expected)

    def test_training_wells_of_the_experiment_take_their_sirnas(self, decide):
        sites = screen([0, 1, 2], sites=(1,))
        role = np.full(len(sites), "train")
        role[[-1, -3]] = "test"  # the wells of 50 or 51 and 40 or 41 (plates 2 and 3 of E2)
        scores = np.zeros((len(sites), 6))  # no evidence at all
        predicted = decide(scores, sites, CLASSES, role)
        if decide is assignment.assign_plate_groups:
            np.testing.assert_array_equal(predicted[[-1, -3]], sites["sirna_id"][[-1, -3]])
        assert set(predicted[[-1, -3]]) == set(sites["sirna_id"][[-1, -3]])

    def test_a_training_site_of_the_same_well_says_nothing_of_it(self, decide):
        """Neither its siRNA, which the well may have, nor scores that were fitted to its label."""
        sites = screen([0, 1, 2])
        role = np.where((sites["experiment"] == "E2") & (sites["site"] == 2), "test", "train")
        test = role == "test"
        alone = (sites["experiment"] != "E2") | test
        scores = noisy_scores(sites, seed=5)
        scores[~test] = 100 * noisy_scores(sites, noise=0)[~test]
        found = decide(scores, sites, CLASSES, role)[test]
        np.testing.assert_array_equal(
            found,
            decide(scores[alone], sites[alone], CLASSES, roles(sites[alone], "E2"))[test[alone]],
        )
        assert (found != CLASSES[scores.argmax(axis=1)][test]).any()

    def test_more_wells_than_sirnas(self, decide):
        sites = screen([0, 1, 2, 0], more=[("E3", 1, "O23", "treatment", 40)])
        scores, role = noisy_scores(sites, noise=0.1), roles(sites, "E3")
        predicted = decide(scores, sites, CLASSES, role)
        np.testing.assert_array_equal(predicted[role == "test"], sites["sirna_id"][role == "test"])

    def test_controls_are_left_alone(self, decide):
        sites = screen([0, 1, 2, 0], more=[("E3", 1, "C03", "positive_control", 1108)])
        scores = noisy_scores(sites)
        role = np.append(roles(sites[:-1], "E3"), "context")
        predicted = decide(scores, sites, CLASSES, role)
        assert predicted[-1] == CLASSES[scores[-1].argmax()]
        np.testing.assert_array_equal(
            predicted[:-1], decide(scores[:-1], sites[:-1], CLASSES, role[:-1])
        )

    def test_a_sirna_without_training_wells_may_be_anywhere(self, decide):
        sites = screen([0, 1, 2, 0])
        role = roles(sites, "E3")
        sites = sites[(role == "test") | (sites["sirna_id"] != 51)]
        role = roles(sites, "E3")
        predicted = decide(noisy_scores(sites, noise=0.1), sites, CLASSES, role)
        np.testing.assert_array_equal(predicted[role == "test"], sites["sirna_id"][role == "test"])

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"log_probs": np.zeros((35, 6))}, "log_probs .*35"),
            ({"classes": CLASSES[1:]}, "classes"),
            ({"classes": CLASSES[[0, 0, 1, 2, 3, 4]]}, "5 classes"),
            ({"role": np.full(36, "other")}, "role .*other"),
            ({"role": np.full(35, "train")}, "role .*35"),
            ({"log_probs": BROKEN}, "E0_2_B00_1"),
        ],
    )
    def test_bad_input(self, decide, change, named):
        sites = screen([0, 1, 2])
        given = {"log_probs": noisy_scores(sites), "classes": CLASSES, "role": roles(sites, "E2")}
        with pytest.raises(ValueError, match=named):
            decide(sites=sites, **given | change)

    def test_a_screen_with_replicates_is_refused(self, decide):
        sites = screen([0, 1, 2])
        twice = sites.copy()
        twice["well_id"] = np.char.add(sites["well_id"], "x")
        both = np.append(sites, twice)
        with pytest.raises(ValueError, match="12 of 12"):
            decide(noisy_scores(both), both, CLASSES, roles(both, "E2"))


def test_wells_left_over_stay_in_the_group_of_their_plate():
    sites = screen([0, 1, 2, 0], sites=(1,))
    sites = np.append(sites[:-1], make_sites([("E3", 1, "O23", "treatment", 41)], sites=(1,)))
    role = roles(sites, "E3")
    scores = noisy_scores(sites, noise=0.01)
    scores[-1, CLASSES == 60] += 4  # looks like a siRNA of another plate, whose well is missing
    predicted = assignment.assign_plate_groups(scores, sites, CLASSES, role)
    np.testing.assert_array_equal(predicted[role == "test"], sites["sirna_id"][role == "test"])


def test_a_plate_whose_group_has_no_class_gets_the_best_of_all():
    sites = screen([0, 1, 2, 0])
    classes, role = CLASSES[:4], roles(sites, "E3")
    scores = noisy_scores(sites, classes, noise=0.1)
    predicted = assignment.assign_plate_groups(scores, sites, classes, role)
    here = (role == "test") & (sites["plate"] == 3)
    best = by_well(scores, sites, classes)
    np.testing.assert_array_equal(predicted[here], best[here])
    assert (best[here] != classes[0]).any()
    others = (role == "test") & ~here
    np.testing.assert_array_equal(predicted[others], sites["sirna_id"][others])


def test_plates_without_groups_are_refused():
    sites = screen([0, 0, 0, 0, 0])
    rng = np.random.default_rng(0)
    for experiment in np.unique(sites["experiment"]):
        here = np.flatnonzero(sites["experiment"] == experiment)
        sites["sirna_id"][here] = np.repeat(rng.permutation(CLASSES), 2)
    one = screen([0, 1])
    for given, role, named in (
        (sites, roles(sites, "E4"), "groups"), (one, roles(one, "E1"), "0 of 0"),
        (one, np.full(len(one), "test"), "no training wells"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=named):
            assignment.sirna_groups(given, role)

"""Statistics of pixels against NumPy over the images; test_stream.py has their values per site."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from screens import CHANNELS, tiny_images
from screens import read as read
from tiny_release import PLATE_WITHOUT_CONTROLS

from rxrx1_jax.config import FIELDS
from rxrx1_jax.data import normalisation
from rxrx1_jax.data.images import DatasetError, InMemory
from rxrx1_jax.data.normalisation import Blind, median_and_deviation

ALL = np.arange(61)


def statistics(images, rows, kind, training=ALL):
    """kind: a name, or a function."""
    made = getattr(normalisation, kind)() if isinstance(kind, str) else kind
    blind = images if isinstance(images, Blind) else Blind(images)
    return normalisation.statistics(made, blind, np.asarray(rows), training)


@pytest.fixture
def images() -> InMemory:
    return tiny_images()


def pixels(images, rows):
    """[C, n]"""
    return np.moveaxis(images.planes[rows].astype(float), 1, 0).reshape(CHANNELS, -1)


def test_all_are_here_and_of_one_form(images):
    for kind in FIELDS["data.normalisation"].valid:
        found = statistics(images, ALL[::-1], kind)
        if kind == "site":
            assert found is None
            continue
        assert [(part.shape, part.dtype) for part in found] == [((61, CHANNELS), np.float32)] * 2


def test_control_images_are_read_once_and_only_where_they_are_needed(images, read):
    sites = images.sites
    rows = np.flatnonzero(sites["experiment"] == "HUVEC-01")
    for kind in FIELDS["data.normalisation"].valid:
        if kind != "plate_control_robust":
            statistics(images, rows, kind)
    assert not read
    robust, blind = normalisation.plate_control_robust(), Blind(images)
    for _ in range(2):
        statistics(blind, rows[sites["plate"][rows] == 1], robust)
    controls = (sites["experiment"] == "HUVEC-01") & (sites["well_type"] != "treatment")
    first = np.flatnonzero(controls & (sites["plate"] == 1)).tolist()
    assert read == Counter(first) and len(first) == 6
    statistics(blind, rows, robust)
    assert read == Counter(np.flatnonzero(controls).tolist())


@pytest.mark.parametrize(
    "kind", ["plate_control", "plate_negative_control", "plate_control_robust"]
)
def test_a_plate_without_controls_takes_those_of_its_experiment(images, kind):
    experiment, plate = PLATE_WITHOUT_CONTROLS
    sites = images.sites
    (row, *_) = np.flatnonzero((sites["experiment"] == experiment) & (sites["plate"] == plate))
    (other, *_) = np.flatnonzero((sites["experiment"] == experiment) & (sites["plate"] != plate))
    one, two = (statistics(images, [r], kind) for r in (row, other))
    np.testing.assert_array_equal(one, two)  # the other plate has all of the experiment's


def test_an_experiment_with_a_constant_control_channel_goes_by_the_builders_rule():
    """Its controls are not usable, so all its sites serve: 7.5 +- 7.5, as control_mean has it."""
    planes = np.zeros((4, 2, 2, 2), np.uint8)
    planes[:, 0] = np.arange(4 * 4).reshape(4, 2, 2)  # of sites 0 .. 3: a mean of 7.5
    planes[2:, 1] = 15  # constant in the controls, sites 0 and 1
    types = ["negative_control", "positive_control", "treatment", "treatment"]
    images = InMemory(planes, {"well_type": types, "experiment": ["HUVEC-01"] * 4})
    mean, std = statistics(images, np.arange(4), "experiment_control", np.arange(4))
    np.testing.assert_array_equal(mean, np.full((4, 2), 7.5))
    np.testing.assert_allclose(std, np.tile([np.arange(16).std(), 7.5], (4, 1)), rtol=1e-6)
    np.testing.assert_array_equal(mean, images.sites["control_mean"])
    np.testing.assert_array_equal(std, images.sites["control_std"])


def test_global_statistics_are_of_the_training_experiments(images):
    """Whatever is asked for; of an experiment without controls all sites count."""
    sites = images.sites
    control = sites["well_type"] != "treatment"
    for names in ({"HUVEC-01"}, {"HUVEC-01", "U2OS-01"}):
        inside = np.isin(sites["experiment"], list(names))
        expected = pixels(images, inside & control)
        mean, std = statistics(images, [40, 3], "global_control", np.flatnonzero(inside)[::3])
        np.testing.assert_allclose(mean, np.tile(expected.mean(1), (2, 1)), rtol=1e-6)
        np.testing.assert_allclose(std, np.tile(expected.std(1), (2, 1)), rtol=1e-6)
    u2os = sites["experiment"] == "U2OS-01"
    sites["well_type"][u2os] = "treatment"
    expected = pixels(images, (sites["experiment"] == "HUVEC-01") & control | u2os)
    mean, _ = statistics(images, [0], "global_control", np.flatnonzero(inside))
    np.testing.assert_allclose(mean[0], expected.mean(1), rtol=1e-6)


def test_an_experiment_without_controls_of_the_type(images):
    rows = np.flatnonzero(images.sites["experiment"] == "U2OS-01")
    for kind, of_type in (("plate_negative_control", "negative"), ("plate_control_robust", "")):
        sites = images.sites
        sites["well_type"][rows] = np.where(
            np.char.startswith(sites["well_type"][rows], of_type), "treatment",
            sites["well_type"][rows],
        )  # fmt: skip
        with pytest.raises(DatasetError, match="in experiment U2OS-01"):
            statistics(images, rows, kind)


def test_constant_channels_have_the_floor():
    planes = np.full((2, 6, 4, 4), 7, np.uint8)
    images = InMemory(planes, {"well_type": ["negative_control"] * 2})
    for kind in ("plate_control_robust", "plate_control", "experiment_control"):
        mean, std = statistics(images, [0, 1], kind)
        assert (mean == 7).all()
        np.testing.assert_allclose(std, 12**-0.5, rtol=1e-6)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 255), min_size=1, max_size=30))
def test_median_of_a_histogram(values):
    median, deviation = median_and_deviation(np.bincount(values, minlength=256))
    assert median == np.median(values)
    assert deviation == 1.4826 * np.median(np.abs(np.array(values) - np.median(values)))


def test_a_function_of_the_users(images):
    """It is told all but the siRNA of treatments, and cannot change what it is given."""
    before, seen = images.sites.copy(), {}

    def own(images, rows, training):
        seen["sites"], seen["training"] = images.sites, training.copy()
        std = np.broadcast_to(images.sites["site"][rows][:, None], (len(rows), CHANNELS))
        rows[:], training[:] = 0, 0
        return np.full((len(rows), CHANNELS), 3.5), std.astype(np.float64)

    rows, training = np.array([5, 40, 3]), np.arange(4, 9)
    mean, std = statistics(images, rows, own, training)
    assert mean.dtype == std.dtype == np.float32 and (mean == 3.5).all()
    np.testing.assert_array_equal(std, np.repeat(before["site"][rows][:, None], CHANNELS, 1))
    np.testing.assert_array_equal(images.sites, before)
    assert rows.tolist() == [5, 40, 3] and seen["training"].tolist() == training.tolist()

    given, treated = seen["sites"], before["well_type"] == "treatment"
    assert treated.any() and set(before["sirna_id"][treated]) > {0, 1}
    assert set(given["sirna_id"][treated]) == {-1} and set(given["sirna"][treated]) == {""}
    for name in before.dtype.names:
        same = ~treated if name.startswith("sirna") else ...
        np.testing.assert_array_equal(given[name][same], before[name][same])


GOOD = np.ones((2, CHANNELS), np.float32)
NAN, NEGATIVE = GOOD.copy(), GOOD.copy()
NAN[1, 2], NEGATIVE[0, 5] = np.nan, -1


@pytest.mark.parametrize(
    "returned, named",
    [
        (GOOD, ["(2, 6)", "ndarray"]), ((GOOD, GOOD[:1]), ["std", "(1, 6)"]),
        ((GOOD.astype(int), GOOD), ["mean", "int64"]), ((NAN, GOOD), ["mean", 9, "3", "nan"]),
        ((GOOD, NEGATIVE), ["std", 7, "6", "-1.0"]),
    ],
)  # fmt: skip
def test_what_a_function_of_the_users_may_not_return(images, returned, named):
    """named: words, and rows whose site it must be."""
    with pytest.raises(DatasetError, match="data.normalisation") as error:
        statistics(images, np.array([7, 9]), lambda images, rows, training: returned)
    words = [w if isinstance(w, str) else images.sites["site_id"][w] for w in named]
    assert all(word in str(error.value) for word in words)

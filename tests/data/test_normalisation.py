"""Statistics of control pixels against NumPy over the PNG files, read with Pillow."""

import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_release import PLATE_WITHOUT_CONTROLS, read_pngs

from rxrx1_jax.data.normalisation import NORMALISATIONS, median_and_deviation, pixel_statistics
from rxrx1_jax.data.records import DatasetError, Records

sys.modules["test_normalisation"] = sys.modules[__name__]  # by the name that settings have here

pytest_plugins = ["dataset_fixture"]
CHANNELS = 6


@pytest.fixture
def records(tiny) -> Records:
    return Records(tiny.dataset)


@pytest.fixture
def read(monkeypatch) -> Counter:
    """How often the image of each record has been read."""
    count: Counter[int] = Counter()
    fetch = Records.__getitem__
    monkeypatch.setattr(
        Records, "__getitem__", lambda self, i: (count.update([int(i)]), fetch(self, i))[1]
    )
    return count


def pixels(tiny, experiment, plate, types=("positive_control", "negative_control")):
    """[6, n] of the wells of these types on the plate, or if there are none in the experiment."""
    for plates in ({str(plate)}, {"1", "2"}):
        chosen = [
            read_pngs(tiny.release, row).reshape(CHANNELS, -1)
            for row in tiny.rows.values()
            if row["experiment"] == experiment and row["plate"] in plates
            and row["well_type"] in types
        ]  # fmt: skip
        if chosen:
            return np.concatenate(chosen, 1).astype(float)
    raise AssertionError


@pytest.mark.parametrize("kind", ["plate_negative_control", "plate_control_robust"])
def test_statistics_of_every_site(tiny, records, kind):
    rows = np.random.default_rng(0).permutation(len(records))
    mean, std = pixel_statistics(records, rows, kind)
    assert mean.shape == std.shape == (len(records), CHANNELS)
    assert mean.dtype == std.dtype == np.float32
    for k, row in enumerate(rows):
        place = records.sites["experiment"][row], records.sites["plate"][row]
        if kind == "plate_negative_control":
            wells = pixels(tiny, *place, types=("negative_control",))
            expected = wells.mean(1), wells.std(1)
        else:
            wells = pixels(tiny, *place)
            median = np.median(wells, 1)
            expected = median, 1.4826 * np.median(np.abs(wells - median[:, None]), 1)
        np.testing.assert_allclose(mean[k], expected[0], rtol=1e-6)
        np.testing.assert_allclose(std[k], expected[1], rtol=1e-6)


def test_control_images_are_read_once_and_only_where_they_are_needed(records, read):
    rows = np.flatnonzero(records.sites["experiment"] == "HUVEC-01")
    for kind in NORMALISATIONS:
        if kind != "plate_control_robust":
            pixel_statistics(records, rows, kind)
    assert not read
    for _ in range(2):
        pixel_statistics(records, rows[records.sites["plate"][rows] == 1], "plate_control_robust")
    controls = (records.sites["experiment"] == "HUVEC-01") & (
        records.sites["well_type"] != "treatment"
    )
    first = np.flatnonzero(controls & (records.sites["plate"] == 1)).tolist()
    assert read == Counter(first) and len(first) == 6
    pixel_statistics(records, rows, "plate_control_robust")
    assert read == Counter(np.flatnonzero(controls).tolist())


def test_a_plate_without_controls_takes_those_of_its_experiment(tiny, records):
    experiment, plate = PLATE_WITHOUT_CONTROLS
    sites = records.sites
    (row, *_) = np.flatnonzero((sites["experiment"] == experiment) & (sites["plate"] == plate))
    (other, *_) = np.flatnonzero((sites["experiment"] == experiment) & (sites["plate"] != plate))
    for kind in ("plate_negative_control", "plate_control_robust"):
        one, two = (pixel_statistics(Records(tiny.dataset), [r], kind) for r in (row, other))
        np.testing.assert_array_equal(one, two)  # the other plate has all of the experiment's


def test_an_experiment_without_controls_of_the_type(records):
    rows = np.flatnonzero(records.sites["experiment"] == "U2OS-01")
    del records.metadata["control_pixels"]["U2OS-01"]["1"]["negative_control"]
    with pytest.raises(DatasetError, match="metadata.json: no pixels of untreated wells.*U2OS-01"):
        pixel_statistics(records, rows, "plate_negative_control")
    records.sites["well_type"][rows] = "treatment"
    with pytest.raises(DatasetError, match="no control site in experiment U2OS-01"):
        pixel_statistics(records, rows, "plate_control_robust")


def test_constant_channels_have_the_floor(records, monkeypatch):
    monkeypatch.setattr(Records, "__getitem__", lambda self, i: np.full((6, 4, 4), 7, np.uint8))
    mean, std = pixel_statistics(records, np.arange(5), "plate_control_robust")
    assert (mean == 7).all()
    np.testing.assert_allclose(std, 12**-0.5, rtol=1e-6)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 255), min_size=1, max_size=30))
def test_median_of_a_histogram(values):
    median, deviation = median_and_deviation(np.bincount(values, minlength=256))
    assert median == np.median(values)
    assert deviation == 1.4826 * np.median(np.abs(np.array(values) - np.median(values)))


SEEN = {}


def constant(level=100.0):
    """A normalisation of a user's: the mean is `level`, the std the number of the site."""

    def statistics(records, rows):
        SEEN["sites"] = records.sites
        std = np.broadcast_to(records.sites["site"][rows][:, None], (len(rows), CHANNELS))
        return np.full((len(rows), CHANNELS), level), std.astype(np.float64)

    return statistics


def returning(what):
    """Gives one of several things that are no statistics of two rows."""
    good = np.ones((2, CHANNELS), np.float32)
    nan, negative = good.copy(), good.copy()
    nan[1, 2], negative[0, 5] = np.nan, -1
    wrong = {
        "nothing": None, "mean": good, "short": (good, good[:1]), "whole": (good.astype(int), good),
        "nan": (nan, good), "negative": (good, negative),
    }  # fmt: skip
    return lambda records, rows: wrong[what]


def test_a_function_of_the_users(tiny, records, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "SEEN", {})
    before = records.sites.copy()
    rows = np.array([5, 40, 3])
    for kind, level in (("constant", 100), ("constant(level=3.5)", 3.5)):
        mean, std = pixel_statistics(records, rows, f"test_normalisation.{kind}")
        assert mean.dtype == std.dtype == np.float32 and (mean == level).all()
        np.testing.assert_array_equal(std, np.repeat(before["site"][rows][:, None], CHANNELS, 1))
    np.testing.assert_array_equal(records.sites, before)

    seen, treated = SEEN["sites"], before["well_type"] == "treatment"
    assert treated.any() and set(before["sirna_id"][treated]) > {0, 1}
    assert set(seen["sirna_id"][treated]) == {-1} and set(seen["sirna"][treated]) == {""}
    for name in before.dtype.names:
        same = ~treated if name.startswith("sirna") else ...
        np.testing.assert_array_equal(seen[name][same], before[name][same])


@pytest.mark.parametrize(
    "what, message",
    [
        ("nothing", r"expected \(mean, std\), two float arrays of shape \(2, 6\), got NoneType"),
        ("mean", "got ndarray"),
        ("short", r"std is float32 \(1, 6\)"),
        ("whole", r"mean is int64 \(2, 6\)"),
        ("nan", "mean of site {1}, channel 3, is nan"),
        ("negative", "std of site {0}, channel 6, is -1.0"),
    ],
)
def test_what_a_function_of_the_users_may_not_return(records, what, message):
    rows = np.array([7, 9])
    message = message.format(*records.sites["site_id"][rows]) if "{" in message else message
    with pytest.raises(ValueError, match=f"normalisation test_normalisation.*{message}"):
        pixel_statistics(records, rows, f"test_normalisation.returning('{what}')")


def test_errors(records):
    rows = np.arange(3)
    with pytest.raises(ValueError, match="'plate': expected one of plate_control, .*_robust"):
        pixel_statistics(records, rows, "plate")
    with pytest.raises(ValueError, match="no_such_module"):
        pixel_statistics(records, rows, "no_such_module.statistics")

"""controls.py against plain NumPy over stacked pixels and exact fractions."""

import logging
import math
import threading
from fractions import Fraction

import numpy as np
import pytest
from tiny_release import PLATE_WITHOUT_CONTROLS, tiny_rows, write_metadata

from tfds_builder.rxrx1 import controls
from tfds_builder.rxrx1.release import ReleaseError, read_release, usable_cpus


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    root = tmp_path_factory.mktemp("release")
    write_metadata(root, tiny_rows())
    return read_release(root)


def fake_image(site) -> np.ndarray:
    """An image that is a function of the site, uint8 [6, 8, 8]."""
    seed = list(site.site_id.encode())
    return np.random.default_rng(seed).integers(0, 256, (6, 8, 8), dtype=np.uint8)


def stacked(sites) -> np.ndarray:
    """All pixels of the sites: float64 [6, n]."""
    return np.concatenate([fake_image(s).reshape(6, -1) for s in sites], axis=1).astype(float)


def is_control(site) -> bool:
    return site.well_type != "treatment"


def test_sums_are_exact_per_plate_and_well_type(sites):
    sums = controls.control_sums(sites, fake_image, progress=False)
    keys = {(s.experiment, s.plate, s.well_type) for s in sites if is_control(s)}
    assert set(sums) == keys
    for key in keys:
        pixels = stacked([s for s in sites if (s.experiment, s.plate, s.well_type) == key])
        assert sums[key].pixels == pixels.shape[1]
        assert sums[key].sum == tuple(pixels.sum(axis=1))
        assert sums[key].sum_of_squares == tuple((pixels**2).sum(axis=1))
    # order of the sites is no matter
    assert controls.control_sums(sites[::-1], fake_image, progress=False) == sums


def test_statistics_pool_both_kinds_of_controls(sites, caplog):
    with caplog.at_level(logging.WARNING):
        statistics = controls.plate_statistics(
            sites, controls.control_sums(sites, fake_image, progress=False)
        )
    assert set(statistics) == {(s.experiment, s.plate) for s in sites}
    for (experiment, plate), (mean, std) in statistics.items():
        group = [s for s in sites if is_control(s) and s.experiment == experiment]
        if (experiment, plate) != PLATE_WITHOUT_CONTROLS:
            group = [s for s in group if s.plate == plate]
        assert group
        pixels = stacked(group)
        assert mean.dtype == std.dtype == np.float32
        np.testing.assert_array_equal(mean, pixels.mean(axis=1).astype(np.float32))
        np.testing.assert_allclose(std, pixels.std(axis=1), rtol=1e-7)
    assert [record.getMessage() for record in caplog.records] == [
        "U2OS-01 plate 2 has no control wells: the controls of the whole experiment serve"
    ]


def test_experiment_without_controls_is_refused(sites):
    rest = [s for s in sites if s.experiment != "U2OS-01" or not is_control(s)]
    sums = controls.control_sums(rest, fake_image, progress=False)
    with pytest.raises(ReleaseError, match="experiment U2OS-01 has no control wells"):
        controls.plate_statistics(rest, sums)


def test_no_cancellation_where_float64_sums_fail():
    """10^13 pixels of 255, one of 254: float64 arithmetic gives a std of 0 or worse."""
    n = 10**13
    sums = controls.ControlSums(n, (255 * n - 1,) * 6, (255**2 * n - 509,) * 6)
    mean, std = controls.mean_and_std(sums)
    variance = Fraction(255**2 * n - 509, n) - Fraction(255 * n - 1, n) ** 2
    np.testing.assert_allclose(std, math.sqrt(variance), rtol=1e-7)
    assert (mean == np.float32(255)).all()
    naive = (255**2 * n - 509) / n - ((255 * n - 1) / n) ** 2
    assert not math.isclose(naive, float(variance), rel_tol=1e-3)


def test_constant_channel_has_zero_std():
    mean, std = controls.mean_and_std(controls.image_sums(np.full((6, 4, 4), 7, np.uint8)))
    assert mean.tolist() == [7.0] * 6 and std.tolist() == [0.0] * 6


def test_json_layout(sites):
    sums = controls.control_sums(sites, fake_image, progress=False)
    tree = controls.sums_to_json(sums)
    assert list(tree) == ["HUVEC-01", "HUVEC-02", "U2OS-01"]
    assert list(tree["U2OS-01"]) == ["1"]
    group = tree["HUVEC-01"]["2"]["negative_control"]
    assert group["count"] == 2 * 2 * 64  # B02 and the further untreated well, two sites each
    assert group["sum"] == list(sums["HUVEC-01", 2, "negative_control"].sum)
    assert all(type(value) is int for value in group["sum_of_squares"])


def test_map_in_order_is_bounded_and_stops_early():
    begun = []
    lock = threading.Lock()

    def work(i):
        with lock:
            begun.append(i)
        return i * i

    results = controls.map_in_order(work, range(1000))
    first = [next(results) for _ in range(20)]
    assert first == [i * i for i in range(20)]
    assert len(begun) <= 20 + 2 * usable_cpus() + 1
    results.close()
    assert len(begun) < 100
    assert list(controls.map_in_order(work, range(50))) == [i * i for i in range(50)]


def test_map_in_order_passes_errors_on():
    def work(i):
        if i == 5:
            raise ReleaseError("five")
        return i

    results = controls.map_in_order(work, range(100))
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ReleaseError, match="five"):
        next(results)

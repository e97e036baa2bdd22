"""controls.py against plain NumPy over stacked pixels and exact fractions."""

import json
import logging
import math
from fractions import Fraction

import numpy as np
import pytest
from tiny_release import PLATE_WITHOUT_CONTROLS, tiny_rows

from tfds_builder.rxrx1 import controls
from tfds_builder.rxrx1.release.metadata import Site


@pytest.fixture(scope="module")
def sites() -> list[Site]:
    numbers = ("plate", "site", "sirna_id")
    rows = sorted(tiny_rows(), key=lambda row: row["site_id"])
    return [Site(**(row | {name: int(row[name]) for name in numbers})) for row in rows]


def fake_image(site) -> np.ndarray:
    """An image that is a function of the site, uint8 [6, 8, 8]."""
    seed = list(site.site_id.encode())
    return np.random.default_rng(seed).integers(0, 256, (6, 8, 8), dtype=np.uint8)


def stacked(sites) -> np.ndarray:
    """All pixels of the sites: float64 [6, n]."""
    return np.concatenate([fake_image(s).reshape(6, -1) for s in sites], axis=1).astype(float)


def is_control(site) -> bool:
    return site.well_type != "treatment"


def read(sites, image=fake_image):
    return controls.read_statistics(sites, image)


def without(sites, *dropped):
    """The sites less the controls of the plates (or whole experiments) given."""
    return [
        s
        for s in sites
        if not (is_control(s) and {s.experiment, (s.experiment, s.plate)} & set(dropped))
    ]


def assert_moments(statistics, group, image=fake_image):
    mean, std = statistics
    pixels = np.concatenate([image(s).reshape(6, -1) for s in group], axis=1).astype(float)
    assert mean.dtype == std.dtype == np.float32 and mean.shape == std.shape == (6,)
    np.testing.assert_array_equal(mean, pixels.mean(axis=1).astype(np.float32))
    np.testing.assert_allclose(std, pixels.std(axis=1), rtol=1e-7)


def test_sums_are_exact_per_plate_and_well_type(sites):
    sums = read(sites).sums
    keys = {(s.experiment, s.plate, s.well_type) for s in sites if is_control(s)}
    assert set(sums) == keys
    for key in keys:
        pixels = stacked([s for s in sites if (s.experiment, s.plate, s.well_type) == key])
        count, first, second = sums[key].tolist()
        assert count == [pixels.shape[1]] * 6 and first == pixels.sum(axis=1).tolist()
        assert second == (pixels**2).sum(axis=1).tolist()


@pytest.mark.parametrize("channels", [3, 6])
def test_order_of_the_sites_changes_no_bit(sites, channels):
    partial = without(sites, "HUVEC-02")

    def image(site):
        return fake_image(site)[:channels]

    expected = read(partial, image)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(partial))
        found = read([partial[i] for i in order], image)
        assert json.dumps(found.to_json()) == json.dumps(expected.to_json())
        for plate, (mean, std) in expected.plate.items():
            assert mean.shape == std.shape == (channels,)
            assert found.plate[plate][0].tobytes() == mean.tobytes()
            assert found.plate[plate][1].tobytes() == std.tobytes()


def dark(*places):
    """`fake_image`, but channel 3 is black where experiment, plate or well_type is in places."""

    def image(site):
        pixels = fake_image(site)
        kinds = (site.experiment,), (site.experiment, site.plate), (site.experiment, site.well_type)
        pixels[3] *= not set(kinds) & set(places)
        return pixels

    return image


DARK_CONTROLS = [("HUVEC-01", "positive_control"), ("HUVEC-01", "negative_control")]
FALLBACKS = {  # what lacks controls, what is dark, {plate: the source of its statistics}
    "as released": ([], [], {("HUVEC-01", 1): "plate_controls", PLATE_WITHOUT_CONTROLS:
                             "experiment_controls"}),
    "no controls": (["HUVEC-02", "U2OS-01"], [], {
        ("HUVEC-02", 1): "plate_sites", ("U2OS-01", 2): "plate_sites",
        ("HUVEC-01", 2): "plate_controls"}),
    "dark plate": ([], [("HUVEC-01", 1)], {
        ("HUVEC-01", 1): "experiment_controls", ("HUVEC-01", 2): "plate_controls"}),
    "dark controls": ([], DARK_CONTROLS, {("HUVEC-01", 2): "plate_sites"}),
    # Plate 1 is dark altogether and the controls of plate 2 are: only its treatments differ.
    "both": ([], [("HUVEC-01", 1), *DARK_CONTROLS], {
        ("HUVEC-01", 1): "experiment_sites", ("HUVEC-01", 2): "plate_sites"}),
    # A channel that is constant everywhere has a deviation of 0 from any source: the best serves.
    "dark experiments": ([], [("HUVEC-01",), ("U2OS-01",)], {
        ("HUVEC-01", 1): "plate_controls", PLATE_WITHOUT_CONTROLS: "experiment_controls"}),
}  # fmt: skip


@pytest.mark.parametrize("case", FALLBACKS)
def test_what_serves_a_plate(sites, caplog, case):
    """Both kinds of controls pooled, or the first usable substitute; the log names the plate."""
    dropped, black, sources = FALLBACKS[case]
    partial, image, looked_at = without(sites, *dropped), dark(*black), []

    def noted(site):
        looked_at.append(site)
        return image(site)

    with caplog.at_level(logging.WARNING):
        statistics = read(partial, noted)
    assert set(statistics.plate) == {(s.experiment, s.plate) for s in sites}
    assert len(looked_at) == len(set(looked_at))
    for (experiment, plate), source in sources.items():
        assert statistics.source[experiment, plate] == source
        whole, of_controls = source.startswith("experiment"), source.endswith("controls")
        group = of(partial, experiment, None if whole else plate, of_controls)
        assert_moments(statistics.plate[experiment, plate], group, image)
        log = "".join(part for part in caplog.text.split(";") if controls.SOURCES[source] in part)
        assert (f"{experiment} {plate}" in log) == (source != "plate_controls")
    if not black:  # treatments of an experiment that has controls are not read
        assert all(is_control(s) for s in looked_at if s.experiment not in dropped)
    zero = {plate for plate, (_, std) in statistics.plate.items() if not std.all()}
    assert zero == {plate for plate in statistics.plate if plate[:1] in black}
    assert ("of zero" in caplog.text) == bool(zero)


def of(sites, experiment, plate=None, controls_only=False):
    return [
        s
        for s in sites
        if s.experiment == experiment
        and plate in (None, s.plate)
        and (is_control(s) or not controls_only)
    ]


def test_metadata_states_every_statistic(sites):
    statistics = read(without(sites, "HUVEC-02"))
    tree = json.loads(json.dumps(statistics.to_json()))["control_statistics"]
    assert list(tree) == ["plate", "experiment", "negative_control"]
    for (experiment, plate), (mean, std) in statistics.plate.items():
        entry = tree["plate"][experiment][str(plate)]
        assert entry["source"] == statistics.source[experiment, plate]
        np.testing.assert_array_equal(np.array(entry["mean"], np.float32), mean)
        np.testing.assert_array_equal(np.array(entry["std"], np.float32), std)
    assert {e: entry["source"] for e, entry in tree["experiment"].items()} == {
        "HUVEC-01": "experiment_controls",
        "HUVEC-02": "experiment_sites",
        "U2OS-01": "experiment_controls",
    }

    def moments(entry):
        return np.array(entry["mean"], np.float32), np.array(entry["std"], np.float32)

    for experiment, entry in tree["experiment"].items():
        only = experiment != "HUVEC-02"
        group = of(without(sites, "HUVEC-02"), experiment, controls_only=only)
        assert_moments(moments(entry), group)
    negative = tree["negative_control"]
    untreated = [s for s in without(sites, "HUVEC-02") if s.well_type == "negative_control"]
    assert {(e, int(p)) for e, plates in negative["plate"].items() for p in plates} == {
        (s.experiment, s.plate) for s in untreated
    }
    for experiment, entry in negative["experiment"].items():
        assert_moments(moments(entry), [s for s in untreated if s.experiment == experiment])
        for plate, entry in negative["plate"][experiment].items():
            group = [s for s in untreated if (s.experiment, s.plate) == (experiment, int(plate))]
            assert_moments(moments(entry), group)


def test_everything_follows_from_the_stored_sums(sites):
    statistics = read(without(sites, "HUVEC-02"))
    stored = json.loads(json.dumps(statistics.to_json()))
    assert list(stored["control_pixels"]) == ["HUVEC-01", "HUVEC-02", "U2OS-01"]
    group = stored["control_pixels"]["HUVEC-01"]["2"]["negative_control"]
    assert group["count"] == 2 * 2 * 64  # B02 and the further untreated well, two sites each
    sums = controls.sums_from_json(stored["control_pixels"])
    assert {key: group.tolist() for key, group in sums.items()} == {
        key: group.tolist() for key, group in statistics.sums.items()
    }
    assert controls.choose_statistics(statistics.plate, sums).to_json() == stored


def test_no_cancellation_where_float64_sums_fail():
    """10^13 pixels of 255, one of 254: float64 arithmetic gives a std of 0 or worse."""
    n = 10**13
    mean, std = controls.mean_and_std(np.array([[n], [255 * n - 1], [255**2 * n - 509]]))
    variance = Fraction(255**2 * n - 509, n) - Fraction(255 * n - 1, n) ** 2
    np.testing.assert_allclose(std, math.sqrt(variance), rtol=1e-7)
    assert np.float32(mean) == np.float32(255)
    naive = (255**2 * n - 509) / n - ((255 * n - 1) / n) ** 2
    assert not math.isclose(naive, float(variance), rel_tol=1e-3)

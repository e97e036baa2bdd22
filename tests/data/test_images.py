"""Images in memory, their table of sites, the vocabulary, and the statistics of controls."""

import json
import pickle
import zlib

import numpy as np
import pytest

from rxrx1_jax.data.images import (
    DatasetError,
    InMemory,
    Vocabulary,
    control_statistics,
    group_statistics,
    structured,
)  # fmt: skip

PLANES = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 6), np.uint8)
NAMES = {"experiment": ["B-2", "A-1", "B-2", "A-1", "C-1"], "cell_type": ["B", "A", "B", "A", "C"]}


def test_images_without_metadata():
    images = InMemory(PLANES)
    assert len(images) == 5 and images.image_shape == (3, 4, 6)
    assert images.sites["site_id"].tolist() == ["0", "1", "2", "3", "4"]
    assert set(images.sites["sirna_id"]) == {-1}
    for row, image in enumerate(PLANES):
        read = images[row]
        assert np.array_equal(read, image) and read.flags.writeable
        assert not np.shares_memory(read, PLANES)
        assert images.sites["adler32"][row] == zlib.adler32(image.tobytes())
    wide = PLANES.astype(np.int64)
    assert np.array_equal(images.sites["pixel_sum"], wide.sum((2, 3)))
    assert np.array_equal(images.sites["pixel_sum2"], (wide**2).sum((2, 3)))
    # No controls: one plate, all its sites.
    assert np.allclose(images.sites["control_mean"], wide.mean((0, 2, 3)), rtol=1e-6)
    assert np.allclose(images.sites["control_std"], wide.std((0, 2, 3)), rtol=1e-6)


def test_images_with_metadata_and_statistics():
    sites = {**NAMES, "plate": np.array([1, 2, 3, 4, 1]), "site_id": list("vwxyz")}
    images = InMemory(PLANES, sites, np.ones(3), np.full((5, 3), 2), {"name": "mine"})
    assert images.sites["experiment"].tolist() == NAMES["experiment"]
    assert images.sites["well_id"].tolist() == list("vwxyz")
    assert images.sites["control_mean"].tolist() == [[1] * 3] * 5
    assert images.sites["control_std"].dtype == np.float32
    assert images.about["name"] == "mine"
    again = InMemory(PLANES, images.sites[["site_id", "plate", "experiment"]])
    assert np.array_equal(again.sites["plate"], sites["plate"])
    copy = pickle.loads(pickle.dumps(images))
    assert np.array_equal(copy[3], PLANES[3]) and np.array_equal(copy.sites, images.sites)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"planes": PLANES[0]}, "planes"),
        ({"planes": PLANES.astype(np.float32)}, "float32"),
        ({"planes": [1]}, "list"),
        ({"planes": PLANES[:0]}, "planes"),
        ({"sites": {"experimnt": ["A"] * 5}}, "experimnt"),
        ({"sites": {"plate": [1, 2]}}, "plate"),
        ({"sites": {"plate": [1.5] * 5}}, "float64"),
        ({"sites": {"site_id": ["a"] * 5}}, "site_id"),
        ({"control_mean": np.ones(3)}, "control_std"),
        ({"control_mean": np.ones(3), "control_std": np.ones(4)}, "control_std"),
        ({"control_mean": np.full(3, np.nan), "control_std": np.ones(3)}, "control_mean"),
    ],
)
def test_wrong_arrays(arguments, word):
    with pytest.raises(DatasetError, match=word) as error:
        InMemory(**{"planes": PLANES, **arguments})
    assert "\n" not in str(error.value)


def test_vocabulary():
    sites = InMemory(PLANES, NAMES).sites
    vocabulary = Vocabulary.of(sites, [7, 3, 3])
    assert vocabulary.cell_types == ("A", "B", "C")
    assert vocabulary.codes("experiment", ["C-1", "none", "A-1"]).tolist() == [2, -1, 0]
    assert vocabulary.codes("experiment", sites["experiment"]).dtype == np.int32
    assert vocabulary.codes("sirna_id", np.array([[3, 7], [0, 9]])).tolist() == [[0, 1], [-1, -1]]
    assert vocabulary.codes("cell_type", []).shape == (0,)
    assert Vocabulary((), (), np.zeros(0, np.int32)).codes("experiment", ["A"]).tolist() == [-1]
    again = Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json())))
    assert again.experiments == vocabulary.experiments and again.classes.dtype == np.int32
    assert again.classes.tolist() == [3, 7]


def _screen(planes, well_types, plates, experiments="A-1"):
    sites = {"well_type": well_types, "plate": plates, "experiment": [experiments] * len(planes)}
    return InMemory(planes, sites)


def test_statistics_fall_back_where_controls_lack_or_are_constant():
    planes = np.random.default_rng(1).integers(0, 256, (6, 2, 3, 3), np.uint8)
    planes[3, 0] = 5  # constant: plate 2 has no usable controls
    types = ["negative_control", "treatment", "positive_control", "negative_control"]
    images = _screen(planes, [*types, "treatment", "treatment"], [1, 1, 1, 2, 2, 3])
    wide = planes.astype(np.float64)
    controls = wide[[0, 2]], wide[[0, 2, 3]], wide[[0, 2, 3]]  # of plates 1, 2 and 3
    for row, plate in ((0, 0), (1, 0), (3, 1), (4, 1), (5, 2)):
        pixels = controls[plate]
        assert np.allclose(images.sites["control_mean"][row], pixels.mean((0, 2, 3)))
        assert np.allclose(images.sites["control_std"][row], pixels.std((0, 2, 3)))
    mean, std = control_statistics(images.sites, 9, "experiment")
    assert np.allclose(mean, wide[[0, 2, 3]].mean((0, 2, 3)))
    assert np.allclose(std, wide[[0, 2, 3]].std((0, 2, 3)))

    planes[:, 1] = np.where(np.isin(np.arange(6), (0, 2, 3))[:, None, None], 7, planes[:, 1])
    images = _screen(planes, [*types, "treatment", "treatment"], [1, 1, 1, 2, 2, 3])
    wide = planes.astype(np.float64)
    for row, rows in ((0, [0, 1, 2]), (3, [3, 4]), (5, [5])):  # all sites of the plate
        assert np.allclose(images.sites["control_std"][row], wide[rows].std((0, 2, 3)))
    assert np.allclose(control_statistics(images.sites, 9, "experiment")[1], wide.std((0, 2, 3)))

    planes[:, 1] = 7  # everywhere: the controls of the plate serve, with std 0
    images = _screen(planes, [*types, "treatment", "treatment"], [1, 1, 1, 2, 2, 3])
    assert images.sites["control_std"][0, 1] == 0
    assert np.allclose(images.sites["control_mean"][0], planes[[0, 2]].mean((0, 2, 3)))
    assert np.allclose(images.sites["control_mean"][5], planes[[0, 2, 3]].mean((0, 2, 3)))


def test_sums_beyond_64_bits_are_exact():
    """n * S2 of a plate of 512 px sites is 10**20."""
    pixels, n = 512 * 512, 400
    columns = {"pixel_sum": [[254 * pixels]] * n, "pixel_sum2": [[(254**2 + 1) * pixels]] * n}
    sites = structured(columns)
    mean, std = group_statistics(sites, np.zeros(n, np.int64), 2, pixels)
    assert mean[0, 0] == 254 and std[0, 0] == 1  # a value and its square, one apart
    assert np.isnan(mean[1, 0]) and np.isnan(std[1, 0])

"""Augmentations against NumPy and SciPy, with the numbers that each key draws."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy import ndimage, stats

from rxrx1_jax.config import FIELDS
from rxrx1_jax.data.augmentations import (
    channel_dropout,
    cutmix,
    gain_offset_jitter,
    mixup,
    scale_crop,
)
from rxrx1_jax.data.images import Vocabulary
from rxrx1_jax.data.info import Info

N, HEIGHT, WIDTH, CHANNELS = 32, 24, 20, 6
METHODS = {  # so that each draw matters
    "cutmix": cutmix(alpha=0.7, probability=0.8),
    "mixup": mixup(alpha=0.4),
    "gain_offset_jitter": gain_offset_jitter(gain=0.3, offset=0.2),
    "channel_dropout": channel_dropout(probability=0.6),
    "scale_crop": scale_crop(low=0.4, high=2.5),
}
INFO = Info(Vocabulary((), (), np.arange(3)), train=True)
MIXING = ("cutmix", "mixup")


def row_keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def images(dtype=jnp.float32):
    image = np.random.default_rng(0).normal(size=(N, HEIGHT, WIDTH, CHANNELS))
    return jnp.asarray(image, jnp.bfloat16).astype(dtype)  # equal in either dtype


def batch_of(image):
    label = jnp.arange(len(image), dtype=jnp.int32) * 3
    return {"image": image, "label": label, "mask": jnp.ones(len(image), jnp.bool_)}


def partners_by_hand(keys, mask):
    """Count on from the row itself, over the rows with mask set, as far as its key says."""
    valid = np.flatnonzero(mask)
    steps = [jax.random.randint(jax.random.fold_in(key, 0), (), 1, len(valid)) for key in keys]
    return np.array([valid[(np.flatnonzero(valid == row)[0] + int(step)) % len(valid)]
                     for row, step in enumerate(steps) if mask[row]])  # fmt: skip


def everything(keys, *batches):
    return [
        {name: method(keys, batch, INFO) for name, method in METHODS.items()} for batch in batches
    ]


all_methods = jax.jit(everything)


@pytest.fixture(scope="module")
def results():
    """Of all methods, on the images in float32 and in bfloat16."""
    full, half = all_methods(row_keys(N), batch_of(images()), batch_of(images(jnp.bfloat16)))
    return {"float32": full, "bfloat16": half}


def test_all_are_here():
    assert sorted(FIELDS["data.augmentation"].valid) == sorted(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_fields_and_dtypes(results, name):
    for dtype, methods in results.items():
        result, before = methods[name], batch_of(images())
        assert result["image"].dtype == dtype and result["image"].shape == before["image"].shape
        added = {"other_label", "share"} if name in MIXING else set()
        assert result.keys() == before.keys() | added
        for field in before.keys() - {"image"}:
            np.testing.assert_array_equal(result[field], before[field])
        if added:
            assert (result["other_label"].dtype, result["share"].dtype) == ("int32", "float32")
            partner = partners_by_hand(row_keys(N), np.ones(N, bool))
            np.testing.assert_array_equal(result["other_label"], before["label"][partner])


@pytest.mark.parametrize("name", METHODS)
def test_bfloat16_is_rounded_last(results, name):
    full, half = (
        np.asarray(results[dtype][name]["image"], np.float64) for dtype in ("float32", "bfloat16")
    )
    # One rounding to 8 binary digits; before it, float32 products may be fused or not.
    unit = 2.0 ** (np.floor(np.log2(np.abs(full) + 1e-30)) - 7)
    assert (np.abs(half - full) <= unit / 2 + 1e-6).all()


def test_cutmix_boxes(results):
    """Box by box with plain integers, from what the keys draw."""
    image = np.asarray(images())
    result = results["float32"]["cutmix"]
    whole, kept, partner = 0, [], partners_by_hand(row_keys(N), np.ones(N, bool))
    for k, key in enumerate(row_keys(N)):
        size_key, centre_key, whether_key = jax.random.split(key, 3)
        expected = image[k].copy()
        if jax.random.bernoulli(whether_key, 0.8):
            side = np.sqrt(1 - float(jax.random.beta(size_key, 0.7, 0.7)))
            rows, columns = (
                slice(max(centre - int(side * n) // 2, 0), min(centre + int(side * n) // 2, n))
                for centre, n in zip(
                    jax.random.randint(centre_key, (2,), 0, jnp.array([HEIGHT, WIDTH])).tolist(),
                    (HEIGHT, WIDTH), strict=True,
                )
            )  # fmt: skip
            expected[rows, columns] = image[partner[k], rows, columns]
        else:
            whole += 1
        np.testing.assert_array_equal(result["image"][k], expected)
        kept.append((expected == image[k]).all(-1).mean())  # pixels of two rows are never equal
    assert 0 < whole < N / 2 and len(set(kept)) > N / 2
    np.testing.assert_allclose(result["share"], kept, rtol=0, atol=1e-7)


def test_cutmix_is_distributed_as_the_authors_is():
    """rand_bbox of github.com/clovaai/CutMix-PyTorch, with NumPy's generator."""
    n, side = 4096, 64
    augment = jax.jit(partial(cutmix(), info=INFO))
    rows = jnp.arange(n, dtype=jnp.float32)[:, None, None, None]
    result = augment(row_keys(n), batch_of(jnp.broadcast_to(rows, (n, side, side, 1))))
    rng = np.random.default_rng(0)
    kept, left = [], []
    for lam in rng.beta(1, 1, n):
        cut = int(side * np.sqrt(1 - lam))
        low, high = (
            np.clip(c, 0, side) for c in (lambda c: (c - cut // 2, c + cut // 2))(
                rng.integers(0, side, 2))
        )  # fmt: skip
        kept.append(1 - np.prod(high - low) / side**2)
        left.append(low[1] if np.prod(high - low) else -1)
    assert stats.ks_2samp(result["share"], kept).pvalue > 0.01
    foreign = np.asarray(result["image"])[..., 0] != np.asarray(rows)[..., 0]
    np.testing.assert_allclose(result["share"], 1 - foreign.mean((1, 2)), atol=1e-7)
    columns = foreign.any(1)
    measured = np.where(columns.any(1), columns.argmax(1), -1)
    assert stats.ks_2samp(measured, left).pvalue > 0.01


def test_mixup(results):
    image = np.asarray(images(), np.float64)
    result = results["float32"]["mixup"]
    share = [float(jax.random.beta(key, 0.4, 0.4)) for key in row_keys(N)]
    np.testing.assert_allclose(result["share"], share, rtol=1e-5)
    weight = np.asarray(result["share"], np.float64)[:, None, None, None]
    partner = partners_by_hand(row_keys(N), np.ones(N, bool))
    expected = weight * image + (1 - weight) * image[partner]
    np.testing.assert_allclose(result["image"], expected, rtol=0, atol=2e-6)


def test_gain_and_offset(results):
    image = np.asarray(images(), np.float64)
    normal = np.array([jax.random.normal(key, (2, CHANNELS)) for key in row_keys(N)], np.float64)
    gain, offset = np.exp(0.3 * normal[:, 0]), 0.2 * normal[:, 1]
    expected = image * gain[:, None, None] + offset[:, None, None]
    result = results["float32"]["gain_offset_jitter"]["image"]
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


def zoom_of(key, low, high):
    """Factor and fixed point (in pixels) that a key draws."""
    scale_key, place_key = jax.random.split(key)
    uniform = float(jax.random.uniform(scale_key))
    place = np.asarray(jax.random.uniform(place_key, (2,)), np.float64)
    return low * (high / low) ** uniform, place * (HEIGHT, WIDTH) - 0.5


def test_scale_crop_against_scipy(results):
    image, result = np.asarray(images()), results["float32"]["scale_crop"]["image"]
    factors = []
    for k, key in enumerate(row_keys(N)):
        factor, place = zoom_of(key, 0.4, 2.5)
        grid = [
            centre + (np.arange(n) - centre) / factor
            for centre, n in zip(place, (HEIGHT, WIDTH), strict=True)
        ]
        for channel in range(CHANNELS):
            expected = ndimage.map_coordinates(
                image[k, ..., channel], np.meshgrid(*grid, indexing="ij"), order=1, mode="reflect"
            )
            np.testing.assert_allclose(result[k, ..., channel], expected, rtol=0, atol=1e-4)
        factors.append(factor)
    assert min(factors) < 0.5 and max(factors) > 2


def test_scale_crop_of_one_is_the_identity():
    augment = jax.jit(partial(scale_crop(low=1, high=1), info=INFO))
    np.testing.assert_array_equal(augment(row_keys(N), batch_of(images()))["image"], images())


@pytest.mark.devices
def test_eight_devices_give_the_same_bits(results):
    assert jax.device_count() == 8
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("batch"))
    (sharded,) = all_methods(*jax.device_put((row_keys(N), batch_of(images())), sharding))
    assert sharded["scale_crop"]["image"].sharding.is_equivalent_to(sharding, 4)
    jax.tree.map(np.testing.assert_array_equal, sharded, results["float32"])


@pytest.mark.parametrize("name", MIXING)
def test_partners_are_other_rows_that_count_each_as_likely(name):
    """Nine batches of 32 rows, 8 of them without mask: context, or padding."""
    mask, drawn = np.arange(N) % 4 != 1, []
    batch = batch_of(images()) | {"mask": jnp.asarray(mask)}
    for seed in range(9):
        keys = row_keys(N, seed)
        other = np.asarray(METHODS[name](keys, batch, INFO)["other_label"]) // 3
        np.testing.assert_array_equal(other[mask], partners_by_hand(keys, mask))
        assert mask[other].all() and (other != np.arange(N))[mask].all()
        drawn.append((other - np.arange(N))[mask])
    counts = np.bincount(np.concatenate(drawn) % N, minlength=N)[1:]
    assert (counts < 30).all()  # of 216; the next row had all of them


def test_a_row_alone_is_mixed_with_itself():
    one = jax.tree.map(lambda array: array[:1], batch_of(images()))
    result = METHODS["mixup"](row_keys(1), one, INFO)
    assert result["other_label"] == one["label"]
    np.testing.assert_allclose(result["image"], one["image"], atol=1e-6)


def test_two_that_mix_are_refused():
    for first in MIXING:
        batch = jax.eval_shape(partial(METHODS[first], info=INFO), row_keys(N), batch_of(images()))
        for second in MIXING:
            with pytest.raises(ValueError, match="cutmix, mixup"):
                jax.eval_shape(partial(METHODS[second], info=INFO), row_keys(N), batch)


@pytest.mark.parametrize(
    "factory, name, value",
    [
        (cutmix, "alpha", 0), (cutmix, "probability", 1.1), (mixup, "alpha", -0.2),
        (gain_offset_jitter, "gain", -1), (gain_offset_jitter, "offset", -1),
        (scale_crop, "low", 0), (scale_crop, "high", 0.5),
    ],
)  # fmt: skip
def test_arguments_are_checked(factory, name, value):
    with pytest.raises(ValueError, match=f"{name} {value}.*expected"):
        factory(**{name: value})

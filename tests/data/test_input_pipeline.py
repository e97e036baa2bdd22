"""Batches against a plain reading of the PNG files with Pillow and NumPy."""

import itertools
import shutil
import threading
from collections import Counter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tiny_release import read_pngs

from rxrx1_jax.data import input_pipeline, reuse
from rxrx1_jax.data.input_pipeline import (
    NORMALISATIONS,
    eval_batches,
    host_train_batches,
    pixel_statistics,
    train_batches,
)
from rxrx1_jax.data.records import DatasetError, Records
from rxrx1_jax.data.splits import Split, make_split

pytest_plugins = ["dataset_fixture"]
SIZE, CHANNELS = 16, 6


class Data(NamedTuple):
    records: Records
    split: Split
    pngs: dict[str, np.ndarray]  # site_id -> float64 [6, H, W]
    rows: dict[str, dict[str, str]]  # metadata.csv by site_id


@pytest.fixture(scope="module")
def data(tiny) -> Data:
    records = Records(tiny.dataset)
    pngs = {name: read_pngs(tiny.release, row).astype(float) for name, row in tiny.rows.items()}
    return Data(records, make_split(records.sites, "official"), pngs, tiny.rows)


def take(iterator, n):
    return [jax.tree.map(np.asarray, batch) for batch in itertools.islice(iterator, n)]


def train(data, n, batch_size=4, seed=0, normalisation="plate_control", **settings):
    return take(
        train_batches(data.records, data.split, batch_size=batch_size, seed=seed,
                      normalisation=normalisation, **settings), n,
    )  # fmt: skip


def evaluate(data, rows, batch_size=8, normalisation="plate_control", **settings):
    return take(
        eval_batches(data.records, rows, data.split, batch_size=batch_size,
                     normalisation=normalisation, **settings), None,
    )  # fmt: skip


def control_pixels(data, experiments, plate=None, end="_control"):
    """All pixels of the control wells, [6, n]; of the experiments if the plate has none."""
    chosen = [
        data.pngs[name].reshape(CHANNELS, -1)
        for name, row in data.rows.items()
        if row["well_type"].endswith(end) and row["experiment"] in experiments
        and plate in (None, row["plate"])
    ]  # fmt: skip
    return np.concatenate(chosen, 1) if chosen else control_pixels(data, experiments, end=end)


def expected_image(data, index, normalisation):
    """float64 [H, W, 6] of a record, normalised with figures from the PNGs alone."""
    name = data.records.sites["site_id"][index]
    row, image = data.rows[name], data.pngs[name]
    train_experiments = {"HUVEC-01", "U2OS-01"}  # those of metadata.csv with dataset = train
    match normalisation:
        case "plate_control":
            population = control_pixels(data, {row["experiment"]}, row["plate"])
        case "experiment_control":
            population = control_pixels(data, {row["experiment"]})
        case "global_control":
            population = control_pixels(data, train_experiments)
        case "plate_negative_control":
            population = control_pixels(data, {row["experiment"]}, row["plate"], "negative_control")
        case "plate_control_robust":
            population = control_pixels(data, {row["experiment"]}, row["plate"])
            median = np.median(population, 1)[:, None, None]
            deviation = np.median(np.abs(population - median[:, :, 0]), 1)[:, None, None]
            return np.moveaxis((image - median) / (1.4826 * deviation), 0, -1)
        case "site":
            population = image.reshape(CHANNELS, -1)
        case "none":
            return np.moveaxis(image, 0, -1) / 255
    mean, std = population.mean(1), population.std(1)
    return np.moveaxis((image - mean[:, None, None]) / std[:, None, None], 0, -1)


def orientations(image):
    """The 8 by rotation and mirroring (the code transposes and mirrors)."""
    return [np.rot90(m, k) for m in (image, image[:, ::-1]) for k in range(4)]


def which(image, candidates):
    """Index of the one candidate that is equal."""
    found = [
        k for k, candidate in enumerate(candidates)
        if candidate.shape == image.shape and np.allclose(image, candidate, rtol=1e-4, atol=1e-4)
    ]  # fmt: skip
    assert len(found) == 1, found
    return found[0]


def assert_same(one, two, **tolerance):
    assert one.keys() == two.keys()
    for name in one:
        assert one[name].dtype == two[name].dtype
        if tolerance and name == "image":
            np.testing.assert_allclose(one[name], two[name], **tolerance)
        else:
            np.testing.assert_array_equal(one[name], two[name])


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_evaluation_values_order_and_padding(data, normalisation):
    rows = np.random.default_rng(0).permutation(len(data.records))[:21]  # any site, controls too
    batches = evaluate(data, rows, 8, normalisation)
    assert [batch["image"].shape for batch in batches] == [(8, SIZE, SIZE, CHANNELS)] * 3
    joined = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
    assert joined["mask"].tolist() == [True] * 21 + [False] * 3
    assert joined["site_index"].tolist() == rows.tolist() + [-1] * 3
    for k, index in enumerate(rows):
        np.testing.assert_allclose(
            joined["image"][k], expected_image(data, index, normalisation), rtol=1e-4, atol=1e-4
        )
    assert np.isfinite(joined["image"]).all()


def test_fields_of_a_batch(data):
    rows = np.arange(len(data.records))
    batches = evaluate(data, rows, 61)
    (batch,) = batches
    experiments, cell_types = ["HUVEC-01", "HUVEC-02", "U2OS-01"], ["HUVEC", "U2OS"]
    labels = [0, 1, 1107]  # the siRNAs of the tiny release
    for k, name in enumerate(data.records.sites["site_id"].tolist()):
        row = data.rows[name]
        sirna = int(row["sirna_id"])
        assert batch["label"][k] == (labels.index(sirna) if sirna in labels else -1)
        assert experiments[batch["experiment"][k]] == row["experiment"]
        assert cell_types[batch["cell_type"][k]] == row["cell_type"]
        assert batch["plate"][k] == int(row["plate"])
    integers = ("label", "experiment", "plate", "cell_type", "site_index")
    assert {batch[name].dtype for name in integers} == {np.dtype("int32")}
    assert (batch["image"].dtype, batch["mask"].dtype) == (np.float32, np.bool_)
    assert set(batch) == {"image", "mask", *integers}


def test_every_training_site_once_an_epoch(data):
    count = len(data.split.train)
    batches = train(data, 3 * count, batch_size=4)  # 12 epochs; batches straddle them
    index = np.concatenate([batch["site_index"] for batch in batches]).reshape(12, count)
    for epoch in index:
        assert sorted(epoch.tolist()) == data.split.train.tolist()
    assert len({tuple(epoch) for epoch in index.tolist()}) == 12
    assert all(batch["mask"].all() for batch in batches)
    # Another seed is another order in every epoch, not the same ones a little later.
    other = train(data, 3 * count, batch_size=4, seed=1)
    other_index = np.concatenate([b["site_index"] for b in other]).reshape(12, count)
    assert not {tuple(e) for e in index.tolist()} & {tuple(e) for e in other_index.tolist()}


def test_all_eight_orientations_and_no_other(data):
    batches = train(data, 80, batch_size=8)
    expected = {i: orientations(expected_image(data, i, "plate_control")) for i in data.split.train}
    seen, per_site = Counter(), {}
    for batch in batches:
        for image, index in zip(batch["image"], batch["site_index"].tolist(), strict=True):
            k = which(image, expected[index])
            seen[k] += 1
            per_site.setdefault(index, set()).add(k)
    assert len(seen) == 8 and min(seen.values()) > 45 and max(seen.values()) < 120  # 80 +- 8.4
    assert all(len(kinds) > 5 for kinds in per_site.values())  # 30 draws each: not fixed per site


def test_without_augmentation_images_are_as_stored(data):
    for batch in train(data, 6, augment=False):
        for image, index in zip(batch["image"], batch["site_index"], strict=True):
            np.testing.assert_allclose(
                image, expected_image(data, index, "plate_control"), rtol=1e-4, atol=1e-4
            )


def test_random_crop_is_a_window_of_the_image(data):
    crop, offsets = 13, SIZE - 13 + 1
    corners = Counter()
    for batch in train(data, 60, crop=crop):
        for image, index in zip(batch["image"], batch["site_index"], strict=True):
            whole = expected_image(data, index, "plate_control")
            windows = [
                turned
                for top, left in itertools.product(range(offsets), repeat=2)
                for turned in orientations(whole[top : top + crop, left : left + crop])
            ]
            corners[which(image, windows) // 8] += 1
    assert len(corners) == offsets**2 and max(corners.values()) < 40  # 240 draws, 15 each


def test_evaluation_takes_the_centre(data):
    (batch,) = evaluate(data, data.split.test[:8], 8, crop=10)
    for image, index in zip(batch["image"], batch["site_index"], strict=True):
        np.testing.assert_allclose(
            image, expected_image(data, index, "plate_control")[3:13, 3:13], rtol=1e-4, atol=1e-4
        )
    whole = evaluate(data, data.split.test[:8], 8, crop=SIZE)[0]
    assert_same(whole, evaluate(data, data.split.test[:8], 8)[0])


@pytest.mark.parametrize("start_step", [1, 7, 50])
def test_resumed_batches_are_bit_identical(data, start_step):
    whole = train(data, start_step + 4, crop=13)
    for one, two in zip(
        whole[start_step:], train(data, 4, crop=13, start_step=start_step), strict=True
    ):
        assert_same(one, two)


@pytest.mark.parametrize("threads", [1, 3, 16])
def test_threads_and_prefetch_change_nothing(data, threads):
    reference = train(data, 8, threads=8)
    for one, two in zip(reference, train(data, 8, threads=threads, prefetch=1), strict=True):
        assert_same(one, two)


def by_site(batches):
    """{(site_index, image bytes)} with multiplicity, whatever the order."""
    return Counter(
        (int(index), image.tobytes())
        for batch in batches
        for image, index, mask in zip(
            batch["image"], batch["site_index"], batch["mask"], strict=True
        )
        if mask
    )


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_the_same_global_batches(data, hosts):
    whole = train(data, 12, batch_size=8)
    parts = [
        train(data, 9, batch_size=8, start_step=3, host=h, hosts=hosts) for h in range(hosts)
    ]  # fmt: skip
    for step, batch in enumerate(whole[3:]):
        assert all(len(part[step]["label"]) == 8 // hosts for part in parts)
        assert by_site([part[step] for part in parts]) == by_site([batch])
        rows = np.concatenate([part[step]["site_index"] for part in parts])
        np.testing.assert_array_equal(rows, batch["site_index"])
    rows = data.split.test
    parts = [evaluate(data, rows, 8, host=h, hosts=hosts) for h in range(hosts)]
    assert len({len(part) for part in parts}) == 1  # or a host would wait for ever
    assert by_site(itertools.chain(*parts)) == by_site(evaluate(data, rows, 8))
    assert sum(by_site(itertools.chain(*parts)).values()) == len(rows)


@pytest.mark.devices
def test_sharded_over_devices(data):
    devices = jax.device_count()
    mesh = jax.make_mesh((devices,), ("batch",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("batch"))
    settings = dict(batch_size=2 * devices, seed=3, normalisation="plate_control", crop=12)
    sharded = train_batches(data.records, data.split, sharding=sharding, **settings)
    single = train_batches(data.records, data.split, **settings)
    first = next(sharded)
    for name, array in first.items():
        assert array.sharding.is_equivalent_to(sharding, array.ndim), name
        assert array.addressable_shards[0].data.shape[0] == 2
    one, two = (jax.tree.map(np.asarray, batch) for batch in (first, next(single)))
    assert_same(one, two, rtol=1e-6, atol=1e-6)
    rows = data.split.test
    sharded = evaluate(data, rows, 2 * devices, sharding=sharding)
    for one, two in zip(sharded, evaluate(data, rows, 2 * devices), strict=True):
        assert_same(one, two, rtol=1e-6, atol=1e-6)


def test_no_implicit_transfer(data):
    with jax.transfer_guard("disallow"):
        iterator = train_batches(data.records, data.split, batch_size=4, seed=0,
                                 normalisation="site")  # fmt: skip
        next(iterator)["image"].block_until_ready()


def test_batches_kept_are_never_overwritten(data):
    """On the CPU a device array may alias the host's: a reused buffer would show here."""
    kept = list(itertools.islice(
        train_batches(data.records, data.split, batch_size=4, seed=0, normalisation="none",
                      augment=False), 20,
    ))  # fmt: skip
    for batch in kept:
        for image, index in zip(np.asarray(batch["image"]), batch["site_index"], strict=True):
            np.testing.assert_allclose(image, expected_image(data, int(index), "none"), atol=1e-6)


def long_use(image):
    """A result that takes longer to compute than a batch takes to be made."""
    return jax.jit(lambda x: jax.lax.fori_loop(0, 2000, lambda _, y: jnp.sin(y) + x, x))(image)


VIEWS = {
    "the array": lambda image: image,
    "NumPy": np.asarray,
    "a part in NumPy": lambda image: np.asarray(image)[1:],
    "DLPack": np.from_dlpack,
    "its shard": lambda image: image.addressable_data(0),
    "put in its place": lambda image: jax.device_put(image, image.sharding),
    "in another array": lambda image: jax.make_array_from_single_device_arrays(
        (2 * len(image), *image.shape[1:]),
        NamedSharding(jax.make_mesh((2,), ("x",), devices=jax.devices()[:2]), PartitionSpec("x")),
        [image, jax.device_put(image, jax.devices()[1])],
    ),
    "under way": long_use,
}


@pytest.mark.devices
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("sharded", [False, True])
def test_memory_is_reused_once_nobody_sees_it(data, view, sharded, monkeypatch):
    new, make = [], reuse._zeros
    monkeypatch.setattr(reuse, "_zeros", lambda *of: (new.append(of), make(*of))[1])
    expected = [batch["image"] for batch in train(data, 12, normalisation="none")]
    assert len(new) > 3
    new.clear()
    mesh = jax.make_mesh(
        (1,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1]
    )
    batches = train_batches(
        data.records, data.split, batch_size=4, seed=0, normalisation="none", end_step=12,
        sharding=NamedSharding(mesh, PartitionSpec("batch")) if sharded else None,
    )  # fmt: skip
    views, equal = {}, []
    for step, batch in enumerate(batches):
        equal.append(jnp.array_equal(batch["image"], expected[step]))
        if step in (1, 4):
            views[step] = VIEWS[view](batch["image"])
    assert all(equal) and len(equal) == 12
    for step, seen in views.items():
        np.testing.assert_array_equal(seen, VIEWS[view](jnp.array(expected[step])))
    # 3: the consumer's, the next and the one being made. Views keep theirs; an array of several
    # devices, of which it is not known where it lies, keeps all.
    most = {"under way": 3, "in another array": 12}.get(view, 5)
    assert 3 <= len(new) <= most


def test_bfloat16_is_rounded_last(data):
    (full,), (half,) = train(data, 1), train(data, 1, dtype=jnp.bfloat16)
    assert half["image"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(half["image"], full["image"].astype(jnp.bfloat16))


def test_constant_channels_stay_finite(tiny):
    records = Records(tiny.dataset)
    records.sites["control_std"] = 0
    data = Data(records, make_split(records.sites, "official"), {}, tiny.rows)
    assert np.isfinite(train(data, 1)[0]["image"]).all()
    _, std = pixel_statistics(records, np.arange(4), "plate_control")
    np.testing.assert_allclose(std, 12**-0.5, rtol=1e-6)


def test_statistics_shapes_and_exactness(data):
    rows = data.split.test
    for kind in NORMALISATIONS:
        statistics = pixel_statistics(data.records, rows, kind)
        if kind == "site":
            assert statistics is None
            continue
        assert [(s.shape, s.dtype) for s in statistics] == [((len(rows), 6), np.float32)] * 2
    mean, std = pixel_statistics(data.records, rows, "experiment_control")
    pixels = control_pixels(data, {"HUVEC-02"})
    np.testing.assert_allclose(mean, np.tile(pixels.mean(1), (len(rows), 1)), rtol=1e-6)
    np.testing.assert_allclose(std, np.tile(pixels.std(1), (len(rows), 1)), rtol=1e-6)


def test_errors(data):
    for settings, message in (
        (dict(batch_size=0), "batch_size 0: expected a positive multiple"),
        (dict(batch_size=5, host=0, hosts=2), "batch_size 5: expected .* of the 2 hosts"),
        (dict(crop=17), "crop 17: expected 0 .none. to 16"),
        (dict(crop=-1), "crop -1"),
        (dict(normalisation="plate"), "normalisation 'plate': expected one of plate_control, "),
        (dict(host=2, hosts=2), "host 2 of 2: expected 0 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            train(data, 1, **settings)
        with pytest.raises(ValueError, match=message):
            evaluate(data, data.split.test, **settings)
    mesh = jax.make_mesh((jax.device_count(),), ("batch",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("batch"))
    if jax.device_count() > 1:
        with pytest.raises(ValueError, match=f"of the {jax.device_count()} devices"):
            train(data, 1, batch_size=jax.device_count() + 1, sharding=sharding)
    with pytest.raises(ValueError, match="start_step -1"):
        train(data, 1, start_step=-1)
    with pytest.raises(ValueError, match="no sites to read"):
        evaluate(data, np.array([], np.int64))
    with pytest.raises(ValueError, match="rows 3 to 61: expected record indices 0 to 60"):
        evaluate(data, np.array([3, 61]))


def test_settings_are_checked_before_the_first_batch_is_asked_for(data):
    with pytest.raises(ValueError, match="crop"):
        train_batches(data.records, data.split, batch_size=4, seed=0, normalisation="site", crop=99)


def test_experiment_without_controls_in_the_metadata(tiny):
    records = Records(tiny.dataset)
    del records.metadata["control_pixels"]["U2OS-01"]
    split = make_split(records.sites, "official")
    for kind in ("experiment_control", "global_control"):
        with pytest.raises(DatasetError, match="metadata.json: no control pixels of .*U2OS-01"):
            pixel_statistics(records, split.train, kind)


def test_damaged_image_reaches_the_consumer(tiny, tmp_path):
    path = tmp_path / "1.0.0"
    shutil.copytree(tiny.dataset, path)
    records = Records(path)
    for file in path.glob("*.tfrecord*"):
        with open(file, "r+b") as opened:
            opened.truncate(50)
    split = make_split(records.sites, "official")
    with pytest.raises(DatasetError, match="damaged"):
        next(train_batches(records, split, batch_size=4, seed=0, normalisation="none"))


def test_orientations_need_a_square(tiny, monkeypatch):
    records = Records(tiny.dataset)
    monkeypatch.setattr(records, "image_shape", (6, 16, 12))
    split = make_split(records.sites, "official")
    with pytest.raises(ValueError, match="16x12.*square"):
        train_batches(records, split, batch_size=4, seed=0, normalisation="none")


def test_end_step_ends_the_order_and_the_reading(data, monkeypatch):
    endless = train(data, 7)
    read = Counter()
    fetch = Records.__getitem__
    monkeypatch.setattr(
        Records, "__getitem__", lambda self, i: (read.update([int(i)]), fetch(self, i))[1]
    )
    ended = take(
        train_batches(data.records, data.split, batch_size=4, seed=0, start_step=2, end_step=7,
                      normalisation="plate_control", prefetch=3), None,
    )  # fmt: skip
    assert len(ended) == 5
    for one, two in zip(endless[2:], ended, strict=True):
        assert_same(one, two)
    assert read == Counter(int(i) for batch in ended for i in batch["site_index"])
    assert train(data, 1, start_step=3, end_step=3) == []
    with pytest.raises(ValueError, match="end_step 2: expected start_step 3 or more"):
        train(data, 1, start_step=3, end_step=2)


@pytest.mark.parametrize("augment", [False, True])
def test_device_half_holds_the_floats_once(augment):
    """XLA's CPU backend makes a second copy of them unless it fuses the transposition."""
    n, planes = 4, (6, 64, 64)
    one = jax.ShapeDtypeStruct((n,), jnp.int32)
    statistic = jax.ShapeDtypeStruct((n, 6), jnp.float32)
    batch = {
        "image": jax.ShapeDtypeStruct((n, *planes), jnp.uint8), "mean": statistic,
        "std": statistic, "site_index": one, "epoch": one,
    }  # fmt: skip
    prepared = input_pipeline._prepare_seeded.lower(
        batch, 0, augment, 0, jnp.dtype("float32"), None
    )
    memory = prepared.compile().memory_analysis()
    assert memory.output_size_in_bytes == 4 * n * np.prod(planes)
    assert memory.temp_size_in_bytes < memory.output_size_in_bytes / 16


def test_host_half_is_planes_that_a_device_can_take_over(data):
    batches = host_train_batches(
        data.records, data.split, batch_size=3, seed=0, normalisation="site", end_step=5
    )
    kept = list(batches)
    for batch in kept:
        assert batch["image"].ctypes.data % 64 == 0 and "mean" not in batch
        for image, index in zip(batch["image"], batch["site_index"], strict=True):
            np.testing.assert_array_equal(image, data.records[index])


def test_an_iterator_left_early_stops_reading(data):
    batches = host_train_batches(
        data.records, data.split, batch_size=4, seed=0, normalisation="none", threads=3
    )
    before = {thread for thread in threading.enumerate() if thread.name.startswith("read")}
    next(batches)
    mine = {t for t in threading.enumerate() if t.name.startswith("read")} - before
    assert 1 <= len(mine) <= 3
    batches.close()
    for thread in mine:
        thread.join(10)
        assert not thread.is_alive()


def test_memory_formula():
    batch = 16 * 6 * 512 * 512
    assert input_pipeline.memory_bytes((6, 512, 512), 16, 4) == batch * (4 + 2) + 3 * 4 * batch

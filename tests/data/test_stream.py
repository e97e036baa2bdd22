"""Batches against a plain reading of the pixels with NumPy."""

import itertools
import threading
from collections import Counter
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from screens import CHANNELS, SIZE, tiny_images
from screens import read as read

from rxrx1_jax.config import FIELDS
from rxrx1_jax.data import normalisation, reading, samplers
from rxrx1_jax.data.images import DatasetError, InMemory, Vocabulary
from rxrx1_jax.data.reading import one_pass
from rxrx1_jax.data.splits import classes_of, make_split
from rxrx1_jax.data.stream import Augmentation, Host, Stream


@pytest.fixture(scope="module")
def images() -> InMemory:
    return tiny_images()


def make(images, kind="plate_control", host=None, **changes) -> Stream:
    vocabulary = Vocabulary.of(images.sites, classes_of(images.sites, "official"))
    return Stream(
        images, make_split(images.sites, "official"), vocabulary, getattr(normalisation, kind)(),
        host=host or Host(), **changes,
    )  # fmt: skip


PROGRAMS: dict = {}  # what the device half depends on -> compiled


def batches(stream, draws, store, train):
    """The device half alone, in one program per batch; NumPy arrays."""
    key = stream.augment, stream.dtype, train
    if key not in PROGRAMS:
        PROGRAMS[key] = jax.jit(lambda store, draw: stream.batch(store, draw, 0, train))
    return [jax.tree.map(np.asarray, PROGRAMS[key](store, draw)) for draw in draws]


def train(stream, n, batch_size=4, start=0, seed=0, **host):
    stream = replace(stream, augment=replace(stream.augment, seed=seed)) if seed else stream
    stream = replace(stream, host=replace(stream.host, **host))
    rows = stream.split.train
    order = samplers.shuffled()(stream.images.sites, stream.split, batch_size, seed)
    draws = stream.draws(order, rows, start, start + n)
    return batches(stream, draws, stream.store(rows), True)


def evaluate(stream, rows, batch_size=8, **host):
    stream = replace(stream, host=replace(stream.host, **host))
    order, steps = one_pass(rows, batch_size, stream.host)
    stored = np.unique(rows)
    return batches(stream, stream.draws(order, stored, 0, steps), stream.store(stored), False)


def control_pixels(images, experiments, plate=None, end="_control"):
    """All pixels of the control wells, [6, n]; of the experiments if the plate has none."""
    sites = images.sites
    chosen = np.isin(sites["experiment"], list(experiments))
    chosen &= np.char.endswith(sites["well_type"], end)
    own = chosen & (sites["plate"] == plate)
    planes = images.planes[own if own.any() else chosen].astype(float)
    return np.moveaxis(planes, 1, 0).reshape(CHANNELS, -1)


def expected_image(images, row, kind="plate_control"):
    """float64 [H, W, 6] of a site, normalised with figures from the pixels alone."""
    site, image = images.sites[row], images.planes[row].astype(float)
    own = {site["experiment"]}
    match kind:
        case "plate_control":
            population = control_pixels(images, own, site["plate"])
        case "experiment_control":
            population = control_pixels(images, own)
        case "global_control":
            population = control_pixels(images, {"HUVEC-01", "U2OS-01"})  # dataset = train
        case "plate_negative_control":
            population = control_pixels(images, own, site["plate"], "negative_control")
        case "plate_control_robust":
            population = control_pixels(images, own, site["plate"])
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


@pytest.mark.parametrize("kind", FIELDS["data.normalisation"].valid)
def test_evaluation_values_order_and_padding(images, kind):
    rows = np.random.default_rng(0).permutation(len(images))[:21]  # any site, controls too
    found = evaluate(make(images, kind), rows)
    assert [batch["image"].shape for batch in found] == [(8, SIZE, SIZE, CHANNELS)] * 3
    joined = {name: np.concatenate([b[name] for b in found]) for name in found[0]}
    assert joined["mask"].tolist() == [True] * 21 + [False] * 3
    assert joined["site_index"].tolist() == rows.tolist() + [-1] * 3
    for k, row in enumerate(rows):
        np.testing.assert_allclose(
            joined["image"][k], expected_image(images, row, kind), rtol=1e-4, atol=1e-4
        )
    assert np.isfinite(joined["image"]).all()


def test_the_arithmetic_is_that_of_float32(images):
    """XLA multiplies by the reciprocal of the std: one rounding more than NumPy's division."""
    stream = make(images)
    rows = np.arange(8)
    (batch,) = evaluate(stream, rows)
    names = ("control_mean", "control_std")
    mean, std = (images.sites[name][rows][:, :, None, None] for name in names)
    expected = (images.planes[rows].astype(np.float32) - mean) / std
    np.testing.assert_array_max_ulp(batch["image"], np.moveaxis(expected, 1, -1), maxulp=2)


def test_fields_of_a_batch(images):
    (batch,) = evaluate(make(images), np.arange(len(images)), len(images))
    experiments, cell_types = ["HUVEC-01", "HUVEC-02", "U2OS-01"], ["HUVEC", "U2OS"]
    labels = [0, 1, 1107]  # the siRNAs of the tiny release
    for k, site in enumerate(images.sites):
        sirna = site["sirna_id"]
        assert batch["label"][k] == (labels.index(sirna) if sirna in labels else -1)
        assert experiments[batch["experiment"][k]] == site["experiment"]
        assert cell_types[batch["cell_type"][k]] == site["cell_type"]
        assert batch["plate"][k] == site["plate"]
    integers = ("label", "experiment", "plate", "cell_type", "site_index")
    assert batch["mask"].all() and {batch[name].dtype for name in integers} == {np.dtype("int32")}
    assert (batch["image"].dtype, batch["mask"].dtype) == (np.float32, np.bool_)
    assert set(batch) == {"image", "mask", *integers}


def test_codes_are_those_of_the_vocabulary(images):
    """Of another dataset a name keeps its code, and an unknown one has none."""
    own = make(images)
    experiments = ("HUVEC-02", "RPE-07", "U2OS-01")
    vocabulary = Vocabulary(("RPE", "U2OS"), experiments, np.array([1, 5], np.int32))
    (batch,) = evaluate(replace(own, vocabulary=vocabulary), np.arange(len(images)), len(images))
    codes = {"cell_type": {"U2OS": 1}, "experiment": {"HUVEC-02": 0, "U2OS-01": 2}}
    for field, known in codes.items():
        expected = [known.get(name, -1) for name in images.sites[field].tolist()]
        assert batch[field].tolist() == expected
    assert batch["label"].tolist() == [{1: 0}.get(x, -1) for x in images.sites["sirna_id"].tolist()]


def test_all_eight_orientations_and_no_other(images):
    stream = make(images)
    expected = {i: orientations(expected_image(images, i)) for i in stream.split.train}
    seen, per_site = Counter(), {}
    for batch in train(stream, 80, 8):
        for image, index in zip(batch["image"], batch["site_index"].tolist(), strict=True):
            k = which(image, expected[index])
            seen[k] += 1
            per_site.setdefault(index, set()).add(k)
    assert len(seen) == 8 and min(seen.values()) > 45 and max(seen.values()) < 120  # 80 +- 8.4
    assert all(len(kinds) > 5 for kinds in per_site.values())  # 30 draws each: not fixed per site


def test_an_orientation_belongs_to_seed_epoch_and_site(images):
    """Whatever the batch: another order of the same epochs gives the same images."""
    stream = make(images)
    rows = stream.split.train

    def drawn(batch_size, seed=0):
        order = samplers.shuffled()(images.sites, stream.split, batch_size, 0)
        own = replace(stream, augment=Augmentation(seed))
        steps = 2 * len(rows) // batch_size
        found = {}
        for step, draw in enumerate(own.draws(order, rows, 0, steps)):
            (batch,) = batches(own, [draw], own.store(rows), True)
            for k, site in enumerate(batch["site_index"].tolist()):
                found[site, int(order(step)[1][k])] = batch["image"][k].tobytes()
        return found

    one, two, other = drawn(3), drawn(7), drawn(7, seed=1)
    shared = one.keys() & two.keys()
    assert len(shared) > 1.5 * len(rows) and all(one[key] == two[key] for key in shared)
    assert sum(two[key] != other[key] for key in two) > 0.6 * len(two)


def test_random_crop_is_a_window_of_the_image(images):
    crop, offsets = 13, SIZE - 13 + 1
    corners = Counter()
    for batch in train(make(images, augment=Augmentation(crop=crop)), 60):
        for image, index in zip(batch["image"], batch["site_index"], strict=True):
            whole = expected_image(images, index)
            windows = [
                turned
                for top, left in itertools.product(range(offsets), repeat=2)
                for turned in orientations(whole[top : top + crop, left : left + crop])
            ]
            corners[which(image, windows) // 8] += 1
    assert len(corners) == offsets**2 and max(corners.values()) < 40  # 240 draws, 15 each


def test_evaluation_takes_the_centre(images):
    rows = make(images).split.test[:8]
    (batch,) = evaluate(make(images, augment=Augmentation(crop=10)), rows)
    for image, index in zip(batch["image"], batch["site_index"], strict=True):
        np.testing.assert_allclose(
            image, expected_image(images, index)[3:13, 3:13], rtol=1e-4, atol=1e-4
        )
    whole = evaluate(make(images, augment=Augmentation(crop=SIZE)), rows)[0]
    assert_same(whole, evaluate(make(images), rows)[0])


def further(scale):
    """An augmentation of a user's: multiplies by a draw, `scale` and the progress."""

    def augment(keys, batch, info):
        assert info.train and info.vocabulary.cell_types == ("HUVEC", "U2OS")
        factor = jax.vmap(jax.random.uniform)(keys) * scale * info.progress
        return {**batch, "image": batch["image"] * factor[:, None, None, None]}

    return augment


def test_further_augmentations_follow_in_turn_and_know_the_progress(images):
    stream = make(images, augment=Augmentation(orient=False, further=(further(2.0), further(3.0))))
    rows = stream.split.train
    order = samplers.shuffled()(images.sites, stream.split, 4, 0)
    (draw,) = stream.draws(order, rows, 0, 1)
    run = jax.jit(lambda *given: stream.batch(*given[:2], 0, True, given[2]))
    half = run(stream.store(rows), draw, jnp.float32(0.5))["image"]
    index, epoch, _ = order(0)
    for k, site in enumerate(index):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), epoch[k]), site)
        draws = [float(jax.random.uniform(jax.random.fold_in(key, n))) for n in (2, 3)]
        expected = expected_image(images, site) * np.prod(draws) * 2 * 3 * 0.5**2
        np.testing.assert_allclose(half[k], expected, rtol=1e-4, atol=1e-4)
    assert_same(evaluate(stream, rows[:4], 4)[0], evaluate(make(images), rows[:4], 4)[0])


def test_resumed_batches_are_bit_identical(images, start=50):
    stream = make(images, augment=Augmentation(crop=13))
    whole = train(stream, start + 4)
    for one, two in zip(whole[start:], train(stream, 4, start=start), strict=True):
        assert_same(one, two)


@pytest.mark.parametrize("threads", [1, 16])
def test_threads_and_prefetch_change_nothing(images, threads):
    stream = make(images)
    for one, two in zip(train(stream, 8), train(stream, 8, threads=threads, prefetch=1),
                        strict=True):  # fmt: skip
        assert_same(one, two)


def by_site(found):
    """{(site_index, image bytes)} with multiplicity, whatever the order."""
    return Counter(
        (int(index), image.tobytes())
        for batch in found
        for image, index, mask in zip(
            batch["image"], batch["site_index"], batch["mask"], strict=True
        )
        if mask
    )


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_the_same_global_batches(images, hosts):
    stream = make(images)
    whole = train(stream, 9, 8, start=3)
    parts = [train(stream, 9, 8, start=3, number=h, count=hosts) for h in range(hosts)]
    for step, batch in enumerate(whole):
        assert all(len(part[step]["label"]) == 8 // hosts for part in parts)
        assert by_site([part[step] for part in parts]) == by_site([batch])
        rows = np.concatenate([part[step]["site_index"] for part in parts])
        np.testing.assert_array_equal(rows, batch["site_index"])
    rows = stream.split.test
    parts = [evaluate(stream, rows, number=h, count=hosts) for h in range(hosts)]
    assert len({len(part) for part in parts}) == 1  # or a host would wait for ever
    assert by_site(itertools.chain(*parts)) == by_site(evaluate(stream, rows))
    assert sum(by_site(itertools.chain(*parts)).values()) == len(rows)


@pytest.mark.parametrize("hosts", [2, 4])
def test_each_host_reads_its_own_part(images, read, hosts):
    stream = make(images)
    rows, parts = np.arange(20, 41), []
    for host in range(hosts):
        read.clear()
        found = evaluate(stream, rows, number=host, count=hosts)
        index = np.concatenate([b["site_index"][b["mask"]] for b in found])
        assert read == Counter(index.tolist())  # each of its sites once, and no other
        parts.append(set(read))
    assert set().union(*parts) == set(rows.tolist()) and sum(map(len, parts)) == len(rows)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.devices
def test_sharded_over_devices(images):
    devices = jax.device_count()
    mesh = jax.make_mesh((devices,), ("batch",), axis_types=(AxisType.Auto,))
    settings = dict(augment=Augmentation(crop=12))
    sharded, single = make(images, host=Host(mesh=mesh), **settings), make(images, **settings)
    order = samplers.shuffled()(images.sites, sharded.split, 2 * devices, 0)
    rows = sharded.split.train
    (draw,) = sharded.draws(order, rows, 0, 1)
    for name, array in draw._asdict().items():
        spec = PartitionSpec() if name == "count" else PartitionSpec(None, "batch")
        assert array.sharding.spec == spec, name
    assert draw.planes.addressable_shards[0].data.shape[:2] == (1, 2)
    store = sharded.store(rows)
    assert all(array.sharding.is_fully_replicated for array in store.columns.values())
    program = jax.jit(lambda store, draw: sharded.batch(store, draw, 0, True))
    assert program(store, draw)["image"].addressable_shards[0].data.shape[0] == 2
    one, two = (train(stream, 1, 2 * devices)[0] for stream in (sharded, single))
    assert_same(one, two, rtol=1e-6, atol=1e-6)
    test = sharded.split.test
    for one, two in zip(evaluate(sharded, test, 2 * devices), evaluate(single, test, 2 * devices),
                        strict=True):  # fmt: skip
        assert_same(one, two, rtol=1e-6, atol=1e-6)


def test_no_implicit_transfer(images):
    stream = make(images, "site")
    order = samplers.shuffled()(images.sites, stream.split, 4, 0)
    run = jax.jit(lambda store, draw: stream.batch(store, draw, 0, True))
    with jax.transfer_guard("disallow"):
        store = stream.store(stream.split.train)
        run(store, next(stream.draws(order, stream.split.train, 0, 1)))["image"].block_until_ready()


def test_draws_kept_are_never_overwritten(images):
    """On the CPU a device array may alias the host's: a reused buffer would show here."""
    stream = make(images)
    order = samplers.shuffled()(images.sites, stream.split, 4, 0)
    kept = list(stream.draws(order, stream.split.train, 0, 20))
    for step, draw in enumerate(kept):
        np.testing.assert_array_equal(draw.planes[0], images.planes[order(step)[0]])
        assert int(draw.count) == 1


def test_bfloat16_is_rounded_last(images):
    (full,), (half,) = train(make(images), 1), train(make(images, dtype=jnp.bfloat16), 1)
    assert half["image"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(half["image"], full["image"].astype(jnp.bfloat16))


ERRORS = {
    "batch_size 0": lambda stream: one_pass(np.arange(3), 0, Host()),
    "5 rows.* 2 hosts": lambda stream: train(stream, 1, 5, number=0, count=2),
    "batch_size 5.* 2 hosts": lambda stream: evaluate(stream, np.arange(5), 5, number=0, count=2),
    "host 2 of 2": lambda stream: train(stream, 1, number=2, count=2),
    "steps -1 to 3": lambda stream: train(stream, 4, start=-1),
    "at least one": lambda stream: stream.store(np.array([], np.int64)),
    "crop 17.* to 16": lambda stream: replace(stream, augment=Augmentation(crop=17)),
    "crop -1": lambda stream: replace(stream, augment=Augmentation(crop=-1)),
    "16x12.*square": lambda stream: replace(stream, images=ones((2, 6, 16, 12))),
    "rows 3 to 61: .* 0 to 60": lambda stream: stream.store(np.array([3, 61])),
    "rows -1 to 3": lambda stream: stream.store(np.array([-1, 3])),
    "rows 3 to 4": lambda stream: stream.store(np.array([4, 3])),
    "rows 3 to 3": lambda stream: stream.store(np.array([3, 3])),
}


def ones(shape, kind=InMemory):
    return kind(np.ones(shape, np.uint8), control_mean=np.ones(6), control_std=np.ones(6))


@pytest.mark.parametrize("named", ERRORS)
def test_errors(images, named):
    with pytest.raises(ValueError, match=named):
        ERRORS[named](make(images))


@pytest.mark.devices
def test_devices_share_a_batch(images):
    mesh = jax.make_mesh((jax.device_count(),), ("batch",), axis_types=(AxisType.Auto,))
    with pytest.raises(ValueError, match=f"{jax.device_count()} devices"):
        train(make(images), 1, jax.device_count() + 1, mesh=mesh)


class Damaged(InMemory):
    def __getitem__(self, row):
        raise DatasetError("damaged")


def test_a_damaged_image_reaches_the_consumer(images):
    with pytest.raises(DatasetError, match="damaged"):
        evaluate(replace(make(images), images=ones(images.planes.shape, Damaged)), np.arange(4))


def test_nothing_is_read_beyond_the_last_step(images, read):
    found = train(make(images), 5, start=2, prefetch=3)
    assert read == Counter(int(i) for batch in found for i in batch["site_index"])
    assert train(make(images), 0, start=3) == []


@pytest.mark.parametrize("orient", [False, True])
def test_device_half_holds_the_floats_once(orient):
    """XLA's CPU backend makes a second copy of them unless it fuses the transposition."""
    n, side = 4, 64
    images = ones((n, 6, side, side))
    stream = replace(make(tiny_images()), images=images, augment=Augmentation(orient=orient))
    order, _ = one_pass(np.arange(n), n, Host())
    (draw,) = stream.draws(order, np.arange(n), 0, 1)
    batch = jax.jit(lambda store, draw: stream.batch(store, draw, 0, True)["image"])
    memory = batch.lower(stream.store(np.arange(n)), draw).compile().memory_analysis()
    assert memory.output_size_in_bytes == 4 * images.planes.size
    assert memory.temp_size_in_bytes < memory.output_size_in_bytes / 16


def test_planes_lie_where_a_device_can_take_them_over(images):
    choices = [(np.array([[k, -1, k + 1]]), k) for k in range(5)]
    kept = list(reading.planes(images, iter(choices), 2, 2))
    for (planes, k), (rows, number) in zip(kept, choices, strict=True):
        assert planes.ctypes.data % 64 == 0 and k == number
        assert planes.shape == (1, 3, *images.image_shape) and not planes[0, 1].any()
        np.testing.assert_array_equal(planes[0, ::2], images.planes[rows[0, ::2]])


def test_an_iterator_left_early_stops_reading(images):
    choices = ((np.arange(4), None) for _ in itertools.count())
    before = {thread for thread in threading.enumerate() if thread.name.startswith("read")}
    read = reading.planes(images, choices, 3, 4)
    next(read)
    mine = {t for t in threading.enumerate() if t.name.startswith("read")} - before
    assert 1 <= len(mine) <= 3
    read.close()
    for thread in mine:
        thread.join(10)
        assert not thread.is_alive()

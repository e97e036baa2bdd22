"""The same batches after a resume, by any number of threads, hosts and devices."""

import itertools
from collections import Counter

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from screens import read as read
from stream_batches import assert_same, evaluate, make, train
from stream_batches import images as images

from rxrx1_jax.data import samplers
from rxrx1_jax.data.stream import Augmentation, Host


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


@pytest.mark.devices
def test_devices_share_a_batch(images):
    mesh = jax.make_mesh((jax.device_count(),), ("batch",), axis_types=(AxisType.Auto,))
    with pytest.raises(ValueError, match=f"{jax.device_count()} devices"):
        train(make(images), 1, jax.device_count() + 1, mesh=mesh)

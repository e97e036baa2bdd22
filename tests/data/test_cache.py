"""Where images are kept: the same batches wherever they are, read once, and what "auto" chooses."""

import io
import re
from collections import Counter
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from screens import read as read
from screens import tiny_config, tiny_images

from rxrx1_jax.config import FIELDS, ConfigError, load, load_all
from rxrx1_jax.data import cache, splits
from rxrx1_jax.data.images import InMemory, Vocabulary
from rxrx1_jax.data.reading import Host, calls
from rxrx1_jax.data.stream import Augmentation, Stream
from rxrx1_jax.training import setup, train
from rxrx1_jax.training.run import Run

MODES = ("none", "host", "device")
CASES = [
    *({"normalisation": name} for name in FIELDS["data.normalisation"].valid),
    *({"augmentation": name} for name in FIELDS["data.augmentation"].valid),
    *({"sampler": name} for name in FIELDS["data.sampler"].valid),
    {"crop": 13}, {"dtype": "bfloat16"},
]  # fmt: skip


@pytest.fixture(scope="module")
def images() -> InMemory:
    return tiny_images()


def stream_of(images, where, **case) -> tuple[Stream, object]:
    """A stream, and the order of its training batches of 4."""
    given = {"normalisation": "plate_control", "augmentation": "", "sampler": "shuffled"} | case
    normalise = load("data.normalisation", given["normalisation"])
    further = tuple(load_all("data.augmentation", given["augmentation"]))
    split = splits.make_split(images.sites, "official")
    augment = Augmentation(0, True, case.get("crop", 0), further)
    stream = Stream(
        images, split, Vocabulary.of(images.sites, splits.classes_of(images.sites, "official")),
        normalise, augment, jnp.dtype(case.get("dtype", "float32")), Host(2), where,
        np.concatenate([split.train, split.test]),
    )  # fmt: skip
    sites = images.sites.copy()
    half = split.train[::2]  # each cell type has two experiments for the sampler
    sites["experiment"][half] = np.char.add(sites["cell_type"][half], "-9")
    return stream, load("data.sampler", given["sampler"])(sites, split, 4, 0)


def batches(stream, order, train=True, stop=5, **calls):
    """Every array of each batch; the device half is a program of its own."""
    rows = stream.split.train
    store = stream.store(rows)
    make = jax.jit(lambda store, draw, i: stream.batch(store, draw, i, train))
    return [
        jax.tree.map(np.asarray, make(store, draw, i))
        for draw in stream.draws(order, rows, 0, stop, **calls) for i in range(int(draw.count))
    ]  # fmt: skip


def assert_same(one, two):
    assert len(one) == len(two) > 0
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_all_modes_give_the_same_bits(images, case):
    none, *others = (batches(*stream_of(images, where, **case)) for where in MODES)
    for other in others:
        assert_same(none, other)


@pytest.mark.parametrize("where", MODES)
def test_several_steps_of_a_draw_are_those_of_single_ones(images, where):
    stream, order = stream_of(images, where)
    assert_same(batches(stream, order, stop=7), batches(stream, order, stop=7, k=3, cuts=(4, 9)))
    drawn = list(stream.draws(order, stream.split.train, 0, 7, 3, (4,)))
    assert [int(draw.count) for draw in drawn] == [3, 1, 3]
    rest = drawn[1].chosen[1:]
    assert (rest[..., 0] == len(stream.split.train)).all() and not rest[..., 1:].any()


@pytest.mark.parametrize("where", MODES)
@pytest.mark.parametrize("k", [1, 3])
def test_a_draw_is_one_transfer(images, monkeypatch, where, k):
    stream, order = stream_of(images, where)
    store, put, sent = stream.store(stream.split.train), jax.device_put, []
    monkeypatch.setattr(jax, "device_put", lambda *given: sent.append(given) or put(*given))
    drawn = list(stream.draws(order, stream.split.train, 0, 9, k))
    assert len(drawn) == 9 // k and len(sent) == len(drawn) + k  # the counts once, before all
    assert store.planes is not None or where != "device"


def test_calls_cover_the_steps_and_run_past_no_cut():
    assert [list(steps) for steps in calls(2, 9, 3, (5, 6, 100, 2))] == [
        [2, 3, 4], [5], [6, 7, 8],
    ]  # fmt: skip


@pytest.mark.parametrize(("where", "times"), [("none", 3), ("host", 1), ("device", 1)])
def test_each_image_is_read_once_where_it_is_kept(images, read, where, times):
    stream, order = stream_of(images, where)
    rows = stream.split.train
    batches(stream, order, stop=3 * len(rows) // 4 + 3)  # past the third epoch
    if where == "device":
        assert stream.store(stream.split.test).planes is stream.store(rows).planes
        assert read == Counter(stream.kept.tolist())
    assert {read[row] for row in rows.tolist()} <= {times, times + (where == "none")}


def test_the_host_sends_no_planes_and_the_blank_row_is_black(images):
    stream, order = stream_of(images, "device")
    (draw,) = stream.draws(order, stream.split.train, 0, 1)
    assert draw.planes is None and draw.chosen.nbytes == 4 * 3 * 4
    store = stream.store(stream.split.test[3:5])
    place = np.asarray(store.columns["place"])
    np.testing.assert_array_equal(store.planes[place[:2]], images.planes[stream.split.test[3:5]])
    assert not store.planes[place[2]].any()


def test_rows_beyond_those_kept_take_their_place(images):
    stream, _ = stream_of(images, "device")
    stream = replace(stream, kept=None)
    for rows in (np.arange(3), np.arange(2, 7)):
        store = stream.store(rows)
        np.testing.assert_array_equal(
            store.planes[store.columns["place"][:-1]], images.planes[rows]
        )


def test_filling_goes_in_parts_and_shows_progress(images, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("sys.stderr", said := Terminal())
    monkeypatch.setattr(cache, "PART", 7 * images.planes[0].nbytes)
    rows = np.arange(3, 40)
    filled = cache.fill(images, rows, Host(2))
    np.testing.assert_array_equal(filled[: len(rows)], images.planes[rows])
    assert "device" in said.getvalue() and "37/37" in said.getvalue()


def test_the_planes_are_not_copied(images):
    """Neither by the program of a batch nor within a loop of steps."""
    stream, order = stream_of(images, "device")
    store = stream.store(stream.split.train)
    draw = next(stream.draws(order, stream.split.train, 0, 3, 3))

    def loop(store, draw):
        def body(i, total):
            return total + stream.batch(store, draw, i, True)["image"].sum()

        return jax.lax.fori_loop(0, draw.count, body, 0.0)

    assert not made(jax.jit(loop).lower(store, draw).compile(), store.planes)


def made(program, planes) -> list[str]:
    """What a compiled program makes in the form of the planes that it is given."""
    text = program.as_text()
    whole = re.escape(f"u8[{','.join(map(str, planes.shape))}]")
    assert re.search(whole, text)
    return re.findall(rf"= {whole}\S* (?!parameter|get-tuple)\S*", text)


@pytest.mark.devices
@pytest.mark.parametrize("parallelism", ["jit", "pmap"])
def test_several_devices_have_a_copy_each(images, parallelism):
    """The metrics of three steps are those of planes that the host sends."""
    assert jax.device_count() == 8
    found = []
    for where in ("none", "device"):
        config = tiny_config(data__cache=where, train__parallelism=parallelism)
        ready = setup.prepare(config, images)
        state, store = ready.init(), ready.train_store()
        assert where == "none" or len(store.planes.addressable_shards) == 8
        assert store.planes is None or store.planes.sharding.is_fully_replicated
        metrics = []
        for _, draw in zip(range(3), ready.train_draws(0), strict=False):
            state, row = ready.train_step(state, store, draw)
            metrics.append(np.asarray(row))
        found.append(metrics)
    step = ready.train_step if parallelism == "jit" else jax.jit(ready.train_step)
    assert not made(step.lower(ready.abstract_state, store, draw).compile(), store.planes)
    np.testing.assert_allclose(*found, rtol=1e-6)


def test_a_run_and_its_embeddings_are_the_same_wherever_images_are(images, tmp_path):
    results, x = [], []
    for where in ("none", "device"):
        config = tiny_config(data__cache=where, optim__epochs=1, train__eval_every=1)
        found = train.train_and_evaluate(config, tmp_path / where, images)
        results.append([found["loss"], found["accuracy"]["site"]["all"]])
        x.append(Run.open(tmp_path / where, {"data.cache": where}, images).embeddings().x)
    np.testing.assert_allclose(*results, rtol=1e-5)
    np.testing.assert_allclose(*x, rtol=1e-4, atol=1e-5)


GB = 10**9


@pytest.mark.parametrize(
    "asked, device, host, step, chosen",
    [
        ("auto", None, 8 * GB, None, "host"), ("auto", None, GB, None, "none"),
        ("auto", 8 * GB, 8 * GB, None, "device"), ("auto", 3 * GB, 8 * GB, None, "host"),
        ("auto", 3 * GB, GB, None, "none"), ("auto", 3 * GB, 8 * GB, GB // 2, "device"),
        ("auto", 3 * GB, 8 * GB, GB, "host"), ("none", GB, GB, None, "none"),
        ("device", 8 * GB, GB, None, "device"), ("device", None, 8 * GB, None, "device"),
        ("device", 2 * GB, 8 * GB, None, ConfigError), ("device", 8 * GB, GB, 7 * GB, ConfigError),
        ("device", None, GB, None, ConfigError), ("host", 8 * GB, 3 * GB, None, ConfigError),
    ],
)  # fmt: skip
def test_where_images_go(monkeypatch, asked, device, host, step, chosen):
    """2 GB of images, of a dataset on disk."""

    class OnDisk:
        image_shape = (2, 1000, 1000)

    copies = jax.local_device_count() if (asked, device) == ("device", None) else 1
    monkeypatch.setattr(cache, "free", lambda: [host * copies, *([device] if device else [])])
    if isinstance(chosen, str):
        assert cache.choose(asked, OnDisk(), 1000, step) == chosen
        return
    with pytest.raises(chosen, match=f"data.cache={asked}:.*2.0 GB") as error:
        cache.choose(asked, OnDisk(), 1000, step)
    assert "\n" not in str(error.value)


def test_arrays_in_memory_are_not_held_twice(images, monkeypatch):
    for device, asked, chosen in (([], "auto", "none"), ([], "host", "none"),
                                  ([8 * GB], "auto", "device"), ([0], "auto", "none")):  # fmt: skip
        monkeypatch.setattr(cache, "free", lambda device=device: [8 * GB, *device])
        assert cache.choose(asked, images, 61) == chosen


def test_the_free_memory_is_that_of_the_container(tmp_path):
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:  99 kB\nMemAvailable:    50 kB\n")
    (group / "memory.current").write_text("9000\n")
    for limit, free in (("max", 50 * 1024), ("20000", 12_000), ("900000", 50 * 1024)):
        (group / "memory.max").write_text(f"{limit}\n")
        (group / "memory.stat").write_text("anon 5\ninactive_file 1000\n")
        assert cache._free_ram(tmp_path) == free


def test_runs_that_share_the_cores_share_the_memory(monkeypatch):
    monkeypatch.setattr(cache, "_free_ram", lambda: 64 * GB)
    monkeypatch.setattr(cache.os, "cpu_count", lambda: 16)
    for cores, free in ((16, 64 * GB), (2, 8 * GB)):
        monkeypatch.setattr(cache.reading, "cores", lambda cores=cores: cores)
        assert cache.free() == [free]  # no device beside the CPUs

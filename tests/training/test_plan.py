"""What a training needs, before it begins: against figures of cards, and with faked limits."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import flax.linen as nn
import jax
import numpy as np
import pytest
from commands import run_command
from screens import params, tiny_config, tiny_images

from rxrx1_jax import config as config_lib
from rxrx1_jax.config import change
from rxrx1_jax.data import cache, splits
from rxrx1_jax.data.images import Vocabulary
from rxrx1_jax.model import vit
from rxrx1_jax.training import plan, run_dir, setup, train

SMOKE = "--config=smoke"


def plain():
    """A network without blocks."""

    class Plain(nn.Module):
        head: object

        @nn.compact
        def __call__(self, images, batch, info):
            return self.head(self, nn.Conv(4, (3, 3))(images).mean((1, 2)), batch, info)

    return lambda spec: Plain(spec.head)


def fake_limit(monkeypatch, found: int) -> None:
    device = SimpleNamespace(memory_stats=lambda: {"bytes_limit": found})
    monkeypatch.setattr(plan.jax, "local_devices", lambda: [device, device])


@pytest.fixture(autouse=True)
def fresh():
    plan._row_bytes.cache_clear()


@pytest.fixture
def small():
    """A set-up of the demo's network for 16 sites of 64 px."""
    images = tiny_images()
    images.planes = images.planes.repeat(4, 2).repeat(4, 3)
    images.image_shape = images.planes.shape[1:]
    return setup.prepare(tiny_config(model__width=64, optim__batch_size=16), images)


# Of docs on measurements: temporary memory of ResNet-50's step on an H100 or H200, 1,108 classes.
MEASURED = [
    (224, 256, "bfloat16", 10.4e9), (512, 64, "bfloat16", 13.6e9), (128, 256, "bfloat16", 3.5e9),
    (512, 256, "float32", 105 * 2**30),
]  # fmt: skip


def of_size(size, config):
    """A set-up for images of this size and the paper's classes."""
    images = tiny_images()
    images.image_shape = (6, size, size)
    vocabulary = Vocabulary(("HUVEC",), ("HUVEC-01",), np.arange(1108, dtype=np.int32))
    none = np.zeros(0, np.int64)
    split = splits.Split(none, none, none, none, {})
    return setup.for_evaluation(config, images, split, vocabulary)


@pytest.mark.parametrize("size, rows, dtype, expected", MEASURED)
def test_activations_are_those_that_were_measured(size, rows, dtype, expected):
    config = tiny_config(
        model__name="resnet50", model__width=64, optim__ema_decay=0.0, model__dtype="float32"
    )
    ready = of_size(size, config)
    found = plan.need(ready, {"optim.batch_size": rows, "model.dtype": dtype})
    assert found.activations == pytest.approx(expected, rel=0.06)
    # ResNet-50 for six channels and 1,108 classes, its statistics, and the step.
    assert found.state == 4 * (25_787_732 + 2 * 26_560) + 4 and found.cache == 0


def test_the_commands_of_the_docs_fit_their_cards(monkeypatch, tmp_path):
    """As --mode=plan says it, where JAX takes three quarters of a card."""
    text = (Path(__file__).parents[2] / "docs/train.md").read_text()
    rows = re.findall(r"\| (\d+) GB \| (.*?) \| (\d+) of (\d+) GB", text)
    assert {row[0] for row in rows} == {"24", "40", "80"}
    for card, added, says, limit in rows:
        assert int(limit) == 0.75 * int(card)
        flags = re.findall(r"--config\.(\S+)=([^`]+)", added)
        config = config_lib.read("batch_split")
        change(config, {**dict(flags), "model.dtype": "bfloat16"})
        size = int((re.findall(r"px(\d+)", added) or [512])[0])
        fake_limit(monkeypatch, int(limit) * 10**9)
        with jax.numpy_dtype_promotion("standard"):
            line = next(plan.show(of_size(size, config), tmp_path))
        needs = float(re.search(r"needs ([\d.]+) GB", line)[1])
        momentum = 0.1  # of training alone, which is not set up here
        assert "it fits" in line and round(needs + momentum) == int(says)


def test_the_estimate_is_linear_in_rows_and_parts_and_small_with_remat(small):
    one, two, parts, again, calls = (
        plan.need(small, changes)
        for changes in (
            {}, {"optim.batch_size": 32}, {"optim.accumulation": 2}, {"model.remat": True},
            {"train.steps_per_call": 3},
        )
    )  # fmt: skip
    planes = 16 * 6 * 64 * 64  # of a step, sent by the host
    assert calls == one._replace(batches=one.batches + 2 * plan.DRAWS * planes)
    weights = sum(x.nbytes for x in jax.tree.leaves(small.init().params))
    assert two.activations == pytest.approx(2 * one.activations, abs=2)
    assert two.batches == 2 * one.batches and two.state == one.state
    assert parts.activations == pytest.approx(one.activations / 2 + weights, abs=2)
    assert again.activations < 0.8 * one.activations


def test_attention_is_counted_as_the_compiler_plans_it(monkeypatch):
    """1,537 tokens, whose weights are most of the memory; of a CPU's compiler."""
    monkeypatch.setattr(vit, "DEPTH", 2)
    images = tiny_images()
    images.planes = images.planes.repeat(2, 2).repeat(2, 3)
    images.image_shape = images.planes.shape[1:]
    config = tiny_config(model__name="vit_tiny(patch=2)", model__width=64, optim__batch_size=2)
    ready = setup.prepare(config, images)
    inputs = ready.train_shapes()
    compiled = ready.train_step.lower(ready.abstract_state, *inputs).compile()
    expected = compiled.memory_analysis().temp_size_in_bytes
    found = plan.need(ready).activations
    assert found == pytest.approx(expected, rel=0.25)
    weights = 2 * 3 * 1537**2 * 4  # two images, three heads
    half = plan.need(ready, {"model.dtype": "bfloat16"}).activations
    assert half == pytest.approx((found - 4 * weights) / 2 + 5 * weights, rel=0.01)
    again = plan.need(ready, {"model.remat": True}).activations
    tokens = 1.9 * 2 * 1537 * 192 * 4
    assert again == pytest.approx(3 * weights + tokens * 10 + 2 * tokens / 1.9, rel=0.05)


def test_images_on_the_device_count_and_are_chosen_beside_the_step(small, monkeypatch):
    size, kept = 6 * 64 * 64, len(small.stream.kept)
    step = plan.need(small).total
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(setup, "_try_plug_ins", lambda _: None)
    for room, expected in ((0.5, "host"), (1.5, "device")):
        limit = (step + room * kept * size) / (1 - cache.MARGIN)
        fake_limit(monkeypatch, round(limit))
        config = small.config.copy_and_resolve_references()
        change(config, {"model.dtype": "float32"})
        images = cache.Kept(small.images)  # as of a dataset: no user's own arrays
        ready = train.set_up(config, "nowhere", images)
        assert ready.stream.cache == expected
        found = plan.need(ready)
        assert found.cache == (kept + 1) * size * (expected == "device")
        assert found.batches == plan.need(small).batches - (
            0 if expected == "host" else 16 * plan.DRAWS * size
        )


def test_the_least_of_the_devices_counts(monkeypatch):
    stats = [{"bytes_limit": 7 << 20}, {"bytes_limit": 5 << 20}, None]
    for count, expected in ((2, 5 << 20), (3, 0)):
        devices = [SimpleNamespace(memory_stats=lambda s=s: s) for s in stats[:count]]
        monkeypatch.setattr(plan.jax, "local_devices", lambda devices=devices: devices)
        assert plan.limit() == expected
    fake_limit(monkeypatch, 9 << 20)
    monkeypatch.setattr(plan.jax, "process_count", lambda: 2)
    gather = lambda mine: np.array([mine, [3]])  # noqa: E731
    monkeypatch.setattr(cache.multihost_utils, "process_allgather", gather)
    assert plan.limit() == 3 << 20


def test_what_cannot_fit_is_refused_with_what_would(small, monkeypatch, tmp_path):
    monkeypatch.setattr(plan, "MARGIN", 1)
    there = plan.need(small).total - (1 << 20) >> 20 << 20
    fake_limit(monkeypatch, there)
    with pytest.raises(run_dir.RunError) as refused:
        train.train_and_evaluate(small.config, tmp_path / "run", small.images)
    assert not (tmp_path / "run").exists() and "\n" not in str(refused.value)
    offers = re.findall(r"([a-z]+\.[a-z_]+)=(\w+) \(([\d.]+) MB\)", str(refused.value))
    assert [field for field, *_ in offers] == [
        "optim.batch_size", "optim.accumulation", "model.remat", "model.dtype",
    ]  # fmt: skip
    for field, value, megabytes in offers:
        config = small.config.copy_and_resolve_references()
        change(config, {field: value})
        with jax.numpy_dtype_promotion("standard"):
            found = plan.check(setup.prepare(config, small.images))
        assert found.total / 1e6 == pytest.approx(float(megabytes), abs=0.06)
        assert found.total <= there


def test_the_compilers_own_figures_are_compared_too(small, monkeypatch, tmp_path):
    monkeypatch.setattr(plan, "MARGIN", 1e9)  # the estimate sees room
    fake_limit(monkeypatch, 1 << 20)
    with pytest.raises(run_dir.RunError, match="optim.accumulation|what would fit"):
        train.train_and_evaluate(small.config, tmp_path / "run", small.images)


def test_a_known_limit_changes_nothing_and_compiles_once(monkeypatch, tmp_path):
    config, images, compiled = tiny_config(), tiny_images(), []
    train.train_and_evaluate(config, tmp_path / "a", images)
    fake_limit(monkeypatch, 1 << 40)

    def note(event, _, fun_name="", **__):
        compiled.append(fun_name) if event.endswith("backend_compile_duration") else None

    jax.monitoring.register_event_duration_secs_listener(note)
    train.train_and_evaluate(config, tmp_path / "b", images)
    jax.monitoring.unregister_event_duration_listener(note)
    assert sum("run_steps" in name for name in compiled) == 1
    jax.tree.map(np.testing.assert_array_equal, params(tmp_path / "a"), params(tmp_path / "b"))
    one, two = (json.loads((tmp_path / run / "plan.json").read_text()) for run in "ab")
    assert one["bytes_per_device"].pop("limit") is None
    assert two["bytes_per_device"].pop("limit") == 1 << 40
    found = plan.need(setup.prepare(config, images))
    assert one["bytes_per_device"] == found._asdict() | {"total": sum(found)}
    assert (one["dtype"], one["cache"], one["steps_per_call"]) == ("float32", "none", 1)


def test_out_of_memory_that_comes_all_the_same_is_one_line(small, monkeypatch, tmp_path):
    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nand 70 lines")

    monkeypatch.setattr(plan, "checked_step", lambda _: full)
    with pytest.raises(run_dir.RunError, match="optim.accumulation=2") as refused:
        train.train_and_evaluate(small.config, tmp_path / "run", small.images)
    assert "\n" not in str(refused.value)
    monkeypatch.setattr(jax, "process_count", lambda: 2)  # the other one may be in a step still
    assert plan.ran_out(small) == str(refused.value)


def test_remat_needs_blocks(tmp_path):
    config = tiny_config(model__name=f"{__name__}.plain", model__remat=True)
    with pytest.raises(run_dir.RunError, match="model.remat.*plain"):
        train.train_and_evaluate(config, tmp_path / "run", tiny_images())
    assert not (tmp_path / "run").exists()


def test_the_plan_says_memory_disk_and_time_and_leaves_nothing(tmp_path):
    done = run_command("main", SMOKE, "--mode=plan", f"--workdir={tmp_path}/run")
    memory, disk, time = done.out.splitlines()
    assert done.code == 0 and not (tmp_path / "run").exists()
    assert all(name in memory for name in ("state", "activations", "batches"))
    kept, saved = re.search(r"([\d.]+) MB \(4 checkpoints of ([\d.]+) MB", disk).groups()
    assert float(kept) == pytest.approx(4 * float(saved), abs=0.2)
    assert "16 sites" in time and "160 steps" in time and "hours" in time


def test_the_plan_of_what_cannot_fit(tmp_path, monkeypatch):
    fake_limit(monkeypatch, 1 << 20)
    done = run_command("main", SMOKE, "--mode=plan", f"--workdir={tmp_path}/run")
    assert done.code == 1 and done.out.startswith("memory: ") and "1.0 MB" in done.out
    assert done.last.startswith("error: ") and "optim.batch_size=12 (" in done.last

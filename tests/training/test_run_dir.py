"""Settings are checked before work starts; a run directory belongs to one set of settings."""

import json
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from finished_runs import edited
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from rxrx1_jax import config as config_lib
from rxrx1_jax.data import splits
from rxrx1_jax.training import environment, locks, optimizers, run_dir, train
from rxrx1_jax.training.fingerprints import describe_data

DATA = {"version": "2.0.0", "data": "a1", "split": "b2", "order": "c3"}


def make_config(**changes) -> ConfigDict:
    config = config_lib.default()
    for field, value in changes.items():
        section, name = field.split("__")
        config[section][name] = value
    return config


positive = st.floats(0, 1e3, exclude_min=True)
settings_of_a_run = st.fixed_dictionaries(
    {
        "optim__batch_size": st.sampled_from([4, 8, 16, 24, 48, 64]),
        "optim__accumulation": st.integers(1, 2),
        "optim__epochs": st.integers(0, 40),
        "optim__warmup_epochs": st.floats(0, 10),
        "optim__learning_rate": positive | st.sampled_from([0.0, math.inf, math.nan]),
        "optim__momentum": st.floats(0, 1, exclude_max=True),
        "data__crop": st.integers(0, 20),
        "eval__batch_size": st.sampled_from([7, 8, 16, 64]),
        "train__eval_every": st.integers(0, 50),
        "train__checkpoint_every": st.integers(1, 50),
        "train__log_every": st.integers(1, 50),
    }
)


@settings(max_examples=200, deadline=None)
@given(settings_of_a_run, st.integers(1, 500))
def test_what_is_accepted_can_be_run(changes, sites):
    """Steps, learning rates, milestones and batches of any settings that are not refused."""
    config = make_config(**changes)
    try:
        config_lib.check(config, jax.device_count())
        if sites < config.optim.batch_size:
            raise run_dir.RunError("too few")
        per_epoch = sites / config.optim.batch_size
        total = max(1, round(per_epoch * config.optim.epochs))
        _, schedule = optimizers.create_optimizer(config.optim, total)
    except ValueError:  # RunError is one
        return
    rates = np.array([schedule(step) for step in {0, total // 2, total - 1}])
    assert np.isfinite(rates).all() and (rates >= 0).all()
    assert rates.max() <= config.optim.learning_rate * (1 + 1e-5)
    spec = SimpleNamespace(total_steps=total)
    task = SimpleNamespace(spec=spec, steps_per_epoch=per_epoch)
    for every in (config.train.eval_every, config.train.checkpoint_every):
        milestones = train._milestones(every, task)
        assert all(1 <= step <= total for step in milestones)
        assert len(milestones) == (config.optim.epochs // every if every else 0)
    assert config.optim.batch_size % (jax.device_count() * config.optim.accumulation) == 0
    assert config.eval.batch_size % jax.device_count() == 0


def opened(workdir, data=DATA, **changes):
    workdir.mkdir(parents=True, exist_ok=True)
    run_dir.open_run(workdir, make_config(**changes), data)
    return json.loads((workdir / "config.json").read_text())


def begun(workdir):
    """The settings of a run that there is something to resume of."""
    settings = opened(workdir)
    (workdir / "checkpoints" / "7").mkdir(parents=True)
    return settings


def test_same_settings_open_a_run_again(tmp_path):
    for name in (".lock", "environment.json", ".config.json.0a1b.tmp"):  # of one that was killed
        (tmp_path / name).write_text("")
    settings = begun(tmp_path)
    assert settings["optim"]["epochs"] == 90 and settings["dataset"] == DATA
    assert settings["made_with"]["settings"] == config_lib.VERSION
    assert settings["made_with"]["devices"] == f"{jax.device_count()} x cpu"
    before = (tmp_path / "environment.json").read_bytes()
    assert json.loads(before)["packages"]["jax"] == jax.__version__
    # What the run was started with stays written down.
    assert opened(tmp_path, data__dir="elsewhere", data__threads=1) == settings
    assert opened(tmp_path, {**DATA, "version": "2.1.0"}) == settings
    assert (tmp_path / "environment.json").read_bytes() == before


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"data__fold": 1}, "data.fold=0.* 1;"),
        ({"data": {**DATA, "data": "c3"}}, "dataset.data='a1'.*'c3'"),
        ({"data": {**DATA, "split": "d4"}}, "dataset.split="),
        ({"data": {**DATA, "order": "d4"}}, "dataset.order="),
    ],
)
def test_another_run_in_the_directory_is_refused(tmp_path, changes, said):
    """Once there is something to resume from; before that it is begun again."""
    opened(tmp_path)
    assert opened(tmp_path, data__fold=2)["data"]["fold"] == 2
    begun(tmp_path)
    with pytest.raises(run_dir.RunError, match=said):
        opened(tmp_path, **changes)


NUMERICS = {
    "JAX_ENABLE_X64": "true", "JAX_DEFAULT_MATMUL_PRECISION": "float32",
    "XLA_FLAGS=--xla_gpu_deterministic_ops": "true",
}  # fmt: skip


@pytest.mark.parametrize("name", NUMERICS)
def test_a_run_is_resumed_with_the_numerics_it_was_begun_with(tmp_path, monkeypatch, capsys, name):
    begun(tmp_path)
    assert environment.numerics().keys() == NUMERICS.keys()
    with edited(tmp_path / "config.json") as settings:
        settings["made_with"]["jax"] = "4711"
    opened(tmp_path)
    assert "4711" in capsys.readouterr().err
    with edited(tmp_path / "config.json") as settings:
        settings["made_with"][name] = NUMERICS[name]
    with pytest.raises(run_dir.RunError, match=f"{name}={NUMERICS[name]}"):
        opened(tmp_path)
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=true")
    with jax.enable_x64(True), jax.default_matmul_precision("float32"):
        assert environment.numerics() == NUMERICS


def test_the_order_of_records_binds_a_run_until_it_is_complete(tmp_path):
    begun(tmp_path)
    (tmp_path / "results.json").write_text('{"step": 8, "total_steps": 8}')
    opened(tmp_path, {**DATA, "order": "other"})


def test_workdirs_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run", tmp_path):
        with pytest.raises(run_dir.RunError, match="config.json"):
            run_dir.check_workdir(path)
    (tmp_path / "file").unlink()
    run_dir.check_workdir(tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    for path in (tmp_path / "new" / "run", tmp_path):
        with pytest.raises(run_dir.RunError, match="--workdir"):
            run_dir.check_workdir(path)
    monkeypatch.undo()

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    for what in ("os.open", "pathlib.Path.mkdir"):
        monkeypatch.setattr(what, refuse)
        with pytest.raises(locks.LockError, match="Permission denied.*--workdir"):
            with run_dir.hold(tmp_path):
                pass


@pytest.fixture
def described():
    """(images, split): three training sites and a test site, no pixels."""
    kinds = [("site_id", "U4"), ("sirna_id", "i4"), ("adler32", "u4")]
    sites = np.zeros(4, [*kinds, *((f"control_{name}", "f4", (6,)) for name in ("mean", "std"))])
    sites["site_id"], sites["sirna_id"] = ["a", "b", "c", "d"], [0, 1, 0, 1]
    return SimpleNamespace(sites=sites, about={"version": "2.0.0"}), split_of(range(3), [3])


def split_of(train, test):
    none = np.zeros(0, np.int64)
    return splits.Split(np.array(train), none, np.array(test), none, {})


def fingerprints(images, split, **changes):
    changed = SimpleNamespace(**{**vars(images), **changes})
    found = describe_data(changed, split, np.array([0, 1], np.int32))
    return found["data"], found["split"], found["order"]


def test_fingerprints_go_by_content_and_that_of_the_order_by_order(described):
    images, split = described
    turned = fingerprints(images, split_of([1, 2, 3], [0]), sites=images.sites[::-1].copy())
    same = [one == two for one, two in zip(fingerprints(*described), turned, strict=True)]
    assert same == [True, True, False]


@pytest.mark.parametrize("field", ["sirna_id", "adler32", "control_mean", "control_std", "site_id"])
def test_fingerprints_tell_data_apart(described, field):
    data, roles, _ = fingerprints(*described)
    other = described[0].sites.copy()
    other[field][2] = "e" if field == "site_id" else 7
    changed, changed_roles, _ = fingerprints(*described, sites=other)
    assert changed != data and (changed_roles == roles) == (field != "site_id")


def test_fingerprints_tell_splits_apart(described):
    images, split = described
    swapped = split._replace(train=np.array([0, 1, 3]), test=np.array([2]))
    found = [fingerprints(images, x) for x in (split, swapped, split._replace(train=np.arange(2)))]
    assert len({data for data, _, _ in found}) == 1 and len({roles for _, roles, _ in found}) == 3


def test_without_git_the_commit_is_unknown(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(environment.subprocess, "run", missing)
    assert environment.environment()["commit"] is None


@pytest.mark.parametrize(
    ("module", "needless"),
    [
        ("main", {"jax", "numpy", "tensorflow"}),  # --help answers at once
        ("report", {"jax", "flax", "orbax", "grain", "tensorflow"}),
        ("data.records", {"jax", "tensorflow"}),
        ("training.train", {"torch", "tensorflow", "matplotlib"}),
    ],
)
def test_start_up_imports_only_what_is_needed(module, needless):
    code = f"import sys, rxrx1_jax.{module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not needless & set(done.stdout.split())

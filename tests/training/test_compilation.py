"""The cache of compiled programs: where it is, and what becomes of an entry that is damaged."""

import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache
from screens import tiny_config, tiny_images

from rxrx1_jax.training import compilation, setup, train

DIR = "JAX_COMPILATION_CACHE_DIR"
FIELDS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture
def restored(monkeypatch):
    """What is changed of JAX's own settings ends with the test."""
    for name in (DIR, FIELDS[1].upper()):
        monkeypatch.delenv(name, raising=False)
    before = {field: getattr(jax.config, field) for field in FIELDS}
    yield
    for field, value in before.items():
        jax.config.update(field, value)
    compilation_cache.reset_cache()


@pytest.mark.parametrize(
    ("variables", "where"),
    [
        ({"XDG_CACHE_HOME": "/x"}, "/x/rxrx1_jax"),
        ({"HOME": "/h", "XDG_CACHE_HOME": ""}, "/h/.cache/rxrx1_jax"),
        ({DIR: "/mine"}, "/mine"),
    ],
)
def test_the_folder_is_the_users_or_the_one_that_is_named(restored, monkeypatch, variables, where):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    compilation.use_cache()
    assert os.environ[DIR] == jax.config.jax_compilation_cache_dir == where
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0


def test_a_user_without_a_home_has_one_of_the_machine(restored, monkeypatch, tmp_path):
    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    monkeypatch.setattr(compilation.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delitem(sys.modules, "jax")  # children read the variable
    compilation.use_cache()
    assert os.environ[DIR] == str(tmp_path / ".cache" / "rxrx1_jax")


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"x" * 99])
def test_a_damaged_entry_is_compiled_again_and_replaced(restored, monkeypatch, tmp_path, damage):
    monkeypatch.setenv(DIR, str(tmp_path))
    compilation.use_cache()
    compilation.replace_damaged()

    def compiled():
        compilation_cache.reset_cache()
        return float(jax.jit(lambda x: jnp.sin(x).sum() * 3)(jnp.arange(4.0)))

    first = compiled()
    (entry,) = [path for path in tmp_path.glob("*-cache") if path.name.startswith("jit__lambda")]
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))
    assert compiled() == first
    # It holds how long it took to compile, too.
    assert len(entry.read_bytes()) == pytest.approx(len(whole), rel=0.02)
    written = entry.stat().st_mtime_ns
    assert compiled() == first and entry.stat().st_mtime_ns == written  # found


# None of the values is that of `tiny_config`, whose warm-up is 1 of 3 epochs.
VARIED = {
    "optim__learning_rate": 0.03, "optim__warmup_epochs": 0.0, "optim__epochs": 2,
    "optim__weight_decay": 0.0, "optim__label_smoothing": 0.1, "train__seed": 5,
    "train__max_steps": 3,
}  # fmt: skip
COMBINED = {
    "optim__name": "adam", "optim__schedule": "step", "data__augmentation": "cutmix",
    "model__head": "domain_adversary(ramp=10.0)", "optim__loss": "dann", "train__steps_per_call": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def images():
    return tiny_images()


def test_what_a_search_varies_is_not_in_the_program(images):
    """The text that the cache's key is made of; it says that of another field, too."""

    def program(**more):
        ready = setup.prepare(tiny_config(**COMBINED | more), images)
        k = ready.config.train.steps_per_call or 1
        return ready.train_step.lower(ready.abstract_state, *ready.train_shapes(k)).as_text()

    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam relies on it
        first = program()
        same = {name: program(**{name: value}) == first for name, value in VARIED.items()}
        assert same == dict.fromkeys(VARIED, True)
        adamw = {"optim__name": "adamw", "optim__schedule": "linear"}
        assert program(**adamw, **VARIED) == program(**adamw) != first


@pytest.mark.parametrize("parallelism", ["jit", "pmap"])
def test_another_trial_of_a_search_compiles_nothing(
    restored, monkeypatch, tmp_path, images, parallelism
):
    """Evaluations and checkpoints included: the cache has as many entries after it as before."""
    monkeypatch.setenv(DIR, str(tmp_path / "cache"))
    compilation.use_cache()
    compilation_cache.reset_cache()
    programs = []
    for number, changes in enumerate(({}, VARIED)):
        config = tiny_config(train__parallelism=parallelism, **changes)
        train.train_and_evaluate(config, tmp_path / f"run-{number}", images)
        programs.append({path.name for path in tmp_path.glob("cache/*-cache")})
    assert len(programs[0]) > 2 and programs[1] == programs[0]

"""The cache of compiled programs: where it is, and what becomes of an entry that is damaged."""

import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from rxrx1_jax.training import compilation

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

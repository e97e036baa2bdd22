"""The cache of compiled programs, which all commands share, and runs of one machine with them."""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any


def use_cache() -> None:
    """Programs are compiled once for this user: sets what JAX reads, in children, too.

    By default JAX has no cache, and keeps there only what takes a second to compile.
    """
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_folder()))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    if "jax" in sys.modules:  # it read the variables when it was imported
        import jax

        jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
        seconds = float(os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)


def _folder() -> Path:
    """A user without a home has one of this machine."""
    try:
        home = Path.home()
    except RuntimeError:
        home = Path(tempfile.gettempdir())
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "rxrx1_jax"


def replace_damaged() -> None:
    """From now on an entry of the cache that cannot be read is compiled again and written anew.

    JAX compiles what a kill or a full disk cut off in every process, and never replaces it.
    """
    import jax
    from jax._src import compilation_cache as jax_cache

    read = jax_cache.get_executable_and_time
    if hasattr(read, "damaged"):
        return

    def careful(key: str, *rest: Any) -> tuple[Any, int | None]:
        try:
            return read(key, *rest)
        except Exception:
            folder = getattr(jax.config, "jax_compilation_cache_dir", None) or ""
            Path(folder, f"{key}-cache").unlink(missing_ok=True)
            return None, None  # as for one that is not there

    careful.damaged = True  # type: ignore[attr-defined]
    jax_cache.get_executable_and_time = careful  # type: ignore[assignment]

"""Strict JAX for every test, on one or eight simulated devices, and what all tests share.

`-m "not devices"` simulates one device, anything else eight: their number is fixed when a process
starts, and tests that need one device only are slow on eight. `-m accelerator` takes what is there.
"""

import fcntl
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

# A command in the background of a shell starts with Ctrl-C ignored, under nohup with SIGHUP, and
# its children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Compiled programs, for the workers and children of this run and of the next one. On the disk of
# this machine, as a program that was compiled for another processor may not run here.
CACHE = Path(tempfile.gettempdir()) / f"rxrx1_jax-tests-{os.getuid()}"
MARKS = ("accelerator", "devices", "long")
CACHE_BYTES = 2**30  # a folder that has grown beyond this is discarded

# PyTorch from PyPI brings Triton, whose LLVM crashes a process that holds TensorFlow's. None means
# "not installed" to whoever imports it.
sys.modules["triton"] = None  # type: ignore[assignment]


def pytest_configure(config: pytest.Config) -> None:
    """Sets what JAX reads when it is first imported; workers and children inherit it."""
    if config.option.markexpr == "accelerator":
        os.environ.setdefault("XLA_FLAGS", "--xla_gpu_deterministic_ops=true")  # as in a run
    else:
        devices = "1" if "not devices" in config.option.markexpr else "8"
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        os.environ.setdefault("JAX_NUM_CPU_DEVICES", devices)
    os.environ.setdefault("JAX_NUMPY_DTYPE_PROMOTION", "strict")
    os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for name in ("KERAS_HOME", "MPLCONFIGDIR"):  # else in the user's home
        os.environ.setdefault(name, str(CACHE / "libraries"))
    if not hasattr(config, "workerinput"):  # the first process of this run
        CACHE.mkdir(mode=0o700, exist_ok=True)
        if sum(path.stat().st_size for path in CACHE.iterdir()) > CACHE_BYTES:
            shutil.rmtree(CACHE)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """For `-m` and one of MARKS: files without such a test need not be imported."""
    marker = config.option.markexpr.split(" ")[0]
    if marker in MARKS and collection_path.name.startswith("test_"):
        return f"mark.{marker}" not in collection_path.read_text() or None
    return None


def refuse_network(event: str, arguments: tuple) -> None:
    """An audit hook (PEP 578), so it sees every Python library's sockets: this machine alone."""
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        host = str(arguments[1][0])
        if host not in ("localhost", "::1", "0.0.0.0") and not host.startswith("127."):
            raise RuntimeError(f"a test wants to connect to {arguments[1]}; tests need no network")


sys.addaudithook(refuse_network)


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Callable[[str, Callable[[Path], None]], Path]:
    """once(name, make) -> a folder that `make(folder)` filled, once for all workers; read only."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def made(name: str, make: Callable[[Path], None]) -> Path:
        folder, done = root / f"once-{name}", root / f"once-{name}.done"
        with open(root / f"once-{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the other workers wait for the first
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return made


pytest_plugins = ["dataset_fixture", "launch_fixture"]

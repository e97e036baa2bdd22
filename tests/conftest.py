"""Strict JAX for every test: eight simulated CPU devices, no silent promotion of types or ranks."""

import os
import signal
import sys

# A command in the background of a shell starts with Ctrl-C ignored, and its children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Read by JAX when it is first imported, hence before anything else.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_NUMPY_DTYPE_PROMOTION", "strict")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")

# PyTorch from PyPI brings Triton, whose LLVM crashes a process that holds TensorFlow's. None means
# "not installed" to whoever imports it.
sys.modules["triton"] = None  # type: ignore[assignment]


def refuse_network(event: str, arguments: tuple) -> None:
    """An audit hook (PEP 578), so it sees every Python library's sockets: this machine alone."""
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        host = str(arguments[1][0])
        if host not in ("localhost", "::1", "0.0.0.0") and not host.startswith("127."):
            raise RuntimeError(f"a test wants to connect to {arguments[1]}; tests need no network")


sys.addaudithook(refuse_network)

"""Strict JAX for every test: eight simulated CPU devices, no silent promotion of types or ranks."""

import os

# Read by JAX when it is first imported, hence before anything else.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_NUMPY_DTYPE_PROMOTION", "strict")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")

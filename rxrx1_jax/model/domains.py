"""Domains of a batch (its experiments), and sums over pairs of them or of rows.

Shapes are static and nothing here divides by zero, so all of it runs in a compiled, differentiated
step, whatever experiments a batch holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp


def domains(batch: Mapping[str, jax.Array], dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Domain of each row, and rows of each domain: int [N], [N].

    A domain is numbered by its first row in the batch, so any number of them has room. Masked rows
    get N, which segment sums leave out.
    """
    valid, experiment = batch["mask"].astype(bool), batch["experiment"]
    same = (experiment[:, None] == experiment[None, :]) & valid[None, :]
    domain = jnp.where(valid, jnp.argmax(same, axis=1), len(valid))
    return domain, jax.ops.segment_sum(valid.astype(dtype), domain, len(valid))


def gram(x: jax.Array) -> jax.Array:
    """Inner products of rows, [N, d] -> [N, N], not in the reduced precision of accelerators."""
    return jnp.matmul(x, x.T, precision=jax.lax.Precision.HIGHEST)


def squared_distances(products: jax.Array) -> jax.Array:
    """|a|^2 + |b|^2 - 2 ab of all pairs, from the products [N, N]."""
    squares = jnp.diagonal(products)
    return squares[:, None] + squares[None, :] - 2 * products


def mean_where(chosen: jax.Array, values: jax.Array) -> jax.Array:
    """Mean of the chosen values; 0 if none is."""
    number = jnp.maximum(jnp.sum(chosen), 1).astype(values.dtype)
    return jnp.sum(jnp.where(chosen, values, 0)) / number

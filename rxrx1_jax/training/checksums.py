"""Whether a state is whole: finite, and the bits that were saved."""

from typing import Any

import jax
import jax.numpy as jnp


@jax.jit
def checks(state: Any) -> dict[str, tuple[jax.Array, jax.Array]]:
    """For each part of the state: are all values finite, and the sum of all bits, weighted by odd
    numbers so that neither a changed bit nor exchanged values go unnoticed."""

    def bits(x: jax.Array) -> jax.Array:
        if x.dtype == jnp.bool_:
            return x.astype(jnp.uint32)
        unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
        return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)

    def checksum(x: jax.Array) -> jax.Array:
        weights = 2 * jax.lax.iota(jnp.uint32, x.size) + 1
        return jnp.sum(bits(x).reshape(-1) * weights, dtype=jnp.uint32)

    parts: dict[str, list[jax.Array]] = {}
    for path, leaf in jax.tree.leaves_with_path(state):
        name = jax.tree_util.keystr(path[:1], simple=True)
        parts.setdefault(name, []).append(jnp.asarray(leaf))
    return {
        name: (
            jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves])),
            jnp.stack([jnp.uint32(2 * i + 1) * checksum(x) for i, x in enumerate(leaves)]).sum(
                dtype=jnp.uint32
            ),
        )
        for name, leaves in parts.items()
    }

"""Memory for the images of a batch on a CPU: that of an earlier batch which nobody sees any more.

The C library takes what a large result needs from the kernel and gives it back after use. The
kernel zeroes it page by page: for float32 images this costs more than to read or to normalise them.
Over a donated array XLA writes for nothing. GPUs and TPUs have allocators of their own.
"""

import sys
from collections import deque
from functools import partial

import jax
import jax.numpy as jnp


class Images:
    """The images of one iterator, all of one shape, dtype and sharding; for one thread at a time.

    It holds the two handed out last. The consumer mostly has the last one still when it asks for
    the next batch; then the one before it may serve that which is being made.
    """

    def __init__(self) -> None:
        self._handed_out: deque[jax.Array] = deque(maxlen=2)

    def handed_out(self, image: jax.Array) -> None:
        if _on_one_cpu(image):
            self._handed_out.append(image)

    def memory(
        self,
        planes: jax.Array,
        crop: int,
        dtype: jax.typing.DTypeLike,
        sharding: jax.sharding.Sharding | None,
    ) -> jax.Array | None:
        """What to donate for the images that are made of `planes`; None where it would not help.

        `dtype` [N, H, W, 6] for uint8 [N, 6, H, W], or H = W = crop if given. Nobody else has this
        array: it is new, or nothing refers to it any more.
        """
        if not _on_one_cpu(planes):
            return None
        for k in range(len(self._handed_out)):
            # 2: the deque's and the argument's. A donated array that NumPy or DLPack still looks at
            # the runtime copies; one that is used by a computation under way it waits for.
            if sys.getrefcount(self._handed_out[k]) == 2 and not _shared(self._handed_out[k]):
                image = self._handed_out[k]
                del self._handed_out[k]
                return image
        n, channels, height, width = planes.shape
        return _zeros((n, crop or height, crop or width, channels), dtype, sharding)


def _on_one_cpu(array: jax.Array) -> bool:
    return [device.platform for device in array.devices()] == ["cpu"]


def _shared(image: jax.Array) -> bool:
    """Whether another array of JAX is, or may hold, the same memory."""
    address = image.unsafe_buffer_pointer()
    try:
        return any(
            len(other.devices()) > 1 or other.unsafe_buffer_pointer() == address
            for other in jax.live_arrays("cpu")
            if other is not image and other.size >= image.size
        )
    except RuntimeError:  # another thread has deleted one meanwhile
        return True


@partial(jax.jit, static_argnums=(0, 1, 2))  # jnp.zeros alone would transfer a 0
def _zeros(
    shape: tuple[int, ...], dtype: jax.typing.DTypeLike, sharding: jax.sharding.Sharding | None
) -> jax.Array:
    return jnp.zeros(shape, dtype, device=sharding)

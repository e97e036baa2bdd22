"""What heads, losses and augmentations are told beside their batch, plug-ins included."""

from typing import NamedTuple

import jax

from rxrx1_jax.data.images import Vocabulary


class Info(NamedTuple):
    """Static but for `progress`, so that shapes may depend on the rest in a compiled step."""

    vocabulary: Vocabulary  # names of the codes in a batch; their numbers are sizes of layers
    train: bool = False
    progress: jax.Array | float = 1.0  # f32 [], 0..1 of the training; 1 in evaluation

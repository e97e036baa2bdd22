"""An `Info` for networks that are tested without a dataset."""

import numpy as np

from rxrx1_jax.data.images import Vocabulary
from rxrx1_jax.data.info import Info


def make_info(classes: int, train: bool = False) -> Info:
    return Info(Vocabulary(("HUVEC", "RPE"), ("HUVEC-01", "RPE-01"), np.arange(classes)), train)

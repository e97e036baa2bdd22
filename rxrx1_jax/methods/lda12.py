"""LDA-12, which needs no network: `lda` on twelve numbers of a site.

They are mean and log standard deviation of each of six channels, over those of its plate's
controls. LDA-12 says how much of an answer lies in the intensities alone. A network that is not
ahead of it shows nothing about morphology.
"""

import numpy as np
import pyarrow as pa

from rxrx1_jax.data.images import Sites
from rxrx1_jax.data.normalisation import STD_FLOOR
from rxrx1_jax.data.splits import Split, classes_of, site_roles
from rxrx1_jax.methods.evidence import Evidence, Method, scores
from rxrx1_jax.methods.lda import lda
from rxrx1_jax.training.predictions import predictions_table


def intensities(sites: Sites, pixels: int) -> np.ndarray:
    """f32 [n, 2 C]: (mean - control mean) / control sd, and log(sd / control sd), of each channel.

    Args:
      sites: with the sums of their pixels, and the statistics of the controls of their plates.
      pixels: of one plane.
    """
    mean = sites["pixel_sum"] / pixels
    sd = np.sqrt(np.maximum(sites["pixel_sum2"] / pixels - mean**2, 0))
    control_sd = np.maximum(sites["control_std"], STD_FLOOR)
    z = (mean - sites["control_mean"]) / control_sd
    return np.hstack([z, np.log(np.maximum(sd, STD_FLOOR) / control_sd)]).astype(np.float32)


def lda12(sites: Sites, pixels: int, split: Split, protocol: str) -> pa.Table:
    """What LDA-12 predicts of the split's test sites: the columns of predictions.parquet.

    protocol: of the split; it says what the classes are.
    """
    rows = np.concatenate([split.train, split.test])
    found, classes = sites[rows], classes_of(sites, protocol)
    evidence = Evidence(
        found, site_roles(split, len(sites))[rows], intensities(found, pixels), None, classes
    )
    return predictions_table(sites[split.test], classes, scores(Method(classify=lda), evidence))

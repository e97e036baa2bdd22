"""tf.data through `tfds.load`, after one import: `train`, `test`, an experiment, a union.

PYTHONPATH=. python examples/load_with_tfds.py DATA_DIR rxrx1/synthetic

Started in the root of the clone; where the project is installed, PYTHONPATH is not needed.
"""

# /// script
# dependencies = ["tensorflow", "tensorflow-datasets", "importlib_resources", "deflate",
#   "opencv-python-headless"]
# ///

import sys

if len(sys.argv) != 3:
    sys.exit("usage: PYTHONPATH=. python examples/load_with_tfds.py DATA_DIR rxrx1/CONFIG")

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

import tfds_builder.rxrx1  # noqa: F401  (makes the dataset known to TFDS)

data_dir, name = sys.argv[1:]


def normalise(site):
    """The paper's: each channel by the mean and sd of the control wells of its plate."""
    mean, std = site["control_mean"][:, None, None], site["control_std"][:, None, None]
    image = (tf.cast(site["image"], tf.float32) - mean) / std
    return tf.transpose(image, (1, 2, 0)), site["sirna_id"]


for split in ("train", "test", "HUVEC-01", "HUVEC-01+HUVEC-02"):
    sites = tfds.load(name, split=split, data_dir=data_dir)
    means, labels = [], []
    for images, sirna_ids in sites.map(normalise).batch(8):  # float32 [N, H, W, 6], int32 [N]
        means.append(tf.reduce_mean(images))
        labels += sirna_ids.numpy().tolist()
    treatments = sites.filter(lambda site: site["well_type"] == "treatment")  # no controls
    print(f"{split}: {len(sites)} sites, {len(set(labels))} siRNAs", end=", ")
    print(f"mean {np.mean(means):.4f}, {len(list(treatments))} of treatments")

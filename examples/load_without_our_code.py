"""tf.data and NumPy with nothing of ours installed: TFDS reads the folder as it is.

python examples/load_without_our_code.py DATA_DIR/rxrx1/synthetic/VERSION
"""

# /// script
# dependencies = ["tensorflow", "tensorflow-datasets", "importlib_resources"]
# ///

import sys

import numpy as np
import tensorflow_datasets as tfds

if len(sys.argv) != 2:
    sys.exit("usage: python examples/load_without_our_code.py DATA_DIR/rxrx1/CONFIG/VERSION")
builder = tfds.builder_from_directory(sys.argv[1])
partitions = builder.info.metadata["partitions"]  # {"train": [experiments], "test": [...]}
train, test = ("+".join(partitions[name]) for name in ("train", "test"))

for split in (train, test, "HUVEC-01", "HUVEC-01+HUVEC-02"):
    sites = list(tfds.as_numpy(builder.as_dataset(split=split)))
    images = np.stack([site["image"] for site in sites])  # uint8 [N, 6, H, W], counts
    mean, std = (
        np.stack([site[field] for site in sites])[..., None, None]  # [N, 6, 1, 1]
        for field in ("control_mean", "control_std")
    )
    normalised = (images - mean) / std
    treatments = [site for site in sites if site["well_type"] == b"treatment"]  # no controls
    print(f"{split}: {len(sites)} sites, all {images.shape}, mean {normalised.mean():.4f}", end="")
    print(f", {len(treatments)} of treatments")

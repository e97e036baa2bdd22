"""Grain at random over ArrayRecord files, without TensorFlow and without our code.

tfds build tfds_builder/rxrx1 --config=synthetic --file_format=array_record --data_dir=DATA_DIR
python examples/load_with_grain.py DATA_DIR/rxrx1/synthetic/VERSION
"""

# /// script
# dependencies = ["tensorflow-datasets", "importlib_resources", "grain"]
# ///

import sys

import grain
import numpy as np
import tensorflow_datasets as tfds


def normalise(site):
    """The paper's: each channel by the mean and sd of the control wells of its plate."""
    mean, std = site["control_mean"][:, None, None], site["control_std"][:, None, None]
    image = (site["image"].astype(np.float32) - mean) / std
    return {"image": image, "label": np.int32(site["sirna_id"]), "site_id": site["site_id"]}


if len(sys.argv) != 2:
    sys.exit("usage: python examples/load_with_grain.py DATA_DIR/rxrx1/CONFIG/VERSION")
builder = tfds.builder_from_directory(sys.argv[1])
sites = builder.as_data_source(split="+".join(builder.info.metadata["partitions"]["train"]))
dataset = grain.MapDataset.source(sites).shuffle(seed=0).map(normalise).batch(8)
seen, means = [], []
for batch in dataset.to_iter_dataset(grain.ReadOptions(num_threads=4)):
    means.append(batch["image"].mean())
    seen += batch["site_id"].tolist()
print(f"train: {len(sites)} sites, last batch {batch['image'].shape}", end=", ")
treatments = grain.MapDataset.source(sites).filter(lambda s: s["well_type"] == b"treatment")
count = len(list(treatments.to_iter_dataset()))
print(f"mean {np.mean(means):.4f}, {count} of treatments", end=", ")
print(f"{len(set(seen))} seen, first {seen[0].decode()}")

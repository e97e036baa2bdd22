"""PyTorch's DataLoader at random over ArrayRecord files, without TensorFlow and without our code.

tfds build tfds_builder/rxrx1 --config=synthetic --file_format=array_record --data_dir=DATA_DIR
python examples/load_with_pytorch.py DATA_DIR/rxrx1/synthetic/VERSION
"""

# /// script
# dependencies = ["tensorflow-datasets", "importlib_resources", "torch"]
# ///

import sys

import tensorflow_datasets as tfds
import torch


class Sites(torch.utils.data.Dataset):
    """(image float32 [6, H, W], sirna_id, site_id) of the sites of some experiments."""

    def __init__(self, folder, partition):
        self.builder = tfds.builder_from_directory(folder)
        self.split = "+".join(self.builder.info.metadata["partitions"][partition])
        self.source = self.builder.as_data_source(split=self.split)

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        site = self.source[index]
        mean, std = site["control_mean"][:, None, None], site["control_std"][:, None, None]
        return (site["image"] - mean) / std, site["sirna_id"], site["site_id"].decode()


def treatments(sites):
    """Without the controls: the records are read for it, the images are not decoded."""
    as_stored = {"image": tfds.decode.SkipDecoding()}
    kinds = sites.builder.as_data_source(split=sites.split, decoders=as_stored)
    rows = [i for i in range(len(kinds)) if kinds[i]["well_type"] == b"treatment"]
    return torch.utils.data.Subset(sites, rows)


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/load_with_pytorch.py DATA_DIR/rxrx1/CONFIG/VERSION")
    sites = Sites(sys.argv[1], "train")
    loader = torch.utils.data.DataLoader(
        sites,
        batch_size=8,
        shuffle=True,
        generator=torch.Generator().manual_seed(0),
        num_workers=2,
        multiprocessing_context="spawn",  # forked workers crash on the open files
    )
    seen, means = [], []
    for images, _sirna_ids, site_ids in loader:
        means.append(images.mean().item())
        seen += site_ids
    print(f"train: {len(sites)} sites, last batch {tuple(images.shape)}", end=", ")
    print(f"mean {sum(means) / len(means):.4f}, {len(treatments(sites))} of treatments", end=", ")
    print(f"{len(set(seen))} seen, first {seen[0]}")


if __name__ == "__main__":  # spawned workers import this file
    main()

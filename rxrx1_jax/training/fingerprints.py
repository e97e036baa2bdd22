"""By what a run knows its data and its split again, whatever the dataset's version."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from rxrx1_jax.data import splits
from rxrx1_jax.data.images import Images

# What a run of version 0.2 holds of its data: these columns in the order of the records, and rows.
FINGERPRINTS_0_2 = ("data_fingerprint", "split_fingerprint")
COLUMNS_0_2 = (
    "cell_type", "column", "control_mean", "control_std", "dataset", "experiment", "plate", "row",
    "sirna", "sirna_id", "site", "site_id", "well", "well_id", "well_type",
)  # fmt: skip


def describe_data(images: Images, split: splits.Split, classes: np.ndarray) -> dict[str, Any]:
    """Version and fingerprints of the data and of the split, as this version and as 0.2 made them.

    data: labels, control statistics and pixels (`adler32`) of all sites. split: role of each site.
    Both go by site_id. order: that of the records, which the draws of a training depend on.
    """
    sites, roles = images.sites, splits.site_roles(split, len(images.sites))
    order = np.argsort(sites["site_id"], kind="stable")
    named, given = sites["site_id"][order].tolist(), roles[order].tolist()
    content = ("sirna_id", "control_mean", "control_std", "adler32")
    columns = [sites[name][order] for name in content if name in (sites.dtype.names or ())]
    used = [f"{name},{role}" for name, role in zip(named, given, strict=True) if role != "other"]
    parts = (np.flatnonzero(roles == name) for name in ("id_test", "val"))
    rows = [np.flatnonzero(roles == name) for name in ("train", "test")]
    rows += [classes, *(part for part in parts if len(part))]
    old = [sites[name] for name in COLUMNS_0_2 if name in (sites.dtype.names or ())]
    return {
        "version": images.about["version"],
        "data": _fingerprint(["\n".join(named).encode(), *_as_bytes(columns)]),
        "split": _fingerprint(["\n".join(used).encode()]),
        "order": _fingerprint(["\n".join(sites["site_id"].tolist()).encode()]),
        "data_fingerprint": _fingerprint(_as_bytes(old)),
        "split_fingerprint": _fingerprint(_as_bytes(rows)),
    }


def _as_bytes(arrays: Iterable[np.ndarray]) -> Iterator[bytes]:
    for array in arrays:
        yield f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes()


def _fingerprint(parts: Iterable[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()

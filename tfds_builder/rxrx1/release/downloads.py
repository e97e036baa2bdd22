"""The public archives of RxRx1, fetched by TFDS's download manager and checked.

TFDS keeps finished downloads and never fetches them twice, but it starts an interrupted file
again; for 49 GB over a weak line, `curl -C -` into a folder given as --manual_dir resumes. TFDS
records SHA-256 sums in checksums.tsv; the publishers give MD5 sums, so those are checked here.
"""

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.download.util import DownloadError
from tqdm import tqdm

from ..machine import is_remote
from .metadata import ReleaseError


class Archive(NamedTuple):
    """A published file and what its publisher says of it."""

    url: str
    bytes: int
    md5: str

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


# Sizes and MD5: the listing of the bucket, github.com/recursionpharma/rxrx-datasets.
_BUCKET = "https://storage.googleapis.com/rxrx/rxrx1"
OFFICIAL = (
    Archive(f"{_BUCKET}/rxrx1-metadata.zip", 1_333_687, "777e959ca0bce5a2aa7f9f9d456aee7e"),
    Archive(f"{_BUCKET}/rxrx1-images.zip", 49_039_640_485, "f75ffa93b917e8a82e27e0c3a2b3425f"),
)
# 1,200 sites of the release, cut by the MONAI project for its tests (468 MB; its README gives the
# MD5, not the size in bytes).
MONAI = (
    Archive(
        "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
        "rxrx1_subset_monai.zip",
        0,
        "5eea02f6b0a6d8cbce6ad66949257438",
    ),
)
ARCHIVES = {"official": OFFICIAL, "monai": MONAI}
_BLOCK = 1 << 22


def fetch(
    archives: Sequence[Archive], dl_manager: tfds.download.DownloadManager, folder: epath.PathLike
) -> Path:
    """Downloads what is missing; links the checked archives into `folder` by their own names.

    The link is made after the check, so a file that has its link is not read again.

    Raises:
      ReleaseError: a file cannot be fetched, or is not what its publisher published; or `folder`
        is in a bucket, which has no links.
    """
    if is_remote(folder):
        raise ReleaseError(f"{folder}: archives are fetched to a disk, give a local --download_dir")
    folder = Path(folder)
    wanted = [archive for archive in archives if not (folder / archive.name).exists()]
    folder.mkdir(parents=True, exist_ok=True)
    by_hand = f"fetch {' and '.join(a.url for a in wanted)} by hand and pass their --manual_dir"
    needed, free = sum(archive.bytes for archive in wanted), shutil.disk_usage(folder).free
    if needed > free:
        raise ReleaseError(
            f"{folder}: the downloads take {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free;"
            f" free some, choose another --download_dir, or {by_hand}"
        )
    try:
        paths = dl_manager.download({archive.name: archive.url for archive in wanted})
    except (OSError, DownloadError) as error:  # those of `requests` are OSErrors
        raise ReleaseError(f"the download failed ({error}); try again, or {by_hand}") from error
    for archive in wanted:
        path = Path(paths[archive.name])
        _check(archive, path)
        partial = folder / f"{archive.name}.{os.getpid()}.tmp"
        partial.unlink(missing_ok=True)
        partial.symlink_to(path.absolute())
        partial.replace(folder / archive.name)
    return folder


def _check(archive: Archive, path: Path) -> None:
    """Compares size and MD5 of a downloaded file with the published ones."""
    size = path.stat().st_size
    digest = hashlib.md5(usedforsecurity=False)
    bar = tqdm(total=size, desc=f"Checking {archive.name}", unit="B", unit_scale=True)
    if not archive.bytes or size == archive.bytes:
        with bar, path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                bar.update(len(block))
    if (archive.bytes and size != archive.bytes) or digest.hexdigest() != archive.md5:
        expected = f"{archive.bytes} bytes, " if archive.bytes else ""
        raise ReleaseError(
            f"{path}, downloaded from {archive.url}, is damaged or has changed: it has {size} bytes"
            f" and MD5 {digest.hexdigest()}, expected {expected}MD5 {archive.md5}; delete it and"
            " its .INFO file and run the same command again"
        )

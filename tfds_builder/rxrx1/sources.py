"""Where the release of a build comes from: a folder, the generator, or a download that was asked.

`tfds.load` builds what is not there. For the release that would be a download of 49 GB, begun by a
line that only wants to read. So a download needs a DownloadConfig, which `tfds build` always gives.
"""

from __future__ import annotations

import contextlib

import tensorflow_datasets as tfds
from etils import epath

from . import machine, synthetic
from .builder_configs import Rxrx1Config
from .release.downloads import ARCHIVES, fetch
from .release.metadata import ReleaseError
from .release.storage import SUBFOLDERS


def check(
    config: Rxrx1Config,
    downloads_to: epath.Path,
    data_dir: epath.PathLike,
    asked: tfds.download.DownloadConfig | None,
) -> None:
    """Refuses, before anything is written, what cannot be built or was not asked for.

    Args:
      downloads_to: download directory.
      data_dir: as users give it.
      asked: what `download_and_prepare` was called with.

    Raises:
      ReleaseError: names the option that helps.
    """
    if asked is not None and asked.max_examples_per_split is not None:
        raise ReleaseError(
            "--max_examples_per_split leaves a dataset that passes for a whole one; build a part"
            ' under a name of its own, for example --config=\'{"name": "pilot", "experiments":'
            ' ["HUVEC-01"], "sites": [1]}\''
        )
    if asked is not None and asked.manual_dir and config.screen is None:
        machine.expand(asked.manual_dir)
        return
    machine.local(downloads_to)
    if config.screen is not None or _is_release(downloads_to / "manual"):
        return
    folder = _archives(config, downloads_to)
    if asked is None and not all((folder / a.name).exists() for a in ARCHIVES[config.archives]):
        download, stored = (f"{size / 1e9:.1f} GB" for size in config.sizes)
        raise ReleaseError(
            f"rxrx1/{config.name} is not built in {data_dir}; build it with `python -m"
            f" tfds_builder.rxrx1 build --config={config.name} --data_dir={data_dir}`"
            f" ({download} to download, about {stored} to store; with --manual_dir, no download)."
            " In Python: download_and_prepare(download_config=tfds.download.DownloadConfig())"
        )


def folder(
    config: Rxrx1Config,
    dl_manager: tfds.download.DownloadManager,
    manual_dir: epath.PathLike | None,
) -> epath.PathLike:
    """Where the release lies, after it was generated or downloaded if need be."""
    if config.screen is not None:
        screen = synthetic.Screen(size=config.source_size or config.size, **config.screen)
        return synthetic.write_release(screen, dl_manager.download_dir / f"rxrx1_{config.name}")
    if manual_dir:  # given but not there is a typing error, no wish to download 49 GB
        return machine.expand(manual_dir)
    with contextlib.suppress(AssertionError):  # TFDS's way to say that it is not there or empty
        if _is_release(dl_manager.manual_dir):
            return dl_manager.manual_dir
    folder = _archives(config, dl_manager.download_dir)
    return fetch(ARCHIVES[config.archives], dl_manager, folder)


def _is_release(folder: epath.Path) -> bool:
    """Whether TFDS's default manual_dir holds this dataset, and not what others need."""
    names = ("metadata.csv", "images", *SUBFOLDERS, *(a.name for a in ARCHIVES["official"]))
    return any((folder / name).exists() for name in names)


def _archives(config: Rxrx1Config, downloads_to: epath.Path) -> epath.Path:
    """One folder for all configs that need the archives: they are checked once."""
    return downloads_to / f"rxrx1_archives_{config.archives}"

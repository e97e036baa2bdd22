"""The configs of the dataset: what is stored, and of which release."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds

from . import downloads
from .release import CHANNELS, Selection


@dataclasses.dataclass(eq=False)
class Rxrx1Config(tfds.core.BuilderConfig):
    """What is stored, and of which release.

    Attributes:
      size: stored height and width, pixels.
      source_size: height and width of the release's images, pixels; None: the same.
      crop: stores the central `size` x `size` pixels; else squares of pixels are averaged.
      channels: how many of the six channels are stored, in the paper's order.
      wilds: gives `dataset` the values of WILDS v1.0 (train, val, test).
      experiments, plates, wells, sites: the part of the release that is read and stored, such as
        ("HUVEC-01",), (1, 2), ("B02",), (1,); None: all.
      archives: what is downloaded when there is no --manual_dir.
      present_only: leaves out sites without images; else they are an error.
      screen: parameters of `synthetic.Screen` other than `size` ({}: its defaults); the release is
        then generated under the download directory.
    """

    size: int = 512
    source_size: int | None = None
    crop: bool = False
    channels: int = len(CHANNELS)
    wilds: bool = False
    experiments: Sequence[str] | None = None
    plates: Sequence[int] | None = None
    wells: Sequence[str] | None = None
    sites: Sequence[int] | None = None
    archives: Sequence[downloads.Archive] = downloads.OFFICIAL
    present_only: bool = False
    screen: Mapping[str, Any] | None = None

    @property
    def selection(self) -> Selection:
        """The part of the release as the reader takes it; lists come from JSON."""
        parts = {f.name: getattr(self, f.name) for f in dataclasses.fields(Selection)}
        return Selection(**{k: None if v is None else tuple(v) for k, v in parts.items()})


BUILDER_CONFIGS = [
    Rxrx1Config(
        name="synthetic",
        description="A small synthetic screen with planted biology and batch effects, 64 px."
        " It generates its release itself. Not real data.",
        size=64,
        screen={},
    ),
    Rxrx1Config(name="native", description="The release, or any part of it, 512 px."),
    Rxrx1Config(
        name="px256",
        description="256 px: squares of 2 x 2 pixels averaged.",
        size=256,
        source_size=512,
    ),
    Rxrx1Config(
        name="px128",
        description="128 px: squares of 4 x 4 pixels averaged.",
        size=128,
        source_size=512,
    ),
    Rxrx1Config(
        name="wilds",
        description="As WILDS v1.0: central 256 px, first three channels, its partition.",
        size=256,
        source_size=512,
        crop=True,
        channels=3,
        wilds=True,
    ),
    Rxrx1Config(
        name="monai",
        description="1,200 real sites that the MONAI project cut from the release, 512 px.",
        archives=downloads.MONAI,
        present_only=True,
    ),
]

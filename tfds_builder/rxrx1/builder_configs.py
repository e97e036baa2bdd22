"""The configs of the dataset: what is stored, and of which release."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds

from .images import View
from .release.downloads import ARCHIVES
from .release.metadata import CHANNELS
from .release.selection import Selection
from .synthetic import Screen

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # it becomes a folder
_TYPES = {
    "name": str,
    "size": int,
    "source_size": int | None,
    "crop": bool,
    "channels": int,
    "wilds": bool,
    "archives": str,
    "present_only": bool,
    "screen": Mapping | None,
}


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
      archives: what is downloaded when there is no --manual_dir, one of `downloads.ARCHIVES`.
      present_only: leaves out sites without images; else they are an error.
      screen: parameters of `synthetic.Screen` other than `size` ({}: its defaults); the release is
        then generated under the download directory.

    Raises:
      ValueError: names the field, what was found and what was expected.
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
    archives: str = "official"
    present_only: bool = False
    screen: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for field, kind in _TYPES.items():
            value = getattr(self, field)
            if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
                wanted = getattr(kind, "__name__", kind)
                raise ValueError(f"Rxrx1Config.{field}: found {value!r}, expected {wanted}")
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"Rxrx1Config.name: found {self.name!r}, expected letters, digits, '_', '-', '.'"
            )
        if self.archives not in ARCHIVES:
            expected = ", ".join(ARCHIVES)
            raise ValueError(f"Rxrx1Config.archives: found {self.archives!r}, expected {expected}")
        self.view(self.source_size or self.size)  # these two refuse what cannot be
        _ = self.selection
        if self.screen:
            if "size" in self.screen:
                raise ValueError("Rxrx1Config.screen holds size; give the size of the config alone")
            Screen(**self.screen)

    def view(self, source_size: int) -> View:
        """How the stored images are made from a release's, of `source_size` pixels."""
        return View(self.size, source_size, self.crop, self.channels)

    @property
    def selection(self) -> Selection:
        """The part of the release as the reader takes it."""
        return Selection(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Selection)})

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the content of the dataset, for its metadata.json."""
        selection = dataclasses.asdict(self.selection)
        fields = ("size", "crop", "channels", "wilds", "present_only")
        return {
            "selection": {name: list(values) for name, values in selection.items() if values},
            "config": {
                **{name: getattr(self, name) for name in fields},
                "source_size": self.source_size or self.size,
                "screen": None if self.screen is None else dict(self.screen),
            },
        }


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
        description="As WILDS v1.0: central 256 px, first three channels, its partition (id_test is"
        " site 2 of train).",
        size=256,
        source_size=512,
        crop=True,
        channels=3,
        wilds=True,
    ),
    Rxrx1Config(
        name="monai",
        description="1,200 real sites that the MONAI project cut from the release, 512 px.",
        archives="monai",
        present_only=True,
    ),
]

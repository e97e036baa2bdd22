"""The configs of the dataset: what is stored, and of which release."""

import dataclasses
import difflib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from .images import View
from .machine import matching
from .release.downloads import ARCHIVES
from .release.metadata import CHANNELS, ReleaseError
from .release.selection import Selection
from .synthetic import Screen

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # it becomes a folder
_TYPES = {
    "name": str,
    "description": str | None,
    "size": int,
    "source_size": int | None,
    "crop": bool,
    "channels": int,
    "wilds": bool,
    "archives": str,
    "present_only": bool,
    "screen": Mapping | None,
}
WHOLE = {"official": 125_510, "monai": 1_200}  # sites in the archives
_DOWNLOAD = {name: sum(archive.bytes for archive in of) for name, of in ARCHIVES.items()}
_DOWNLOAD["monai"] = 468_000_000  # its publisher gives no more digits
# Stored bytes of a raw byte by size (mean of six real sites). The WILDS crop of 256 px has 0.40.
_COMPRESSION = {512: 0.36, 256: 0.42, 128: 0.48}


def check_names(what: str, given: Collection[str], known: Collection[str]) -> None:
    """Refuses the first name that is not known, and gives the nearest one.

    Raises:
      ReleaseError: names both.
    """
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ReleaseError(f"{what}: {name!r} is unknown; {hint}expected {', '.join(known)}")


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
      ReleaseError: names the field, what was found and what was expected.
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

    def __new__(cls, *_: Any, **fields: Any) -> "Rxrx1Config":
        known = [field.name for field in dataclasses.fields(cls)]
        check_names("Rxrx1Config", fields, known)
        if fields and "name" not in fields:
            raise ReleaseError("Rxrx1Config.name is missing: it becomes the folder of the dataset")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for field, kind in _TYPES.items():
            value = getattr(self, field)
            if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
                wanted = getattr(kind, "__name__", kind)
                raise ReleaseError(f"Rxrx1Config.{field}: found {value!r}, expected {wanted}")
        for field in ("version", "supported_versions", "release_notes", "tags"):
            if getattr(self, field):
                raise ReleaseError(f"Rxrx1Config.{field}: it is the builder's own; leave it out")
        if not _NAME.fullmatch(self.name):
            raise ReleaseError(
                f"Rxrx1Config.name: found {self.name!r}, expected letters, digits, '_', '-', '.'"
            )
        check_names("Rxrx1Config.archives", [self.archives], ARCHIVES)
        self.view(self.source_size or self.size)  # these two refuse what cannot be
        _ = self.selection
        if self.screen:
            if "size" in self.screen:
                raise ReleaseError("Rxrx1Config.screen holds size; give that of the config alone")
            check_names("Rxrx1Config.screen", self.screen, Screen.__dataclass_fields__)
            Screen(**self.screen)

    def view(self, source_size: int) -> View:
        """How the stored images are made from a release's, of `source_size` pixels."""
        return View(self.size, source_size, self.crop, self.channels)

    @property
    def selection(self) -> Selection:
        """The part of the release as the reader takes it."""
        return Selection(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Selection)})

    @property
    def sizes(self) -> tuple[int, int]:
        """Bytes to download and, about, to store; 0: not known beforehand, or nothing."""
        if self.screen is not None:
            return 0, 0
        sites = WHOLE[self.archives] if self.selection.is_all else 0
        return _DOWNLOAD[self.archives], sites * self.site_bytes

    @property
    def site_bytes(self) -> int:
        """Bytes to store of a site, about."""
        return round(self.channels * self.size**2 * _COMPRESSION.get(self.size, 0.4))

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
    Rxrx1Config(
        name="four_cell_types",
        description="As synthetic, with experiments of all four cell types. Not real data.",
        size=64,
        screen={"rpe": 5, "hepg2": 5, "u2os": 5},
    ),
    Rxrx1Config(
        name="gpu_screen",
        description="A synthetic screen of the real proportions: 33 experiments, 1,108 siRNAs, 128"
        " px. Not real data.",
        size=128,
        screen={"huvec": 16, "rpe": 7, "hepg2": 7, "u2os": 3, "treatments": 277},
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

NAMES = [config.name for config in BUILDER_CONFIGS]


class AnyName(dict[str, Rxrx1Config]):
    """Configs by name. TFDS opens a name that is not in it without our code, hence without
    `train` and `test`; so all names are said to be, and `named` looks for them."""

    def __contains__(self, name: object) -> bool:
        return True


def named(name: str | None, data_dir: epath.Path, version: str) -> Rxrx1Config:
    """The config of a name: one of ours, or of a dataset that was built in `data_dir`.

    Raises:
      ReleaseError: no name, or an unknown one; lists the names there are.
    """
    if name is None:
        raise ReleaseError(
            f"rxrx1 has no default config, name one: rxrx1/native ({', '.join(NAMES)}; synthetic is"
            " not RxRx1 but generated images)"
        )
    for config in BUILDER_CONFIGS:
        if config.name == name:
            return config
    path = data_dir / "rxrx1" / name / version / "metadata.json"
    stored = json.loads(path.read_text()) if _NAME.fullmatch(name) and path.exists() else {}
    if "config" not in stored:
        built = [path.name for path in matching(data_dir / "rxrx1", "[A-Za-z0-9]*")]
        known = dict.fromkeys([*NAMES, *(other for other in built if other != name)])
        check_names(f"config of rxrx1 in {data_dir}", [name], known)
    return Rxrx1Config(name=name, **stored["config"], **stored["selection"])

"""Images with one row of metadata per site: what training, prediction and the methods read.

`records.Records` is a dataset on disk, `InMemory` holds a user's own arrays.
"""

import zlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

# Structured array [n], one row per site: the fields of TEXT, NUMBERS, CHANNEL_STATISTICS and
# `adler32`; of a dataset also shard int32, offset and size int64 (bytes): where its image lies.
Sites = np.ndarray

METADATA = (  # the columns of a release's metadata.csv
    "site_id", "well_id", "cell_type", "dataset", "experiment", "plate", "well", "site",
    "well_type", "sirna", "sirna_id",
)  # fmt: skip
# What a column holds where a user gives none. site_id and well_id: the number of the row.
TEXT = {
    "site_id": "", "well_id": "", "cell_type": "", "dataset": "", "experiment": "", "well": "",
    "well_type": "treatment", "sirna": "",
}  # fmt: skip
NUMBERS = {"plate": 1, "site": 1, "sirna_id": -1, "row": 0, "column": 0, "release_row": -1}  # int32
CHANNEL_STATISTICS = {  # one value per channel
    "control_mean": np.float32, "control_std": np.float32,  # counts
    "pixel_sum": np.int64, "pixel_sum2": np.int64,  # of this image's pixels and their squares
}  # fmt: skip
CONTROL_TYPES = ("positive_control", "negative_control")

_LEVELS = np.arange(256)


class DatasetError(ValueError):
    """Data that is missing, damaged, or of another form than expected."""


class Images(Protocol):
    """Images by row number; any thread may read.

    Attributes:
      sites: see `Sites`.
      image_shape: (channels, height, width).
      about: name, version and source of the data.
    """

    sites: Sites
    image_shape: tuple[int, int, int]
    about: Mapping[str, str]

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> np.ndarray:
        """uint8 [channels, height, width], counts."""
        ...


class Vocabulary(NamedTuple):
    """Names -> codes. A run saves it, so that a code means the same on another dataset."""

    cell_types: tuple[str, ...]  # sorted
    experiments: tuple[str, ...]  # sorted
    classes: np.ndarray  # int32 [K], sirna_ids ascending

    @classmethod
    def of(cls, sites: Sites, classes: Iterable[int]) -> Self:
        names = ("cell_type", "experiment")
        cell_types, experiments = (np.unique(sites[name]).tolist() for name in names)
        classes = np.unique(np.fromiter(classes, np.int32))
        return cls(tuple(cell_types), tuple(experiments), classes)

    def codes(self, column: str, values: Any) -> np.ndarray:
        """Position of each value, int32; -1 where it is unknown.

        Args:
          column: "cell_type", "experiment" or "sirna_id".
          values: names or sirna_ids, of any shape.
        """
        fields = {"cell_type": "cell_types", "experiment": "experiments", "sirna_id": "classes"}
        known = np.array(getattr(self, fields[column]))
        values = np.asarray(values)
        if not len(known):
            return np.full(values.shape, -1, np.int32)
        position = np.minimum(np.searchsorted(known, values), len(known) - 1)
        return np.where(known[position] == values, position, -1).astype(np.int32)

    def to_json(self) -> dict[str, list]:
        return {name: np.asarray(part).tolist() for name, part in self._asdict().items()}

    @classmethod
    def from_json(cls, tree: Mapping[str, list]) -> Self:
        classes = np.array(tree["classes"], np.int32)
        return cls(tuple(tree["cell_types"]), tuple(tree["experiments"]), classes)


class InMemory:
    """A user's own arrays as `Images`.

    Args:
      planes: uint8 [n, C, H, W], counts. Not copied; may be a memory map.
      sites: columns by name (a dict, a DataFrame, a structured array), n values each: those of
        TEXT and NUMBERS that are known. A missing one is filled.
      control_mean, control_std: [n, C] or [C], counts. None: those of the plate, by
        `control_statistics`.
      about: name, version and source of the data.

    Raises:
      DatasetError: names the argument, what it is and what was expected.
    """

    def __init__(
        self,
        planes: np.ndarray,
        sites: Any = None,
        control_mean: Any = None,
        control_std: Any = None,
        about: Mapping[str, str] | None = None,
    ):
        shape: tuple[int, ...] = getattr(planes, "shape", ())
        dtype = getattr(planes, "dtype", type(planes).__name__)
        if len(shape) != 4 or dtype != np.uint8 or not all(shape):
            raise DatasetError(f"planes: {dtype} {shape}, expected uint8 [n, C, H, W], none 0")
        if (control_mean is None) != (control_std is None):
            raise DatasetError("control_mean, control_std: one is given, expected both or none")
        self.planes = planes
        self.image_shape: tuple[int, int, int] = (shape[1], shape[2], shape[3])
        self.about = {"name": "in memory", "version": "", "source": "arrays", **(about or {})}
        columns = _columns(sites, shape[0])
        columns |= {"pixel_sum": [], "pixel_sum2": [], "adler32": []}
        for image in planes:
            first, second = pixel_sums(image)
            columns["pixel_sum"].append(first)
            columns["pixel_sum2"].append(second)
            columns["adler32"].append(zlib.adler32(image.tobytes()))
        for name, value in (("control_mean", control_mean), ("control_std", control_std)):
            columns[name] = np.zeros(shape[:2]) if value is None else _statistic(name, value, shape)
        self.sites: Sites = structured(columns)
        if control_mean is None:
            pixels = shape[2] * shape[3]
            mean, std = control_statistics(self.sites, pixels)
            self.sites["control_mean"], self.sites["control_std"] = mean, std

    def __len__(self) -> int:
        return len(self.planes)

    def __getitem__(self, row: int) -> np.ndarray:
        """Image of one site, uint8 [C, H, W], a fresh writable array."""
        return np.array(self.planes[row])


def structured(columns: Mapping[str, Any]) -> Sites:
    """The columns as one array. Text becomes as wide as its longest value."""
    kinds = {"adler32": np.uint32, "shard": np.int32, "offset": np.int64, "size": np.int64}
    kinds |= {name: np.str_ for name in TEXT} | {name: np.int32 for name in NUMBERS}
    arrays = {n: np.array(c, (kinds | CHANNEL_STATISTICS)[n]) for n, c in columns.items()}
    layout = [(name, column.dtype, column.shape[1:]) for name, column in arrays.items()]
    sites = np.empty(len(next(iter(arrays.values()))), layout)
    for name, column in arrays.items():
        sites[name] = column
    return sites


def pixel_sums(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the pixels and of their squares, int64 [C] each, of uint8 [C, H, W]."""
    histograms = np.stack([np.bincount(plane.ravel(), minlength=256) for plane in image])
    return histograms @ _LEVELS, histograms @ _LEVELS**2


def control_statistics(
    sites: Sites, pixels: int, by: str = "plate"
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std, float32 [n, C] each in counts, of the control pixels of each site's group.

    The controls of a plate may be missing, or a channel of them may be constant. Then those of the
    experiment serve, then all sites of the plate, then all of the experiment: the rule of the
    builder (`controls.SOURCES`), with the same bits. Where a channel is constant everywhere, the
    first of these that there is serves; its std is 0.

    Args:
      sites: all sites of the experiments.
      pixels: of one plane.
      by: "plate" or "experiment".
    """
    control = np.isin(sites["well_type"], CONTROL_TYPES)
    every = np.ones(len(sites), np.bool_)
    _, experiment = np.unique(sites["experiment"], return_inverse=True)
    _, plate = np.unique(sites[["experiment", "plate"]], return_inverse=True)
    sources = [(plate, control), (experiment, control), (plate, every), (experiment, every)]
    chosen = np.full((2, *sites["pixel_sum"].shape), np.nan)
    served = np.zeros(len(sites), np.bool_)
    for group, rows in sources if by == "plate" else sources[1::2]:
        mean, std = group_statistics(sites[rows], group[rows], group.max() + 1, pixels)
        mean, std = mean[group], std[group]
        usable = (std > 0).all(1)  # false for nan, a group without rows
        take = ~served & (usable | (np.isnan(chosen[0, :, 0]) & ~np.isnan(std[:, 0])))
        chosen[:, take] = mean[take], std[take]
        served |= usable
    return chosen[0].astype(np.float32), chosen[1].astype(np.float32)


def group_statistics(
    sites: Sites, group: np.ndarray, groups: int, pixels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std, float64 [groups, C], of all pixels of each group's sites; nan of none.

    Args:
      group: the group of each site, 0 to groups - 1.
      pixels: of one plane.
    """
    shape = (groups, sites["pixel_sum"].shape[1])
    n = (np.bincount(group, minlength=groups) * pixels).astype(object)[:, None]
    first, second = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    np.add.at(first, group, sites["pixel_sum"])
    np.add.at(second, group, sites["pixel_sum2"])
    s1, s2 = first.astype(object), second.astype(object)  # n * s2 does not fit in 64 bits
    filled = n[:, 0] > 0
    mean, variance = np.full(shape, np.nan), np.full(shape, np.nan)
    mean[filled] = (s1[filled] / n[filled]).astype(np.float64)
    square = (n * s2 - s1 * s1)[filled] / (n * n)[filled]
    variance[filled] = square.astype(np.float64)
    return mean, np.sqrt(variance)


def _columns(given: Any, n: int) -> dict[str, Any]:
    """A user's columns, checked, and the fills of those that are missing."""
    given = {} if given is None else given
    names = list(given.dtype.names or ()) if isinstance(given, np.ndarray) else list(given)
    numbers = [str(row) for row in range(n)]
    columns: dict[str, Any] = {name: [fill] * n for name, fill in (TEXT | NUMBERS).items()}
    columns |= {"site_id": numbers, "well_id": numbers, "release_row": range(n)}
    for name in names:
        if name not in columns:
            raise DatasetError(f"sites: column {name!r}, expected some of {', '.join(columns)}")
        values = np.asarray(given[name])
        if values.shape != (n,):
            raise DatasetError(f"sites: {name} has shape {values.shape}, expected ({n},)")
        if name in NUMBERS and values.dtype.kind not in "iu":
            raise DatasetError(f"sites: {name} is {values.dtype}, expected integers")
        columns[name] = [str(value) for value in values.tolist()] if name in TEXT else values
    if "site_id" in names and "well_id" not in names:
        columns["well_id"] = columns["site_id"]
    ids, counts = np.unique(columns["site_id"], return_counts=True)
    if len(ids) < n:
        raise DatasetError(f"sites: site_id {ids[counts > 1][0]} occurs twice, expected once")
    return columns


def _statistic(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    value = np.asarray(value)
    if value.shape not in (shape[:2], shape[1:2]) or value.dtype.kind not in "iuf":
        raise DatasetError(
            f"{name}: {value.dtype} {value.shape}, expected numbers of shape {shape[:2]} or"
            f" {shape[1:2]}"
        )
    if not (np.isfinite(value) & (value >= 0) & (value <= 255)).all():
        raise DatasetError(f"{name}: a value is no count, expected 0 to 255")
    return np.broadcast_to(value, shape[:2])

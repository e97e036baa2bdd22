"""One site as a stored example: the features of the dataset, their encoding, where the image lies.

Only feature types that ship with TFDS, so that `tfds.builder_from_directory` reads the data with
none of this code. TFDS would compress the image with zlib; libdeflate writes the same kind of
stream in a third of the time, so the finished bytes go into the example directly.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import deflate
import numpy as np
import tensorflow_datasets as tfds

from .controls import pixel_sums
from .images import View, read_image
from .release.metadata import CHANNELS, Site
from .release.release import Release

CLASSES = 1139  # ids 0 to 1138; -1 stands for none
ZLIB_LEVEL = 6  # of libdeflate; 9 saves 2 % of the disk for four times the work, 1 costs 6 %

Statistics = Mapping[tuple[str, int], tuple[np.ndarray, np.ndarray]]  # those of each plate


class StoredImage(NamedTuple):
    """Where the zlib stream of an image lies in its record, and what it holds."""

    start: int  # byte of the record
    size: int  # bytes
    record: int  # bytes of the whole record
    adler32: int  # of the planes
    pixel_sum: list[int]  # [C]
    pixel_sum2: list[int]  # [C], of squares


class Encoded(NamedTuple):
    """A site as it is stored."""

    example: bytes  # a serialized tf.train.Example
    image: StoredImage


def locate(example: bytes, stream: bytes, image: np.ndarray) -> StoredImage:
    """Describes the zlib stream of `image` in a record that holds it."""
    _, first, second = pixel_sums(image).tolist()
    checksum = int.from_bytes(stream[-4:], "big")  # RFC 1950: a stream ends with it
    return StoredImage(example.index(stream), len(stream), len(example), checksum, first, second)


@dataclasses.dataclass(frozen=True, eq=False)
class SiteEncoder:
    """site -> what is stored of it: the same bytes in every thread, process and run.

    Attributes:
      release: where the images lie.
      view: how the stored image comes from the release's.
      statistics: {(experiment, plate): (mean, std)}, float32 [channels] each, counts.
    """

    release: Release
    view: View
    statistics: Statistics

    def __call__(self, site: Site) -> Encoded:
        image = read_image(self.release, site, self.view)
        values = fields(site, self.statistics)
        connectors, serializer = _connectors(self.view.channels, self.view.size)
        example = {name: connectors[name].encode_example(value) for name, value in values.items()}
        stream = example["image"] = bytes(deflate.zlib_compress(image.tobytes(), ZLIB_LEVEL))
        record = serializer.get_tf_example(example).SerializeToString(deterministic=True)
        return Encoded(record, locate(record, stream, image))


def fields(
    site: Site, statistics: Statistics, rows: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """What is stored of a site beside its image; with `rows`, release_row too."""
    mean, std = statistics[site.experiment, site.plate]
    place = {"row": site.row, "column": site.column, "control_mean": mean, "control_std": std}
    found = {} if rows is None else {"release_row": rows.get(site.site_id, -1)}
    return {**site._asdict(), **place, **found}


@functools.cache
def _connectors(
    channels: int, size: int
) -> tuple[tfds.features.FeaturesDict, tfds.core.example_serializer.ExampleSerializer]:
    connectors = tfds.features.FeaturesDict(features(channels, size))
    specs = connectors.get_serialized_info()
    return connectors, tfds.core.example_serializer.ExampleSerializer(specs)


def features(channels: int, size: int) -> dict[str, tfds.features.FeatureConnector]:
    """The features of one site: `channels` planes of `size` x `size` pixels, and its metadata."""
    text, integer = tfds.features.Text, tfds.features.Scalar
    order = ", ".join(CHANNELS[:channels])
    return {
        "image": tfds.features.Tensor(
            shape=(channels, size, size),
            dtype=np.uint8,
            encoding="zlib",
            doc=f"Planes: {order}; counts.",
        ),
        "site_id": text(doc="HUVEC-01_1_B02_1"),
        "well_id": text(doc="HUVEC-01_1_B02"),
        "cell_type": text(doc="HUVEC, RPE, HEPG2 or U2OS"),
        "dataset": text(doc="The partition: train or test; in config wilds also val."),
        "experiment": text(doc="The batch, HUVEC-01; also the name of the split."),
        "plate": integer(np.int32, doc="1 to 4"),
        "well": text(doc="B02"),
        "row": integer(np.int32, doc="Row of the well, 1 (A) to 16 (P)."),
        "column": integer(np.int32, doc="Column of the well, 1 to 24."),
        "site": integer(np.int32, doc="Field of view in the well, 1 or 2."),
        "well_type": text(doc="treatment, positive_control or negative_control"),
        "sirna": text(doc="ThermoFisher id; EMPTY if untreated; empty text if unknown."),
        "sirna_id": tfds.features.ClassLabel(
            num_classes=CLASSES,
            doc="0 to 1107 treatments, 1108 to 1137 positive controls, 1138 untreated, -1 unknown.",
        ),
        "control_mean": tfds.features.Tensor(
            shape=(channels,),
            dtype=np.float32,
            doc="Pixel mean of the plate's control wells, counts; metadata.json's"
            " control_statistics names what serves where there are none.",
        ),
        "control_std": tfds.features.Tensor(
            shape=(channels,),
            dtype=np.float32,
            doc="Pixel standard deviation of the same wells, counts; zero if constant.",
        ),
    }

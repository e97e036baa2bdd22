"""RxRx1 as a TFDS dataset: one example a site, one split an experiment.

    tfds build tfds_builder/rxrx1 --config=synthetic --data_dir=DIR
    tfds build tfds_builder/rxrx1 --config=native --data_dir=DIR --manual_dir=RELEASE

The stored data uses feature types of TFDS only: `tfds.builder_from_directory` reads it without
this code. No Apache Beam pipeline is involved; one machine builds the dataset with threads.
"""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import deflate
import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from . import controls, images, release

ZLIB_LEVEL = 6  # of libdeflate; 9 saves 2 % of the disk for four times the work, 1 costs 6 %
DATA_LICENCE = "RxRx1 images and metadata: CC BY-NC-SA 4.0 (Recursion Pharmaceuticals)."
SYNTHETIC_LICENCE = "Generated images, under the licence of the code; they hold no RxRx1 data."

Examples = Iterator[tuple[str, dict[str, Any]]]


@dataclasses.dataclass(eq=False)
class Rxrx1Config(tfds.core.BuilderConfig):
    """One release to build from.

    Attributes:
      size: height and width of the images, pixels.
      screen: parameters of `synthetic.Screen` other than `size` ({}: its defaults); the release is
        then generated under the download directory. None: it lies extracted in `--manual_dir`.
    """

    size: int = 512
    screen: Mapping[str, Any] | None = None


class Builder(tfds.core.GeneratorBasedBuilder):
    """RxRx1: six-channel fluorescence microscopy of siRNA-treated cells in 51 batches."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    Only config `native` needs files by hand. Download and extract rxrx1-images.zip (49 GB) and
    rxrx1-metadata.zip from https://storage.googleapis.com/rxrx/rxrx1/ into one folder, and pass
    it as --manual_dir. It (or its subfolder rxrx1/) then holds metadata.csv and images/.
    """
    BUILDER_CONFIGS = [
        Rxrx1Config(
            name="synthetic",
            description="A small synthetic screen with planted biology and batch effects, 64 px."
            " It generates its release itself. Not real data.",
            size=64,
            screen={},
        ),
        Rxrx1Config(
            name="native",
            description="The official release (August 2020), or any part of it, 512 px.",
        ),
    ]

    builder_config: Rxrx1Config

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features(self.builder_config.size)),
            homepage="https://www.rxrx.ai/rxrx1",
            license=DATA_LICENCE if self.builder_config.screen is None else SYNTHETIC_LICENCE,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Examples]:
        """Validates the whole release and reads the controls before anything is written."""
        size = self.builder_config.size
        root = release.find_release(self._release_folder(dl_manager))
        sites = release.read_release(root)
        images.check_images(root, sites, size)
        sums = controls.control_sums(sites, lambda site: images.read_image(root, site, size))
        statistics = controls.plate_statistics(sites, sums)
        synthetic = self.builder_config.screen is not None
        self.info.metadata["source"] = "synthetic" if synthetic else "release"
        self.info.metadata["channels"] = list(release.CHANNELS)
        self.info.metadata["control_pixels"] = controls.sums_to_json(sums)

        # TFDS would compress with zlib on its only thread, three times the work of libdeflate.
        # Our examples bring finished zlib streams; the stock feature (and so features.json and
        # every reader) stays as it is, only the encoder of this one object lets bytes through.
        self.info.features["image"].encode_example = bytes

        by_experiment: dict[str, list[release.Site]] = {}
        for site in sites:
            by_experiment.setdefault(site.experiment, []).append(site)
        return {
            experiment: self._generate_examples(root, members, statistics)
            for experiment, members in by_experiment.items()
        }

    def _generate_examples(
        self,
        root: epath.PathLike,
        sites: Sequence[release.Site],
        statistics: Mapping[tuple[str, int], tuple[np.ndarray, np.ndarray]],
    ) -> Examples:
        """Yields (site_id, example) in the order of `sites`, encoded in a pool of threads."""
        size = self.builder_config.size

        def encode(site: release.Site) -> tuple[str, dict[str, Any]]:
            image = images.read_image(root, site, size)
            mean, std = statistics[site.experiment, site.plate]
            return site.site_id, {
                "image": deflate.zlib_compress(image.tobytes(), ZLIB_LEVEL),
                **site._asdict(),
                "row": site.row,
                "column": site.column,
                "control_mean": mean,
                "control_std": std,
            }

        yield from controls.map_in_order(encode, sites)

    def _release_folder(self, dl_manager: tfds.download.DownloadManager) -> epath.PathLike:
        """The folder of --manual_dir, or of the screen that is generated here."""
        config = self.builder_config
        if config.screen is None:
            return dl_manager.manual_dir  # raises, with the instructions, where it is missing
        folder = dl_manager.download_dir / f"rxrx1_{config.name}"
        write_screen({"size": config.size, **config.screen}, folder)
        return folder


def write_screen(parameters: Mapping[str, Any], folder: epath.PathLike) -> None:
    """Runs the generator of the synthetic screen, in an interpreter of its own.

    Its workers are spawned, and a spawned worker begins by importing the program that started it:
    that would be TFDS's command line with TensorFlow, or a caller's script without a main guard.

    Raises:
      ReleaseError: the generator failed; it has said why on stderr.
    """
    from . import synthetic  # here: else `python -m ...synthetic` would import itself first

    options = dataclasses.asdict(synthetic.Screen(**parameters))  # refuses bad ones here
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    package = synthetic.__package__  # "rxrx1" if TFDS loaded this folder, or "tfds_builder.rxrx1"
    source = os.fspath(epath.Path(__file__).parents[package.count(".") + 1])
    path = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", f"{package}.synthetic", os.fspath(folder), *arguments]
    status = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}).returncode
    if status:
        raise release.ReleaseError(
            f"the synthetic screen was not written to {folder} (exit status {status}); the reason"
            " stands above"
        )


def features(size: int) -> dict[str, tfds.features.FeatureConnector]:
    """The features of one site; `size` in pixels."""
    text, integer = tfds.features.Text, tfds.features.Scalar
    channels = len(release.CHANNELS)
    return {
        "image": tfds.features.Tensor(
            shape=(channels, size, size),
            dtype=np.uint8,
            encoding="zlib",
            doc="Six planes in the order of metadata.json's channels, counts.",
        ),
        "site_id": text(doc="HUVEC-01_1_B02_1"),
        "well_id": text(doc="HUVEC-01_1_B02"),
        "cell_type": text(doc="HUVEC, RPE, HEPG2 or U2OS"),
        "dataset": text(doc="The official partition: train or test."),
        "experiment": text(doc="The batch, HUVEC-01; also the name of the split."),
        "plate": integer(np.int32, doc="1 to 4"),
        "well": text(doc="B02"),
        "row": integer(np.int32, doc="Row of the well, 1 (A) to 16 (P)."),
        "column": integer(np.int32, doc="Column of the well, 1 to 24."),
        "site": integer(np.int32, doc="Field of view in the well, 1 or 2."),
        "well_type": text(doc="treatment, positive_control or negative_control"),
        "sirna": text(doc="ThermoFisher id; EMPTY if untreated; empty text if unknown."),
        "sirna_id": integer(
            np.int32,
            doc="0 to 1107 treatments, 1108 to 1137 positive controls, 1138 untreated, -1 unknown.",
        ),
        "control_mean": tfds.features.Tensor(
            shape=(channels,),
            dtype=np.float32,
            doc="Pixel mean of the plate's positive and negative control wells, counts.",
        ),
        "control_std": tfds.features.Tensor(
            shape=(channels,),
            dtype=np.float32,
            doc="Pixel standard deviation of the same wells, counts; zero if constant.",
        ),
    }

"""RxRx1 as a TFDS dataset: one example a site, one split an experiment.

    tfds build tfds_builder/rxrx1 --config=synthetic --data_dir=DIR
    tfds build tfds_builder/rxrx1 --config=native --data_dir=DIR --manual_dir=RELEASE

The stored data uses feature types of TFDS only: `tfds.builder_from_directory` reads it without
this code. Records are written by `shards`, which resumes, not by TFDS's own writer.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from typing import Any

import tensorflow_datasets as tfds
import tree
from etils import epath

from . import controls, examples, images, machine, shards, sources, staging, table
from .builder_configs import BUILDER_CONFIGS, NAMES, AnyName, Rxrx1Config, named
from .examples import ZLIB_LEVEL, SiteEncoder
from .partitions import EachOnce, Info
from .release.metadata import CHANNELS, ReleaseError
from .release.release import Release, open_release

DATA_LICENCE = "RxRx1 images and metadata: CC BY-NC-SA 4.0 (Recursion Pharmaceuticals)."
SYNTHETIC_LICENCE = "Generated images, under the licence of the code; they hold no RxRx1 data."
# Of the release's test experiments, those that WILDS v1.0 validates on.
WILDS_VALIDATION = ("HEPG2-08", "HUVEC-17", "RPE-08", "U2OS-04")


class Builder(tfds.core.dataset_builder.FileReaderBuilder):
    """RxRx1: six-channel fluorescence microscopy of siRNA-treated cells in 51 batches."""

    VERSION = tfds.core.Version("2.1.0")  # its only place: tests and the Makefile read it here
    RELEASE_NOTES = {
        "2.1.0": "Another synthetic screen: its siRNAs show in shapes and textures, hardly in"
        " intensities. The records of the release are those of 2.0.0.",
        "2.0.0": "sites.parquet, the table of all sites and of the places of their images, from"
        " which training reads; `train`, `test` and `val` are splits. The records are those of"
        " 1.1.0: `python -m tfds_builder.rxrx1 table DIR` gives them the table.",
        "1.1.0": "Configs px256, px128, wilds and monai; zip archives, the layouts of Kaggle and"
        " WILDS; control statistics and partitions in the metadata; plates without controls.",
        "1.0.0": "First version.",
    }
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    The folder holds rxrx1-images.zip (49 GB) and rxrx1-metadata.zip from
    https://storage.googleapis.com/rxrx/rxrx1/ as they are, or extracted (metadata.csv and images/),
    or the files of the Kaggle competition, or the WILDS v1.0 release. Without it the archives are
    downloaded.
    """
    BUILDER_CONFIGS = BUILDER_CONFIGS
    builder_configs = AnyName({config.name: config for config in BUILDER_CONFIGS})

    builder_config: Rxrx1Config

    def __init__(
        self,
        *,
        data_dir: epath.PathLike | None = None,
        config: str | Rxrx1Config | None = None,
        **kwargs: Any,
    ) -> None:
        data_dir = machine.expand(data_dir or tfds.core.constants.get_default_data_dir())
        if not isinstance(config, Rxrx1Config):
            config = named(config, data_dir, str(self.VERSION))
        ours = config in BUILDER_CONFIGS  # given by name, or a pickled builder would hold a copy
        if not ours and config.name in NAMES:
            raise ReleaseError(f"Rxrx1Config.name: {config.name!r} is taken, choose another name")
        super().__init__(data_dir=data_dir, config=config.name if ours else config, **kwargs)
        if not self.data_path.exists():
            self.info.declared = config.sizes

    @tfds.core.utils.classproperty
    @classmethod
    def default_builder_config(cls) -> Rxrx1Config:
        raise tfds.core.registered.DatasetNotFoundError("rxrx1 has no default config: name one")

    def get_default_builder_config(self) -> Rxrx1Config:
        """TFDS notes this one for readers without our code; the build removes it again."""
        return self.builder_config

    def _info(self) -> tfds.core.DatasetInfo:
        config, described = self.builder_config, self.get_metadata()
        return Info(
            builder=self,
            description=described.description,
            citation=described.citation,
            features=tfds.features.FeaturesDict(examples.features(config.channels, config.size)),
            homepage="https://www.rxrx.ai/rxrx1",
            supervised_keys=("image", "sirna_id"),
            license=DATA_LICENCE if config.screen is None else SYNTHETIC_LICENCE,
            metadata=tfds.core.MetadataDict(),
        )

    def download_and_prepare(self, **kwargs: Any) -> None:
        """Builds the dataset, or what is left of a build that was stopped. Arguments: see TFDS.

        Raises:
          ReleaseError: something is wrong with the release or the images; names the file. Or the
            dataset is there already, built with other settings under the same name.
          RuntimeError: another build of this dataset is running.
          OSError: among others, the disk is full; what is finished is kept.
        """
        config = kwargs.get("download_config")
        folder, version = self.data_path.parent, str(self.version)
        replaces = config is not None and config.download_mode.overwrite_dataset
        if self.data_path.exists() and not replaces:
            self._check_settings()
            self.info.check_lengths()
            super().download_and_prepare(**kwargs)  # writes nothing: the data may be read-only
            if machine.matching(folder, f".building-{version}*"):  # killed at the very end
                with contextlib.suppress(OSError, RuntimeError):
                    with machine.build_lock(folder, version):
                        staging.remove_leftovers(folder, version)
            return
        downloads_to = kwargs.get("download_dir") or epath.Path(self._data_dir_root) / "downloads"
        kwargs["download_dir"] = machine.expand(downloads_to)
        file_format = kwargs.get("file_format") or self.info.file_format
        if getattr(file_format, "value", file_format) == "array_record":
            machine.local(self.data_path)
        sources.check(self.builder_config, kwargs["download_dir"], self._data_dir_root, config)
        self.info.declared = 0, 0  # TFDS would ask for the space even if the files are there
        try:
            with machine.build_lock(folder, version):
                staging.remove_leftovers(folder, version)
                super().download_and_prepare(**kwargs)
                staging.remove_leftovers(folder, version)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"stopped; what is finished lies in {folder}, the same command goes on from there"
            ) from None
        finally:
            with contextlib.suppress(OSError):
                (folder.parent / ".config").rmtree()

    def _check_settings(self) -> None:
        """Refuses to pass a dataset off as what the config asks for when it is something else."""
        found, wanted = self.info.metadata or {}, self.builder_config.settings
        if "config" not in found:
            return  # of a version that did not record them
        differ = [
            f"{name} {found[part].get(name)!r}, asked for {wanted[part].get(name)!r}"
            for part in wanted
            for name in sorted(found[part].keys() | wanted[part].keys())
            if found[part].get(name) != wanted[part].get(name)
        ]
        if differ:
            raise ReleaseError(
                f"{self.data_path} is there already, built with {'; '.join(differ)}: choose another"
                " name for the config, or replace it with --overwrite"
            )

    def _download_and_prepare(
        self,
        dl_manager: tfds.download.DownloadManager,
        download_config: tfds.download.DownloadConfig | None = None,
    ) -> None:
        """Writes the records into `self.data_path`, here TFDS's temporary folder."""
        download_config = download_config or tfds.download.DownloadConfig()
        config = self.builder_config
        folder = sources.folder(config, dl_manager, download_config.manual_dir)
        release = self._open_release(folder)
        source_size = config.source_size or config.size
        if release.layout == "wilds" and config.size <= images.RGB_SIZE:
            source_size = images.RGB_SIZE  # cropped already
        view = config.view(source_size)
        plan = shards.plan_shards(release.sites, view.channels * view.size**2)
        stage = staging.Staging(
            os.fspath(self.data_path.parent),
            str(self.version),
            hashlib.sha256(f"{release.fingerprint} {view} {ZLIB_LEVEL}".encode()).hexdigest(),
            self.info.file_format.value,
        )
        stage.check_space(plan, config.site_bytes)  # before the images, whose check takes long
        statistics = self._check_and_read_controls(release, view, plan, stage)
        # Workers of Beam receive the encoder, so it goes without the table of all sites.
        images_only = dataclasses.replace(release, sites=(), rows={})
        encode = SiteEncoder(images_only, view, statistics.plate)
        written = shards.write_shards(
            plan,
            encode,
            stage,
            beam_runner=download_config.beam_runner,
            beam_options=download_config.beam_options,
        )
        self.info.metadata.update(self._metadata(release, view, statistics))
        self.info.set_splits(
            tfds.core.splits.SplitDict(
                tfds.core.SplitInfo(
                    name=experiment,
                    shard_lengths=[part.examples for part in parts],
                    num_bytes=sum(part.bytes for part in parts),
                    filename_template=self._get_filename_template(experiment),
                )
                for experiment, parts in written.items()
            )
        )
        files = stage.place(plan, self.data_path)
        records = (
            (number, examples.fields(site, statistics.plate, release.rows), image)
            for number, shard in enumerate(plan)
            for site, image in zip(shard.sites, stage.stored_images(shard), strict=True)
        )
        sites = table.make(records, view.channels, stage.file_format == "tfrecord")
        self.info.metadata["table"] = table.write(sites, self.data_path, files, view.size)

    def _as_dataset(self, split: Any = None, **kwargs: Any) -> Any:
        return super()._as_dataset(split=EachOnce(split), **kwargs)

    def as_data_source(self, split: Any = None, **kwargs: Any) -> Any:
        """As TFDS's, where `all` names each site once."""
        split = {name: name for name in self.info.splits} if split is None else split
        return super().as_data_source(split=tree.map_structure(EachOnce, split), **kwargs)

    def _open_release(self, folder: epath.PathLike) -> Release:
        """The selected sites, with the partition that the config asks for."""
        config = self.builder_config
        release = open_release(folder, config.selection)
        sites = release.sites
        if config.present_only:
            sites = tuple(s for s in sites if release.storage.exists(release.image_names(s)[0]))
            logging.info("%d of the tables' %d sites have images", len(sites), len(release.sites))
            if not sites:
                raise ReleaseError(
                    f"{release.storage.root} holds no image of the sites in its tables, the first:"
                    f" {release.storage.describe(release.image_names(release.sites[0])[0])}"
                )
        if config.wilds:
            sites = tuple(
                site._replace(dataset="val") if site.experiment in WILDS_VALIDATION else site
                for site in sites
            )
        return dataclasses.replace(release, sites=sites)

    def _log_download_bytes(self) -> None:
        print(f"Building {self.info.full_name} in {self.data_path}")  # TFDS's: "Unknown size"

    def _check_and_read_controls(
        self,
        release: Release,
        view: images.View,
        plan: Sequence[staging.Shard],
        stage: staging.Staging,
    ) -> controls.Statistics:
        """Checks the images that are not in finished shards yet; a resumed build keeps the rest.

        It takes images of the same release for unchanged: who replaces some between a kill and the
        next build removes the folder `.building-*` beside the versions first.
        """
        finished = {}
        if stage.folder.exists():
            stage.prepare()
            finished = stage.finished(plan)
        missing = [site for s in plan if s.name not in finished for site in s.sites]
        images.check_images(dataclasses.replace(release, sites=tuple(missing)), view)
        kept = stage.folder / "control_pixels.json"
        if kept.exists():
            sums = controls.sums_from_json(json.loads(kept.read_text()))
            return controls.choose_statistics(
                {(s.experiment, s.plate) for s in release.sites}, sums
            )
        statistics = controls.read_statistics(
            release.sites, lambda site: images.read_image(release, site, view)
        )
        stage.prepare()
        machine.write_whole(kept, json.dumps(statistics.to_json()["control_pixels"]).encode())
        return statistics

    def _metadata(
        self, release: Release, view: images.View, statistics: controls.Statistics
    ) -> dict[str, Any]:
        """What metadata.json says of the dataset."""
        partitions: dict[str, set[str]] = {}
        for site in release.sites:
            partitions.setdefault(site.dataset, set()).add(site.experiment)
        source: dict[str, Any] = {"source": release.source}
        if self.builder_config.screen is not None:  # what was planted goes along with the images
            truth = json.loads((epath.Path(release.storage.root) / "truth.json").read_text())
            source = {"source": "synthetic", "sirnas": truth["sirnas"]}
        return {
            **source,
            "layout": release.layout,
            **self.builder_config.settings,
            "channels": list(CHANNELS[: view.channels]),
            "partitions": {name: sorted(found) for name, found in sorted(partitions.items())},
            **statistics.to_json(),
        }

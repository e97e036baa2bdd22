"""Any public layout of RxRx1 -> one validated table of sites.

    official (2020)                             metadata.csv, images/<EXPERIMENT>/Plate<1-4>/
                                                    <WELL>_s<1|2>_w<1-6>.png, 8-bit grayscale
    Kaggle (2019), see kaggle.py                the same below train/ and test/, and four tables
    WILDS v1.0 (p-lambda/wilds,                 metadata.csv, images/<EXPERIMENT>/Plate<1-4>/
        wilds/datasets/rxrx1_dataset.py)            <WELL>_s<1|2>.png, 256 px RGB

Which one it is, is seen from what lies there, extracted or in zip archives (storage.py). Partial
releases are normal input. Rows whose images are missing are refused by `images.check_images`.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from etils import epath

from . import kaggle
from .metadata import CHANNELS, DATASETS, WILDS_DATASETS, ReleaseError, Site, read_metadata
from .selection import ALL, Selection
from .storage import Storage

# SHA-256 of metadata.csv in rxrx1-metadata.zip.
OFFICIAL_METADATA = "799ed719d2be136db29fef6fcb7a51ceb94d1de9d43421a49b16409329a2f1b7"
# The Kaggle files list four wells that the official metadata does not; images of such wells may
# lie in an archive and must not stop a build. More than this share means a table was cut off.
_STRAY_SHARE = 0.01
_STRAYS_SHOWN = 5
_NAMES_JUDGED = 100  # by the majority of so many, as a few files may have strayed in
_IMAGE = re.compile(r"(?P<well>[A-P][0-9]{2})_s(?P<site>[12])(_w(?P<channel>[1-6]))?\.png")
_PLATE = re.compile(r"Plate([1-4])")


@dataclasses.dataclass(frozen=True)
class Release:
    """A validated table of sites and where their images lie. Can be pickled."""

    layout: str  # "official" | "kaggle" | "wilds"
    storage: Storage
    sites: tuple[Site, ...]  # the selected ones, by experiment, plate, well (row-major), site
    rows: Mapping[str, int]  # site_id -> row of metadata.csv, from 0; Kaggle's tables have none
    official: bool  # whether metadata.csv is the published file, byte by byte

    def image_names(self, site: Site) -> list[str]:
        """The six PNG files of a site in the order of `CHANNELS`; in the WILDS layout the one."""
        tree = site.dataset if self.layout == "kaggle" else "images"
        stem = f"{tree}/{site.experiment}/Plate{site.plate}/{site.well}_s{site.site}"
        if self.layout == "wilds":
            return [f"{stem}.png"]
        return [f"{stem}_w{channel}.png" for channel in range(1, len(CHANNELS) + 1)]

    @property
    def source(self) -> str:
        """What reports call it: "release" only if it is the published one."""
        return "release" if self.official else f"release in {self.storage.root}"

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the layout and all rows; the same in every process and folder."""
        return hashlib.sha256(json.dumps([self.layout, self.sites]).encode()).hexdigest()


def open_release(root: epath.PathLike, selection: Selection = ALL) -> Release:
    """Detects the layout, reads and validates the tables, lists the images.

    Args:
      root: folder of the release, extracted or zipped, or an archive; see `storage.Storage`.
      selection: the part to keep. Every row is validated; images are looked at of this part only.

    Raises:
      ReleaseError: names the file, line and field at fault, or what is missing.
    """
    storage = Storage(root)
    layout = _layout(storage)
    if layout == "kaggle":
        sites, rows, official = _kaggle_sites(storage, selection), {}, False
    else:
        datasets = WILDS_DATASETS if layout == "wilds" else DATASETS
        source = storage.describe("metadata.csv")
        data = storage.read("metadata.csv")
        official = hashlib.sha256(data).hexdigest() == OFFICIAL_METADATA
        table = read_metadata(data, source, datasets)
        sites = [site for _, site in table.values()]
        rows = {site_id: row for row, site_id in enumerate(table)}
        selection.check(sites, source)
        if selection.is_all:
            images = len(CHANNELS) if layout == "official" else 1
            strays = [
                image.name
                for image in _images(storage, "images")
                if image.site_id not in table or bool(image.channel) != (layout == "official")
            ]
            _report_strays(storage, strays, len(table) * images)
    chosen = [site for site in sites if selection.takes(site)]
    if not chosen:
        raise ReleaseError(
            f"no site of the release in {storage.root} matches all of {selection}; select others"
        )
    return Release(layout, storage, tuple(sorted(chosen, key=_position)), rows, official)


def places(release: Release, site_ids: Collection[str]) -> dict[str, str]:
    """{site_id: "<table>, line <n>"}; looked up again when there is a fault to report."""
    storage = release.storage
    if release.layout == "kaggle":
        wells = kaggle.read_wells(storage)
        return {site_id: wells[site_id.rpartition("_")[0]].where for site_id in site_ids}
    source = storage.describe("metadata.csv")
    table = read_metadata(storage.read("metadata.csv"), source, WILDS_DATASETS)
    return {site_id: f"{source}, line {table[site_id][0]}" for site_id in site_ids}


def _position(site: Site) -> tuple[str, int, str, int]:
    return site.experiment, site.plate, site.well, site.site


def _layout(storage: Storage) -> str:
    """The layout of what lies there."""
    expected = (
        "expected metadata.csv and images/ (official or WILDS), or train/, test/ and their four"
        " tables (Kaggle), extracted or in zip archives; name the folder that holds them"
    )
    if storage.holds("images"):
        if not storage.holds("metadata.csv"):
            raise ReleaseError(f"no metadata.csv in {storage.root}, only images/; {expected}")
        sites = (image for image in _images(storage, "images") if image.site_id)
        first = list(itertools.islice(sites, _NAMES_JUDGED))
        if not first:
            raise ReleaseError(f"no images below {storage.describe('images')}; {expected}")
        channels = sum(image.channel != "" for image in first)
        return "official" if 2 * channels > len(first) else "wilds"
    if storage.holds("train") or storage.holds("test"):
        return "kaggle"
    if storage.holds("metadata.csv") or storage.holds("train.csv"):
        raise ReleaseError(f"no images in {storage.root}, only tables; {expected}")
    raise ReleaseError(f"no metadata.csv and no images in {storage.root}; {expected}")


class _Image(NamedTuple):
    """A PNG file of a release, by its name alone."""

    name: str
    site_id: str  # "" if the name is not that of a site
    channel: str  # "1".."6"; "" if the name has none


def _images(
    storage: Storage, tree: str, plates: Iterable[tuple[str, str]] | None = None
) -> Iterator[_Image]:
    """Lists the image files of some plates ((experiment, "Plate1") pairs), or of all."""
    if plates is None:
        experiments = storage.names(tree)
        plates = ((e, plate) for e in experiments for plate in storage.names(f"{tree}/{e}"))
    for experiment, folder in plates:
        plate = _PLATE.fullmatch(folder)
        for file in storage.names(f"{tree}/{experiment}/{folder}"):
            name = f"{tree}/{experiment}/{folder}/{file}"
            image = _IMAGE.fullmatch(file)
            if plate and image:
                site_id = f"{experiment}_{plate[1]}_{image['well']}_{image['site']}"
                yield _Image(name, site_id, image["channel"] or "")
            elif file.endswith(".png") and not file.startswith("."):
                yield _Image(name, "", "")


def _kaggle_sites(storage: Storage, selection: Selection) -> list[Site]:
    """The sites of the selected wells that have an image."""
    wells = kaggle.read_wells(storage)
    selection.check([well.site for well in wells.values()], f"the tables in {storage.root}")
    found: dict[str, set[int]] = {}  # well_id -> sites
    strays: list[str] = []
    chosen = [well for well in wells.values() if selection.takes_well(well.site)]
    for tree in DATASETS:
        sites = [well.site for well in chosen if well.site.dataset == tree]
        plates = None
        if not selection.is_all:
            plates = sorted({(site.experiment, f"Plate{site.plate}") for site in sites})
        for image in _images(storage, tree, plates):
            well_id, _, site = image.site_id.rpartition("_")
            if well_id in wells and wells[well_id].site.dataset == tree and image.channel:
                found.setdefault(well_id, set()).add(int(site))
            else:
                strays.append(image.name)
    empty = [well for well in chosen if well.site.well_id not in found]
    if empty:
        raise ReleaseError(
            f"{empty[0].where}: well {empty[0].site.well_id} has no image in"
            f" {storage.describe(empty[0].site.dataset)}, nor have {len(empty) - 1} further wells;"
            " extract the images again, remove these rows, or select other wells"
        )
    if selection.is_all:
        _report_strays(storage, strays, len(wells) * 2 * len(CHANNELS))
    single = sum(len(found[well.site.well_id]) == 1 for well in chosen)
    if single:
        logging.info("%s: %d of %d wells have one site only", storage.root, single, len(chosen))
    return [
        well.site._replace(site=site, site_id=f"{well.site.well_id}_{site}")
        for well in chosen
        for site in sorted(found[well.site.well_id])
    ]


def _report_strays(storage: Storage, strays: list[str], expected: int) -> None:
    """Warns of images without a row; refuses when they are many."""
    if not strays:
        return
    shown = ", ".join(storage.describe(name) for name in strays[:_STRAYS_SHOWN])
    what = f"{len(strays)} images have no row in the tables, the first: {shown}"
    if len(strays) > _STRAY_SHARE * expected:
        raise ReleaseError(
            f"{what}; the rows ask for {expected} images, so the table may be cut off. Get it"
            " again; to build a part on purpose, select it (experiments, plates, wells, sites)"
        )
    logging.warning("%s; they are left out", what)

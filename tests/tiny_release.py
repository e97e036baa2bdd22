"""A hand-made release with random pixels in the official, Kaggle and WILDS layouts, for tests.

Small, but with the oddities of the real one: a missing well, a well with one site, a plate with
fewer controls, a second untreated well, a plate without controls, an unlabelled treatment.
"""

import csv
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

COLUMNS = (
    "site_id,well_id,cell_type,dataset,experiment,plate,well,site,well_type,sirna,sirna_id"
).split(",")
EXPERIMENTS = {"HUVEC-01": "train", "HUVEC-02": "test", "U2OS-01": "train"}
PLATES = (1, 2)
LAYOUT = (  # well, well_type, sirna_id
    ("B02", "negative_control", 1138),
    ("C03", "positive_control", 1108),
    ("C07", "positive_control", 1109),
    ("D04", "treatment", 0),
    ("D05", "treatment", 1),
    ("O23", "treatment", 1107),
)
MISSING_WELL = ("HUVEC-01", 1, "D05")
ONE_SITE_WELL = ("HUVEC-01", 1, "D04")  # only its site 2 is there
FEWER_CONTROLS = ("HUVEC-02", 1, "C07")  # this positive control well is absent
EXTRA_UNTREATED = ("HUVEC-01", 2, "C07")  # failed transfer: untreated instead
PLATE_WITHOUT_CONTROLS = ("U2OS-01", 2)
UNLABELLED = ("HUVEC-02", 2, "O23")


def tiny_rows() -> list[dict[str, str]]:
    """The rows of metadata.csv, in the order of the official file (test first)."""
    rows = []
    for experiment, dataset in sorted(EXPERIMENTS.items(), key=lambda item: item[::-1]):
        for plate in PLATES:
            for well, well_type, sirna_id in LAYOUT:
                place = (experiment, plate, well)
                if place in (MISSING_WELL, FEWER_CONTROLS):
                    continue
                if well_type != "treatment" and (experiment, plate) == PLATE_WITHOUT_CONTROLS:
                    continue
                if place == EXTRA_UNTREATED:
                    well_type, sirna_id = "negative_control", 1138
                sirna = "EMPTY" if sirna_id == 1138 else f"s{20000 + sirna_id}"
                if place == UNLABELLED:
                    sirna, sirna_id = "", -1
                for site in (2,) if place == ONE_SITE_WELL else (1, 2):
                    well_id = f"{experiment}_{plate}_{well}"
                    values = (
                        f"{well_id}_{site}",
                        well_id,
                        experiment.split("-")[0],
                        dataset,
                        experiment,
                        plate,
                        well,
                        site,
                        well_type,
                        sirna,
                        sirna_id,
                    )
                    rows.append(dict(zip(COLUMNS, map(str, values), strict=True)))
    return rows


def write_metadata(root: Path, rows: Sequence[dict[str, str]]) -> None:
    """Writes metadata.csv of `rows` below `root`."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def image_path(root: Path, row: dict[str, str], channel: int) -> Path:
    """The PNG of one channel (1..6) of one row, written out as the release documents it."""
    name = f"{row['well']}_s{row['site']}_w{channel}.png"
    return root / "images" / row["experiment"] / f"Plate{row['plate']}" / name


def write_tiny_release(root: Path, size: int = 16, seed: int = 0) -> Path:
    """Writes the release below `root` and returns it: 3 experiments, 61 sites, 366 PNGs."""
    rng = np.random.default_rng(seed)
    rows = tiny_rows()
    for row in rows:
        brightness = rng.uniform(5, 60, size=(6, 1, 1))  # so that plates and channels differ
        image = np.minimum(rng.gamma(2.0, brightness / 2.0, size=(6, size, size)), 255)
        for channel, plane in enumerate(image.astype(np.uint8), start=1):
            path = image_path(root, row, channel)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(plane).save(path)
    write_metadata(root, rows)
    return root


def read_pngs(root: Path, row: dict[str, str]) -> np.ndarray:
    """Independent reading of one site, uint8 [6, H, W]."""
    return np.stack([np.asarray(Image.open(image_path(root, row, c))) for c in range(1, 7)])


LATER_UNTREATED = "UNTREATED"
KAGGLE_TABLES = ("train.csv", "train_controls.csv", "test.csv", "test_controls.csv")


def later_label(sirna_id: int) -> str:
    """A label as in the later Kaggle files: a permutation of the ids (7 and 1138 are coprime)."""
    return LATER_UNTREATED if sirna_id == 1138 else f"sirna_{(7 * sirna_id + 3) % 1138}"


def write_kaggle_tables(root: Path, rows: Sequence[dict[str, str]], later: bool = False) -> None:
    """Writes the four tables of the Kaggle layout, of official rows; test treatments unlabelled."""
    root.mkdir(parents=True, exist_ok=True)
    wells = {row["well_id"]: row for row in rows}.values()
    for name in KAGGLE_TABLES:
        columns = ["id_code", "experiment", "plate", "well"]
        controls, dataset = name.endswith("_controls.csv"), name.split("_")[0].split(".")[0]
        columns += ["sirna", "well_type"] if controls else ["sirna"] * (dataset == "train")
        with (root / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            for row in wells:
                if row["dataset"] == dataset and (row["well_type"] != "treatment") == controls:
                    sirna_id = row["sirna_id"]
                    label = later_label(int(sirna_id)) if later else sirna_id
                    writer.writerow(row | {"id_code": row["well_id"], "sirna": label})


def write_tiny_kaggle(root: Path, official: Path, later: bool = False) -> Path:
    """Writes the Kaggle layout of an official tiny release and returns `root`."""
    rows = tiny_rows()
    write_kaggle_tables(root, rows, later)
    for experiment, dataset in EXPERIMENTS.items():
        shutil.copytree(official / "images" / experiment, root / dataset / experiment)
    return root


def tiny_wilds_rows() -> list[dict[str, str]]:
    """The rows of the tiny release as WILDS has them: U2OS-01 is "val"."""
    return [row | ({"dataset": "val"} if "U2OS" in row["site_id"] else {}) for row in tiny_rows()]


def write_tiny_wilds(root: Path, seed: int = 0) -> Path:
    """Writes the WILDS layout, 256 px RGB, below `root` and returns it: 61 PNGs."""
    rng = np.random.default_rng(seed)
    for row in tiny_wilds_rows():
        # Blocks of 32 px: as quick to write as small images are.
        coarse = rng.integers(0, 256, (8, 8, 3), np.uint8)
        path = wilds_path(root, row)
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = coarse.repeat(32, axis=0).repeat(32, axis=1)
        Image.fromarray(pixels).save(path, compress_level=1)
    write_metadata(root, tiny_wilds_rows())
    return root


def wilds_path(root: Path, row: dict[str, str]) -> Path:
    """The PNG of one row in the WILDS layout."""
    folder = root / "images" / row["experiment"] / f"Plate{row['plate']}"
    return folder / f"{row['well']}_s{row['site']}.png"


def zip_files(archive: Path, folder: Path, tops: Sequence[str], prefix: str = "rxrx1/") -> Path:
    """Packs the files below `folder` that are, or lie in, one of `tops`."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder)
            if path.is_file() and name.parts[0] in tops:
                packed.write(path, prefix + name.as_posix())
    return archive

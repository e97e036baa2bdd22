"""A hand-made release in the official layout with random pixels, for tests.

Small, but with the oddities of the real one: a missing well, a well with one site, a plate with
fewer controls, a second untreated well, a plate without controls, an unlabelled treatment.
"""

import csv
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

"""Pictures of a built dataset: a plate, one siRNA across experiments, the channels of one site.

This module chooses and reads the sites; `figures` draws them.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from .. import machine
from ..release import metadata
from . import stored
from .figures import Picture, plate_figure, sirna_figure, site_figure

THUMBNAIL = 64  # pixels of a well on the plate, at most
SHOWN_EXPERIMENTS = 6  # of a cell type, at most
DPI = 160


def show(
    builder: tfds.core.DatasetBuilder,
    out: Path,
    experiment: str | None = None,
    plate: int | None = None,
    sirna_id: int | None = None,
    cell_type: str | None = None,
) -> list[Path]:
    """Writes three PNG files into `out` and returns their paths.

    Args:
      builder: from `stored.open_dataset`.
      experiment, plate: default: the first, cell types in the paper's order.
      sirna_id: default: the lowest treatment on the plate.
      cell_type: look at its experiments alone.

    Raises:
      DatasetError: no such experiment, plate, siRNA or cell type; says which there are.
    """
    stored_experiments = sorted(builder.info.splits, key=_order)
    experiments = [e for e in stored_experiments if cell_type in (None, _cell_type(e))]
    if not experiments:
        raise stored.DatasetError(
            f"no cell type {cell_type} in {builder.data_path}; there are"
            f" {', '.join(dict.fromkeys(map(_cell_type, stored_experiments)))}"
        )
    experiment = experiment or experiments[0]
    if experiment not in experiments:
        raise stored.DatasetError(
            f"no experiment {experiment} in {builder.data_path}; there are {', '.join(experiments)}"
        )
    wells = _read_plate(builder, experiment, plate)
    plate = next(iter(wells.values())).fields["plate"]
    if sirna_id is None:
        fields = [well.fields for well in wells.values()]
        treatments = [f for f in fields if f["well_type"] == "treatment"]
        ids = {f["sirna_id"] for f in treatments} - {metadata.UNKNOWN}
        sirna_id = min(ids, default=fields[0]["sirna_id"])
    on_plate = any(well.fields["sirna_id"] == sirna_id for well in wells.values())
    wanted = (experiment, plate if on_plate else None)
    sites = _read_sirna(builder, sirna_id, wanted, experiments)
    if not sites:
        raise stored.DatasetError(
            f"no site of sirna_id {sirna_id} in {builder.data_path}; on plate {plate} of"
            f" {experiment} there are {sorted({w.fields['sirna_id'] for w in wells.values()})}"
        )
    site = sites.get(experiment) or next(iter(sites.values()))
    figures = {
        f"plate_{experiment}_{plate}.png": plate_figure(wells),
        f"sirna_{sirna_id}{f'_{cell_type}' if cell_type else ''}.png": sirna_figure(sites),
        f"site_{site.fields['site_id']}.png": site_figure(site),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=DPI, facecolor="white")
        machine.write_whole(out / name, drawn.getvalue())
    return [out / name for name in figures]


def _read_plate(
    builder: tfds.core.DatasetBuilder, experiment: str, plate: int | None
) -> dict[str, Picture]:
    """{well: thumbnail of its lowest site} of one plate, in the order of the wells."""
    plates = sorted(map(int, builder.info.metadata["control_statistics"]["plate"][experiment]))
    plate = plates[0] if plate is None else plate
    if plate not in plates:
        raise stored.DatasetError(
            f"no plate {plate} of {experiment} in {builder.data_path}; there are {plates}"
        )
    wells: dict[str, Picture] = {}
    for fields in _read(builder, experiment, f"Plate {plate} of {experiment}"):
        well = wells.get(fields["well"])
        if fields["plate"] == plate and (not well or fields["site"] < well.fields["site"]):
            image = stored.inflate(fields.pop("image"), builder.info.features["image"].shape)
            wells[fields["well"]] = Picture(fields, _thumbnail(image))
    return dict(sorted(wells.items()))


def _read_sirna(
    builder: tfds.core.DatasetBuilder,
    sirna_id: int,
    wanted: tuple[str, int | None],
    experiments: list[str],
) -> dict[str, Picture]:
    """{experiment: the first stored site of the siRNA}.

    wanted: an experiment that is among those shown, and the plate there (None: any).
    """
    shape = builder.info.features["image"].shape
    found: dict[str, Picture] = {}
    for experiment in sorted(experiments, key=lambda name: name != wanted[0]):
        of_cell_type = [name for name in found if _cell_type(name) == _cell_type(experiment)]
        if len(of_cell_type) == SHOWN_EXPERIMENTS:
            continue
        plate = wanted[1] if experiment == wanted[0] else None
        for fields in _read(builder, experiment, f"siRNA {sirna_id}, {experiment}"):
            if fields["sirna_id"] == sirna_id and plate in (None, fields["plate"]):
                image = stored.inflate(fields.pop("image"), shape)
                found[experiment] = Picture(fields, image)
                break
    return {name: found[name] for name in experiments if name in found}


def _read(
    builder: tfds.core.DatasetBuilder, experiment: str, label: str
) -> Iterator[dict[str, Any]]:
    total = builder.info.splits[experiment].num_examples
    with tqdm(total=total, desc=label, unit=" sites", leave=False) as bar:
        for file in stored.experiment_files(builder, experiment):
            for record in stored.read_records(file):
                bar.update()
                try:
                    yield stored.parse(record)
                except ValueError as error:
                    raise stored.DatasetError(f"{file}: {error}; run verify on it") from error


def _thumbnail(image: np.ndarray) -> np.ndarray:
    """[C, H, W] uint8 -> float32 means of blocks, at most THUMBNAIL on a side; a rest is cut."""
    step = -(-max(image.shape[1:]) // THUMBNAIL)
    height, width = (side // step for side in image.shape[1:])
    blocks = image[:, : height * step, : width * step].reshape(-1, height, step, width, step)
    return blocks.mean((2, 4), dtype=np.float32)


def _cell_type(experiment: str) -> str:
    return experiment.rpartition("-")[0]


def _order(experiment: str) -> tuple[int, str]:
    """Cell types in the paper's order."""
    return [*metadata.CELL_TYPES, _cell_type(experiment)].index(_cell_type(experiment)), experiment

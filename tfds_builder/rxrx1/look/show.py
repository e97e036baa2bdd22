"""Pictures of a built dataset: plates, one siRNA across experiments, the channels of one site.

This module chooses and reads the sites; `figures` draws them.
"""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow_datasets as tfds

from .. import machine
from ..release import metadata
from . import stored
from .figures import Picture, maps_figure, plate_figure, sirna_figure, site_figure

THUMBNAIL = 64  # pixels of a well on the plate, at most
SHOWN_EXPERIMENTS = 6  # of a cell type, at most
SHOWN_OF_MANY = 3  # of each of several cell types
DPI = 160

Row = dict[str, Any]  # of the table of sites


def show(
    builder: tfds.core.DatasetBuilder,
    out: Path,
    experiment: str | None = None,
    plate: int | None = None,
    sirna_id: int | None = None,
    cell_type: str | None = None,
) -> list[Path]:
    """Writes four PNG files into `out` and returns their paths.

    Args:
      builder: from `stored.open_dataset`.
      experiment: default: the first, cell types in the paper's order; with `sirna_id` and no plate,
        the first that has it.
      plate: default: the first; with `sirna_id`, the first that has it.
      sirna_id: default: the lowest treatment on the plate.
      cell_type: look at its experiments alone.

    Raises:
      DatasetError: no such experiment, plate, siRNA or cell type; says where they are.
    """
    sites, place = stored.read_table(builder), str(builder.data_path)
    if cell_type is not None:
        sites = _select(sites, "cell_type", cell_type, place, sites)
    if experiment is None and (plate is not None or sirna_id is None):
        experiment = min(sites["experiment"].unique().to_pylist(), key=_order)
    part = sites
    for name, value in (("experiment", experiment), ("plate", plate), ("sirna_id", sirna_id)):
        if value is not None:
            part = _select(part, name, value, place, sites)
            place = f"plate {value} of {experiment}" if name == "plate" else str(value)
    site = min(part.to_pylist(), key=_position)
    plates = _plates(sites, site)
    if sirna_id is None:  # and so all of a plate are left
        known = [r for r in plates[0] if r["well_type"] == "treatment" and r["sirna_id"] >= 0]
        site = min(known or plates[0], key=lambda row: (row["sirna_id"], *_position(row)))
    out.mkdir(parents=True, exist_ok=True)  # or the drawing would be in vain
    shown = _of_sirna(sites, site)
    pictures = list(map(Picture, shown, stored.read_images(builder, shown)))
    wells = list({row["well"]: row for row in reversed(plates[0])}.values())[::-1]
    images = map(_thumbnail, stored.read_images(builder, wells))
    where = f"{site['experiment']}_{site['plate']}"
    chosen = "_".join(filter(None, (str(site["sirna_id"]), where, cell_type)))
    numbers = "_".join(str(rows[0]["plate"]) for rows in plates)
    drawn = {
        f"plate_{where}": plate_figure(list(map(Picture, wells, images))),
        f"maps_{site['experiment']}_{numbers}": maps_figure(
            plates, math.prod(builder.info.features["image"].shape[1:])
        ),
        f"sirna_{chosen}": sirna_figure(pictures),
        f"site_{site['site_id']}": site_figure(pictures[shown.index(site)]),
    }
    paths = [out / f"{builder.info.config_name}_{name}.png" for name in drawn]
    for path, figure in zip(paths, drawn.values(), strict=True):
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=DPI, facecolor="white")
        machine.write_whole(path, png.getvalue())
    return paths


def _select(part: pa.Table, name: str, value: Any, place: str, sites: pa.Table) -> pa.Table:
    """The rows of a part with this value. None: the error says where there are some."""
    found = part.filter(pc.equal(part[name], value))
    if len(found):
        return found
    rows = sites.filter(pc.equal(sites[name], value)).to_pylist() if name == "sirna_id" else []
    here = set(part["experiment"].unique().to_pylist())
    rows = [row for row in rows if row["experiment"] in here] or rows
    there = sorted({f"plate {row['plate']} of {row['experiment']}" for row in rows})
    if there:
        raise stored.DatasetError(f"no {name} {value} on {place}; it is on {', '.join(there)}")
    there = [str(other) for other in sorted(part[name].unique().to_pylist())]
    raise stored.DatasetError(f"no {name} {value} in {place}; there are {', '.join(there)}")


def _plates(sites: pa.Table, site: Row) -> list[list[Row]]:
    """The rows of the site's plate, and those of the next plate of its experiment if it has one."""
    rows = sites.filter(pc.equal(sites["experiment"], site["experiment"])).to_pylist()
    plates: dict[int, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row["plate"] < site["plate"], *_position(row))):
        plates.setdefault(row["plate"], []).append(row)
    return [plates.pop(site["plate"]), *plates.values()][:2]


def _of_sirna(sites: pa.Table, site: Row) -> list[Row]:
    """The same site number of the same siRNA in other experiments, that site among them."""
    same = pc.and_(*(pc.equal(sites[name], site[name]) for name in ("sirna_id", "site")))
    found = {site["experiment"]: site}
    for row in sorted(sites.filter(same).to_pylist(), key=_position):
        found.setdefault(row["experiment"], row)
    of_type: dict[str, list[Row]] = {}
    for row in found.values():
        of_type.setdefault(row["cell_type"], []).append(row)
    count = SHOWN_EXPERIMENTS if len(of_type) == 1 else SHOWN_OF_MANY
    return sorted((row for rows in of_type.values() for row in rows[:count]), key=_position)


def _thumbnail(image: np.ndarray) -> np.ndarray:
    """[C, H, W] uint8 -> float32 means of blocks, at most THUMBNAIL on a side; a rest is cut."""
    step = -(-max(image.shape[1:]) // THUMBNAIL)
    height, width = (side // step for side in image.shape[1:])
    blocks = image[:, : height * step, : width * step].reshape(-1, height, step, width, step)
    return blocks.mean((2, 4), dtype=np.float32)


def _order(experiment: str) -> tuple[int, str]:
    """Cell types in the paper's order."""
    cell_type = experiment.rpartition("-")[0]
    return [*metadata.CELL_TYPES, cell_type].index(cell_type), experiment


def _position(row: Row) -> tuple:
    return *_order(row["experiment"]), row["plate"], row["well"], row["site"]

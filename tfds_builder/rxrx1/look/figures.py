"""The figures of `show`, drawn from sites that were read already.

Faux colours are the paper's (figures 3 to 5). Wells of a plate, and experiments of a cell type,
share their contrast, so that differences between them are those of the data.
"""

import textwrap
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from ... import faux_colours
from ..release import metadata

ROWS, COLUMNS = 16, 24  # wells of a plate
WELL, PITCH = 0.9, 1.12  # side of an image and distance of rows, in distances of columns
OUTLINES = {"positive_control": "#E69F00", "negative_control": "#0072B2"}  # Okabe and Ito
EMPTY = "#EDEDED"


class Picture(NamedTuple):
    """One site of the dataset."""

    fields: dict[str, Any]  # of the record, but the image
    image: np.ndarray  # [C, H, W] uint8, or float32 of a thumbnail


def plate_figure(wells: dict[str, Picture]) -> Figure:
    """The map of one plate; {well: one of its sites}, thumbnails."""
    limits = faux_colours.contrast_limits(
        [well.image for well in wells.values()], faux_colours.COMPOSITE_PERCENTILES
    )
    figure = Figure(figsize=(16, 13.6), layout="constrained")
    axis = figure.subplots()
    for row in range(1, ROWS + 1):
        for column in range(1, COLUMNS + 1):
            left, top = column - WELL / 2, row * PITCH - WELL / 2
            well = wells.get(f"{chr(ord('A') - 1 + row)}{column:02d}")
            box: dict[str, Any] = {"width": WELL, "height": WELL, "xy": (left, top)}
            if well is None:
                axis.add_patch(Rectangle(**box, fc=EMPTY, ec="none"))
                continue
            rgb = faux_colours.composite(faux_colours.stretch(well.image, *limits))
            axis.imshow(rgb, extent=(left, left + WELL, top + WELL, top))
            kind = well.fields["well_type"]
            if kind in OUTLINES:
                axis.add_patch(Rectangle(**box, fill=False, ec=OUTLINES[kind], lw=2.6, zorder=3))
            style: dict[str, Any] = {"ha": "center", "va": "top", "fontsize": 7}
            style["fontweight"] = "bold" if kind in OUTLINES else "normal"
            axis.text(column, top + WELL + 0.05, _short_id(well.fields), **style)
    axis.set_xlim(0.5, COLUMNS + 0.5)
    axis.set_ylim((ROWS + 0.55) * PITCH, 0.45 * PITCH)
    axis.set_aspect("equal")
    axis.set_xticks(range(1, COLUMNS + 1), [f"{c:02d}" for c in range(1, COLUMNS + 1)])
    letters = [chr(ord("A") + row) for row in range(ROWS)]
    axis.set_yticks([PITCH * row for row in range(1, ROWS + 1)], letters)
    axis.tick_params(length=0, labeltop=True, labelright=True, labelsize=10)
    axis.spines[:].set_visible(False)
    first = next(iter(wells.values())).fields
    untypical = {w.fields["site"] for w in wells.values()} - {1}
    sites = "site 1 of each well" + (", site 2 where it is missing" if untypical else "")
    axis.set_title(
        f"{first['experiment']}, plate {first['plate']} (cell type {first['cell_type']},"
        f" partition {first['dataset']}): {len(wells)} of {ROWS * COLUMNS} wells imaged, {sites}",
        fontsize=13, loc="left", pad=10,
    )  # fmt: skip
    types = [well.fields["well_type"] for well in wells.values()]
    entries = [Patch(fc="black", label=f"treatment ({types.count('treatment')})")]
    entries += [
        Patch(
            fc="white", ec=colour, lw=2.6, label=f"{kind.replace('_', ' ')} ({types.count(kind)})"
        )
        for kind, colour in OUTLINES.items()
    ]
    entries.append(Patch(fc=EMPTY, label=f"no image ({ROWS * COLUMNS - len(wells)})"))
    legend: dict[str, Any] = {"loc": "outside upper left", "ncols": 4, "frameon": False}
    figure.legend(handles=entries, fontsize=10, **legend)
    channels = len(next(iter(wells.values())).image)
    text = "Below each well: its sirna_id. " + _contrast("all wells", "averaged pixels", channels)
    _caption(figure, text, width=185)
    return figure


def sirna_figure(sites: dict[str, Picture]) -> Figure:
    """One siRNA: {experiment: site}, a row for each cell type.

    A single cell type has two rows: the counts, and these standardised by the plate's controls.
    """
    rows: dict[str, list[Picture]] = {}
    for site in sites.values():
        rows.setdefault(site.fields["cell_type"], []).append(site)
    if len(rows) == 1:
        (members,) = rows.values()
        rows = {
            "counts": members,
            "standardised by\nthe plate's controls": [_standardised(site) for site in members],
        }
    columns = max(map(len, rows.values()))
    figure = Figure(
        figsize=(max(2.1 * columns + 0.6, 6), 2.35 * len(rows) + 1), layout="constrained"
    )
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, (label, members) in zip(grid, rows.items(), strict=True):
        limits = faux_colours.contrast_limits(
            [site.image for site in members], faux_colours.COMPOSITE_PERCENTILES
        )
        for axis, site in zip(line, members, strict=False):
            _draw(axis, faux_colours.composite(faux_colours.stretch(site.image, *limits)))
            where = f"plate {site.fields['plate']}, {site.fields['well']}, site"
            axis.set_title(
                f"{site.fields['experiment']}\n{where} {site.fields['site']}", fontsize=8
            )
        for axis in line[len(members) :]:
            axis.set_visible(False)
        line[0].set_ylabel(label, fontsize=10)
    fields = next(iter(sites.values())).fields
    what = f"{fields['sirna']}, {fields['well_type'].replace('_', ' ')}"
    count = f"one site in each of {len(sites)} experiments"
    figure.suptitle(f"sirna_id {fields['sirna_id']} ({what}): {count}", fontsize=11)
    channels = len(next(iter(sites.values())).image)
    text = _contrast("all images of a row", "pixels", channels)
    _caption(figure, text, width=int(16 * figure.get_figwidth()))
    return figure


def site_figure(site: Picture) -> Figure:
    """The composite of one site and its channels."""
    image, fields = site.image, site.fields
    planes = faux_colours.stretch(
        image, *faux_colours.contrast_limits([image], faux_colours.CHANNEL_PERCENTILES)
    )
    dark = faux_colours.stretch(
        image, *faux_colours.contrast_limits([image], faux_colours.COMPOSITE_PERCENTILES)
    )
    across = -(-len(image) // 2)
    figure = Figure(figsize=(2.6 * (across + 2), 6.1), layout="constrained")
    grid = figure.add_gridspec(2, across + 2)
    composite = figure.add_subplot(grid[:, :2])
    _draw(composite, faux_colours.composite(dark))
    composite.set_title("composite", fontsize=10)
    for channel, plane in enumerate(planes):
        axis = figure.add_subplot(grid[channel // across, 2 + channel % across])
        _draw(axis, plane[..., None] * faux_colours.CHANNEL_COLOURS[channel])
        low, high = image[channel].min(), image[channel].max()
        name = faux_colours.CHANNELS[channel]
        axis.set_title(f"{channel + 1}  {name}\n{low} to {high} counts", fontsize=9)
    figure.suptitle(
        f"{fields['site_id']}: {fields['cell_type']}, {fields['well_type'].replace('_', ' ')},"
        f" sirna_id {fields['sirna_id']} {fields['sirna']}",
        fontsize=11,
    )
    low, high = faux_colours.CHANNEL_PERCENTILES
    black = faux_colours.COMPOSITE_PERCENTILES[0]
    text = (
        f"Contrast: each channel linear from black at percentile {low:g} to full colour at"
        f" {high:g} of its pixels; in the composite from percentile {black:g}."
    )
    _caption(figure, text, width=170)
    return figure


def _standardised(site: Picture) -> Picture:
    """(image - control_mean) / control_std, per channel: the paper's normalisation."""
    mean, std = (
        np.asarray(site.fields[name], np.float32)[:, None, None]
        for name in ("control_mean", "control_std")
    )
    return Picture(site.fields, (site.image - mean) / std)


def _short_id(fields: dict[str, Any]) -> str:
    return "?" if fields["sirna_id"] == metadata.UNKNOWN else str(fields["sirna_id"])


def _contrast(shared_by: str, pixels: str, channels: int) -> str:
    low, high = faux_colours.COMPOSITE_PERCENTILES
    pairs = zip(faux_colours.COLOUR_NAMES, faux_colours.CHANNELS[:channels], strict=False)
    return (
        f"Contrast: shared by {shared_by}; each channel linear from black at percentile {low:g} to"
        f" full colour at {high:g} of their {pixels}. Screened colours:"
        f" {', '.join(f'{name} ({colour})' for colour, name in pairs)}."
    )


def _caption(figure: Figure, text: str, width: int) -> None:
    figure.supxlabel(textwrap.fill(text, width), fontsize=8.5, x=0.01, ha="left")


def _draw(axis: Axes, rgb: np.ndarray) -> None:
    axis.imshow(rgb, interpolation="nearest" if len(rgb) < 200 else "antialiased")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)

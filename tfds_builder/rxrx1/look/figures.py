"""The figures of `show`, drawn from sites that were read already.

Faux colours are the paper's (figures 3 to 5). Wells of a plate, and experiments of a cell type,
share their contrast, so that differences between them are those of the data.
"""

import textwrap
from collections.abc import Mapping, Sequence
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

    fields: Mapping[str, Any]  # of the table of sites
    image: np.ndarray  # [C, H, W] uint8, or float32 of a thumbnail


def plate_figure(pictures: Sequence[Picture]) -> Figure:
    """The map of one plate: thumbnails of one site of each well."""
    wells = {picture.fields["well"]: picture for picture in pictures}
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


def maps_figure(plates: Sequence[Sequence[Mapping[str, Any]]], pixels: int) -> Figure:
    """Mean of each channel over each well of one or two plates: counts beside standardised.

    plates: the sites of each plate, as rows of the table of sites; pixels: of one channel.
    """
    channels = len(plates[0][0]["pixel_sum"])
    counts, standardised = np.full((2, len(plates), channels, ROWS, COLUMNS), np.nan)
    for number, sites in enumerate(plates):
        for well in {site["well"] for site in sites}:
            means = [np.array(s["pixel_sum"]) / pixels for s in sites if s["well"] == well]
            place = number, slice(None), ord(well[0]) - ord("A"), int(well[1:]) - 1
            counts[place] = np.mean(means, axis=0)
        standardised[number] = _standardised(sites[0], counts[number])
    figure = Figure(figsize=(7.6 * len(plates) + 1, 2.05 * channels + 1.4), layout="constrained")
    grid = figure.subplots(channels, 2 * len(plates), squeeze=False)
    for channel, line in enumerate(grid):
        for kind, values in (("counts", counts), ("standardised", standardised)):
            planes = values[:, channel]
            low, high = np.nanpercentile(planes, (1, 99))
            style = {"cmap": "viridis", "vmin": low, "vmax": high}
            if kind == "standardised":
                widest = max(-low, high)
                style = {"cmap": "RdBu_r", "vmin": -widest, "vmax": widest}
            axes = line[: len(plates)] if kind == "counts" else line[len(plates) :]
            for axis, plane, sites in zip(axes, planes, plates, strict=True):
                axis.set_facecolor("#CCCCCC")  # darker than what is near zero
                drawn = axis.imshow(plane, **style)
                axis.set_xticks([0, 11, 23], ["01", "12", "24"], fontsize=8)
                axis.set_yticks([0, 7, 15], ["A", "H", "P"], fontsize=8)
                median = f"median {np.nanmedian(plane):.2f}".replace("-0.00", "0.00")
                axis.set_title(f"plate {sites[0]['plate']}, {kind}: {median}", fontsize=9)
            figure.colorbar(drawn, ax=list(axes), shrink=0.9, aspect=14, pad=0.01)
        line[0].set_ylabel(f"{channel + 1}  {faux_colours.CHANNELS[channel]}", fontsize=11)
    first = plates[0][0]
    figure.suptitle(
        f"{first['experiment']} (cell type {first['cell_type']}): mean of each well", fontsize=14
    )
    text = (
        "Each square is a well, the mean of its sites. Standardised: minus the mean of the plate's"
        " controls, divided by the standard deviation of their pixels. Plates share their colours,"
        " from percentile 1 to 99 of the wells. Grey: no image."
    )
    _caption(figure, text, width=int(16 * figure.get_figwidth()))
    return figure


def sirna_figure(sites: Sequence[Picture]) -> Figure:
    """One siRNA across experiments: of each cell type the counts, and these standardised.

    The two are beside each other; those of a single cell type are below each other.
    """
    types: dict[str, list[Picture]] = {}
    for site in sites:
        types.setdefault(site.fields["cell_type"], []).append(site)
    columns, single = max(map(len, types.values())), len(types) == 1
    down, across = (2, columns) if single else (len(types), 2 * columns)
    figure = Figure(figsize=(max(2.1 * across + 0.6, 6), 2.35 * down + 1), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False)
    for axis in grid.flat:
        axis.set_visible(False)
    for number, (cell_type, members) in enumerate(types.items()):
        groups = {
            f"{cell_type}, counts": members,
            "standardised by\nits plate's controls": [
                Picture(site.fields, _standardised(site.fields, site.image)) for site in members
            ],
        }
        for half, (label, group) in enumerate(groups.items()):
            line = grid[half] if single else grid[number][half * columns :]
            limits = faux_colours.contrast_limits(
                [site.image for site in group], faux_colours.COMPOSITE_PERCENTILES
            )
            for axis, site in zip(line, group, strict=False):
                axis.set_visible(True)
                _draw(axis, faux_colours.composite(faux_colours.stretch(site.image, *limits)))
                where = f"plate {site.fields['plate']}, {site.fields['well']}"
                axis.set_title(f"{site.fields['experiment']}\n{where}", fontsize=8)
            line[0].set_ylabel(label, fontsize=10)
    fields = sites[0].fields
    what = f"{fields['sirna']}, {fields['well_type'].replace('_', ' ')}"
    count = f"site {fields['site']} of a well in each of {len(sites)} experiments"
    figure.suptitle(f"sirna_id {fields['sirna_id']} ({what}): {count}", fontsize=11)
    text = _contrast(
        "the counts of a cell type, and by its standardised images", "pixels", len(sites[0].image)
    )
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


def _standardised(fields: Mapping[str, Any], values: np.ndarray) -> np.ndarray:
    """(values - control_mean) / control_std, per channel: the paper's normalisation."""
    mean, std = (np.array(fields[name], np.float32) for name in ("control_mean", "control_std"))
    std[std == 0] = 1  # of a channel that is constant in all controls
    return (values - mean[:, None, None]) / std[:, None, None]


def _short_id(fields: Mapping[str, Any]) -> str:
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

"""The pictures of a report: learning curves, accuracy by cell type and by experiment, images.

Each function returns a figure; nothing here touches pyplot, so no window system is needed.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rxrx1_jax.data.images import Images
from rxrx1_jax.methods.statistics import Score, summarise
from rxrx1_jax.report.runs import FinishedRun, row_label
from rxrx1_jax.report.table1 import COLUMNS, PAPER, lines_of
from tfds_builder.faux_colours import (
    CHANNEL_COLOURS,
    CHANNEL_PERCENTILES,
    CHANNELS,
    COMPOSITE_PERCENTILES,
    composite,
    contrast_limits,
    stretch,
)

# Okabe and Ito's palette, which colour-blind readers can tell apart.
ROW_COLOURS = {
    ("batch", "plate_control"): "#0072B2",
    ("random_site", "plate_control"): "#E69F00",
    ("random_well", "plate_control"): "#009E73",
}
OTHER_COLOURS = ("#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999", "#000000")
PAPER_ROWS = {"Batch": ("batch", "plate_control"), "Random": ("random_site", "plate_control")}
TRAIN_COLOUR = "#8A8A8A"
TEXT: dict[str, Any] = {"fontsize": 9}
OUTSIDE: dict[str, Any] = TEXT | {"loc": "outside upper center", "frameon": False, "ncols": 3}

SHOWN_EXPERIMENTS = 6  # of a cell type, at most
CONTRAST = (
    "Contrast: linear for each cell type and channel, from black at percentile "
    f"{CHANNEL_PERCENTILES[0]:g} (composite: {COMPOSITE_PERCENTILES[0]:g}) to full colour at "
    f"percentile {CHANNEL_PERCENTILES[1]:g} of the pixels of all sites shown of that cell type, "
    "these and the ones below; the same for every experiment, so differences between experiments "
    "are in the data. Composite: the coloured channels screened, 1 - (1 - a)(1 - b) and so on."
)


def row_colours(runs: Sequence[FinishedRun]) -> dict[tuple[str, str], str]:
    """A colour for each row of the table, the same in every figure."""
    others = [row for row in sorted({run.row for run in runs}) if row not in ROW_COLOURS]
    return ROW_COLOURS | {
        row: OTHER_COLOURS[i % len(OTHER_COLOURS)] for i, row in enumerate(others)
    }


def _shown(runs: list[FinishedRun]) -> tuple[list[FinishedRun], list[tuple[str, str]]]:
    """The runs on all cell types, or all if there are none, and their rows of the table."""
    shown = [run for run in runs if run.cell_type == "all"] or runs
    return shown, [line.row for line in lines_of(shown, "site")] or sorted({r.row for r in shown})


def learning_curves(runs: list[FinishedRun]) -> Figure:
    """Accuracy and loss against epochs, a column for each row of the table, a line for each run."""
    shown, rows = _shown(runs)
    colours = row_colours(runs)
    figure = Figure(figsize=(max(2.4 * len(rows), 4.2), 4.6), layout="constrained")
    axes = figure.subplots(2, len(rows), sharex=True, sharey="row", squeeze=False)
    for (upper, lower), row in zip(axes.T, rows, strict=True):
        upper.set_title(row_label(row).replace(", ", ",\n", 1), fontsize=9, loc="left")
        for run in shown:
            if run.row != row:
                continue
            for axis, quantity, scale in ((upper, "accuracy", 100), (lower, "loss", 1)):
                for half, colour in (("train", TRAIN_COLOUR), ("test", colours[row])):
                    name = f"{half}_{quantity}"
                    points = [(e["epoch"], scale * e[name]) for e in run.metrics if name in e]
                    x, y = np.reshape(points, (-1, 2)).T
                    marker = "o" if len(points) == 1 else None
                    # Training values are those of a few batches each: noisy, so drawn thin.
                    width = 0.6 if half == "train" else 1.4
                    axis.plot(x, y, color=colour, lw=width, marker=marker, ms=3)
        lower.set_xlabel("epoch", **TEXT)
        for axis in (upper, lower):
            tidy(axis)
    axes[0, 0].set_ylabel("accuracy by site (%)", **TEXT)
    axes[0, 0].set_ylim(0, 100)
    axes[1, 0].set_ylabel("loss (nats per site)", **TEXT)
    axes[1, 0].set_ylim(bottom=0)
    axes[0, 0].plot([], [], color=TRAIN_COLOUR, label="grey: training batches")
    axes[0, 0].plot([], [], color=colours[rows[0]], label="colour: test sites")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), **OUTSIDE)
    return figure


def cell_type_bars(runs: list[FinishedRun], chance: float) -> Figure:
    """Mean, sd and every fold for each cell type, beside the paper's; chance in %."""
    panels = [
        ("Separate models" if kind else "Break-down of one model", lines_of(runs, "site", kind))
        for kind in sorted({run.cell_type != "all" for run in runs})
    ]
    figure = Figure(figsize=(10.5, 4.1), layout="constrained")
    axes = figure.subplots(1, len(panels) + 1, sharey=True, squeeze=False)[0]
    colours = row_colours(runs)
    legend: dict[str, Any] = {}
    for axis, (title, lines) in zip(axes, panels, strict=False):
        axis.set_title(title, fontsize=10, loc="left")
        width = 0.8 / len(lines)
        for i, line in enumerate(lines):
            for x, score in enumerate(line.scores):
                place = x + (i - (len(lines) - 1) / 2) * width
                score_bar(axis, place, score, width, colours[line.row])
            legend[row_label(line.row)] = axis.bar(0, 0, color=colours[line.row])
        legend["chance"] = axis.axhline(chance, color="#222", lw=0.8, ls=":")
    paper = axes[-1]
    paper.set_title("The paper: real RxRx1, 1,108 classes", fontsize=10, loc="left")
    for i, (label, cells) in enumerate(PAPER.items()):
        for x, (mean, sd) in enumerate(cells):
            _bar(paper, x + (i - 0.5) * 0.4, mean, sd, 0.4, colours[PAPER_ROWS[label]])
    for axis in axes:
        axis.set_xticks(range(len(COLUMNS)), COLUMNS.values())
        axis.set_xlim(-0.5, len(COLUMNS) - 0.5)
        axis.set_ylim(0, 100)
        tidy(axis)
    legend[f"chance, {chance:.2g} %"] = legend.pop("chance")  # last
    figure.legend(legend.values(), legend.keys(), **OUTSIDE | {"ncols": 5})
    axes[0].set_ylabel("test accuracy by site (%)", **TEXT)
    return figure


def score_bar(axis: Axes, x: float, score: Score, width: float, colour: str) -> float:
    """A bar of the mean over folds with its sd, a point for each run; returns its top, in %."""
    if not score:
        return 0.0
    found = summarise(score)
    mean, sd = 100 * found.mean, 100 * float(np.nan_to_num(found.over_units))
    _bar(axis, x, mean, sd or None, width, colour)
    points = [100 * value for value in score.values()]
    axis.plot([x] * len(points), points, "o", ms=3.2, mfc="white", mec="#222", mew=0.7)
    return max(mean + sd, *points)


class Series(NamedTuple):
    """Accuracies (fractions) of each experiment in the runs of one method or split."""

    label: str
    colour: str
    of: Mapping[str, Sequence[float]]


def series_of(runs: list[FinishedRun]) -> list[Series]:
    """A series for each row of the table."""
    shown, rows = _shown(runs)
    colours = row_colours(runs)
    return [
        make_series(
            row_label(row), colours[row],
            [run.accuracy["site"]["experiment"] for run in shown if run.row == row],
        )
        for row in rows
    ]  # fmt: skip


def make_series(label: str, colour: str, accuracies: Sequence[Mapping[str, float]]) -> Series:
    """From {experiment: fraction} of each run."""
    found: dict[str, list[float]] = {}
    for accuracy in accuracies:
        for name, value in accuracy.items():
            found.setdefault(name, []).append(value)
    return Series(label, colour, found)


DOTS = "Large dots: mean over the runs that test it; small dots: runs."


def experiment_dots(series: Sequence[Series], chance: float) -> Figure:
    """Accuracy of each experiment: small dots are runs, large ones their mean; chance in %."""
    order = list(COLUMNS)
    names = sorted(
        {name for one in series for name in one.of},
        key=lambda name: (order.index(t) if (t := name.split("-")[0]) in order else 99, name),
    )
    height = 0.14 + 0.06 * max(len(series), 2)
    figure = Figure(figsize=(8, 1.3 + height * len(names)), layout="constrained")
    axis = figure.subplots()
    for i, (label, colour, of) in enumerate(series):
        dot: dict[str, Any] = {"mew": 0, "color": colour, "clip_on": False}
        for y, name in enumerate(names):
            values = [100 * value for value in of.get(name, ())]
            if values:
                place = y + (i - (len(series) - 1) / 2) * 0.7 / len(series)
                axis.plot(values, [place] * len(values), "o", ms=2.5, alpha=0.55, **dot)
                axis.plot(np.mean(values), place, "o", ms=5.5, **dot)
        axis.plot([], [], "o", ms=5.5, mew=0, color=colour, label=label)
    for y in range(1, len(names)):
        if names[y].split("-")[0] != names[y - 1].split("-")[0]:
            axis.axhline(y - 0.5, color="#BBB", lw=0.8)
    axis.axvline(chance, color="#222", lw=0.8, ls=":", label=f"chance, {chance:.2g} %")
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_xlim(0, min(100, 1.05 * axis.dataLim.x1))
    axis.set_xlabel("test accuracy by site (%)", **TEXT)
    tidy(axis, grid="x")
    figure.legend(*axis.get_legend_handles_labels(), **OUTSIDE)
    return figure


def channel_montage(chosen: dict[str, tuple[np.ndarray, list[np.ndarray]]]) -> Figure:
    """One site of each cell type: its six channels in the paper's colours and the composite."""
    figure, axes = _grid(len(chosen), len(CHANNELS) + 1)
    for line, (cell_type, (sites, images)) in zip(axes, chosen.items(), strict=True):
        planes = stretch(images[0], *contrast_limits(images, CHANNEL_PERCENTILES))
        for axis, plane, colour in zip(line, planes, CHANNEL_COLOURS, strict=False):
            _show(axis, plane[..., None] * colour)
        limits = contrast_limits(images, COMPOSITE_PERCENTILES)
        _show(line[-1], composite(stretch(images[0], *limits)))
        site = sites[0]
        where = f"{site['experiment']}, plate {site['plate']}\n{site['well']}, site {site['site']}"
        line[0].set_ylabel(f"{COLUMNS.get(cell_type, cell_type)}\n{where}", fontsize=8)
    for axis, channel in zip(axes[0], (*CHANNELS, "composite"), strict=True):
        axis.set_title(channel, fontsize=9)
    return figure


def experiment_montage(chosen: dict[str, tuple[np.ndarray, list[np.ndarray]]]) -> Figure:
    """One siRNA in several experiments of each cell type: what a batch effect looks like."""
    figure, axes = _grid(len(chosen), max(len(images) for _, images in chosen.values()))
    for line, (cell_type, (sites, images)) in zip(axes, chosen.items(), strict=True):
        limits = contrast_limits(images, COMPOSITE_PERCENTILES)
        for axis, site, image in zip(line, sites, images, strict=False):
            _show(axis, composite(stretch(image, *limits)))
            axis.set_title(str(site["experiment"]), fontsize=8)
        for axis in line[len(images) :]:
            axis.set_visible(False)
        name = COLUMNS.get(cell_type, cell_type)
        line[0].set_ylabel(f"{name}\nsirna_id {sites[0]['sirna_id']}", fontsize=8)
    return figure


def choose_sites(records: Images) -> dict[str, tuple[np.ndarray, list[np.ndarray]]]:
    """For each cell type, one site of the same treatment in up to SHOWN_EXPERIMENTS experiments.

    The treatment is the one seen in the most experiments, the lowest sirna_id among equals.
    Returns {cell type: (sites [n] structured, n images uint8 [6, H, W])}.
    """
    sites = records.sites
    chosen = {}
    for cell_type in [c for c in COLUMNS if c in set(sites["cell_type"].tolist())]:
        candidates = np.flatnonzero(
            (sites["cell_type"] == cell_type)
            & (sites["well_type"] == "treatment")
            & (sites["sirna_id"] >= 0)
        )
        if not len(candidates):
            continue
        pairs = np.unique(sites[candidates][["sirna_id", "experiment"]])
        sirna_ids, spread_over = np.unique(pairs["sirna_id"], return_counts=True)
        sirna_id = sirna_ids[spread_over.argmax()]
        same = candidates[sites["sirna_id"][candidates] == sirna_id]
        _, first = np.unique(sites["experiment"][same], return_index=True)
        kept = np.linspace(0, len(first) - 1, min(len(first), SHOWN_EXPERIMENTS)).round()
        rows = same[first[kept.astype(int)]]
        chosen[cell_type] = (sites[rows], [records[int(row)] for row in rows])
    return chosen


def _grid(rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(1.45 * columns + 0.7, 1.5 * rows + 0.3), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _show(axis: Axes, rgb: np.ndarray) -> None:
    axis.imshow(rgb, interpolation="nearest" if len(rgb) < 200 else "antialiased")
    axis.set_xticks([])
    axis.set_yticks([])
    for side in axis.spines.values():
        side.set_visible(False)


def _bar(axis: Axes, x: float, mean: float, sd: float | None, width: float, colour: str) -> None:
    axis.bar(x, mean, width * 0.94, yerr=sd, color=colour, error_kw={"lw": 1, "capsize": 2})


def tidy(axis: Axes, grid: Literal["x", "y"] = "y") -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis=grid, color="#E4E4E4", lw=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8)

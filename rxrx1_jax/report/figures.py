"""The pictures of a report: accuracies as marks, learning curves, images.

Each is narrow enough to be read on a telephone. A row of a table has its colour and its shape in
all of them. Nothing here touches pyplot, so no window system is needed.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rxrx1_jax.data.images import Images
from rxrx1_jax.methods.statistics import Score, summarise
from rxrx1_jax.report.runs import Group
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

WIDTH = 4.6  # inches; 9 points are then 9 px on a telephone
TEXT: dict[str, Any] = {"fontsize": 10}
SMALL = 9  # points: the smallest text
# Okabe and Ito's palette, which colour-blind readers can tell apart; each with a shape.
LOOKS = (
    ("#0072B2", "o"), ("#E69F00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#56B4E9", "v"),
    ("#D55E00", "P"), ("#999999", "X"), ("#000000", "*"), ("#F0E442", "h"),
)  # fmt: skip
TRAIN_COLOUR = "#777777"
ACCURACY = "test accuracy by site (%)"

SHOWN_EXPERIMENTS = 6  # of a cell type, at most
CONTRAST = (
    "Contrast: linear for each cell type and channel, from black at percentile "
    f"{CHANNEL_PERCENTILES[0]:g} (composite: {COMPOSITE_PERCENTILES[0]:g}) to full colour at "
    f"percentile {CHANNEL_PERCENTILES[1]:g} of the pixels of all sites shown of that cell type, "
    "these and the ones below; the same for every experiment, so differences between experiments "
    "are in the data. Composite: the coloured channels screened, 1 - (1 - a)(1 - b) and so on."
)


class Mark(NamedTuple):
    """A mean, its standard deviation over folds (NaN: none) and the runs, in %."""

    mean: float
    sd: float = math.nan
    runs: tuple[float, ...] = ()


class Series(NamedTuple):
    """What one method or split has in each row of a figure."""

    label: str
    of: Mapping[str, Mark]
    hollow: bool = False  # not measured here


def mark(score: Score) -> Mark:
    found = summarise(score)
    runs = tuple(100 * value for value in score.values())
    return Mark(100 * found.mean, 100 * found.over_units, runs)


def by_cell_type(groups: Sequence[Group], paper: bool) -> list[Series]:
    """A series for each line of Table 1, and the paper's two."""
    series = [
        Series(line.label + ("; separate models" if separate else ""), {
            COLUMNS[column]: mark(score)
            for column, score in zip(COLUMNS, line.scores, strict=True) if score
        })
        for separate in (False, True)[: 1 + groups[0].of_table1]
        for line in lines_of(groups, "site", separate)
    ]  # fmt: skip
    for label, cells in PAPER.items() if paper else ():
        of = {name: Mark(*cell) for name, cell in zip(COLUMNS.values(), cells, strict=True)}
        series.append(Series(f"The paper, real data: {label}", of, hollow=True))
    return series


def by_experiment(accuracies: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Series]:
    """A series for each {label: accuracies of its runs, as predictions.accuracies gives them}."""
    series = []
    for label, runs in accuracies.items():
        found: dict[str, list[float]] = {}
        for accuracy in runs:
            for name, value in accuracy["site"]["experiment"].items():
                found.setdefault(name, []).append(100 * value)
        of = {n: Mark(float(np.mean(v)), runs=tuple(v)) for n, v in found.items()}
        series.append(Series(label, of))
    return series


def experiments_of(series: Sequence[Series]) -> list[str]:
    """Their rows, by cell type in the paper's order."""
    order = list(COLUMNS)
    names = {name for one in series for name in one.of}
    kinds = {name: name.split("-")[0] for name in names}
    return sorted(names, key=lambda n: (order.index(k) if (k := kinds[n]) in order else 99, n))


def dots(rows: Sequence[str], series: Sequence[Series], chance: float) -> Figure:
    """Large marks: means, with ± 1 sd; small ones: runs. A row each, chance in %."""
    labels = [textwrap.fill(one.label, 44) for one in series]
    height = 0.2 + 0.12 * max(len(series), 2)
    lines = sum(label.count("\n") + 1 for label in labels) + 1
    figure = Figure(
        figsize=(WIDTH, 0.6 + height * len(rows) + 0.19 * lines), layout="constrained"
    )
    axis = figure.subplots()
    top = 0.0
    for i, (one, label) in enumerate(zip(series, labels, strict=True)):
        colour, shape = LOOKS[i % len(LOOKS)]
        face = "white" if one.hollow else colour
        look: dict[str, Any] = {"marker": shape, "color": colour, "mfc": face, "ls": ""}
        for y, name in enumerate(rows):
            if name not in one.of:
                continue
            mean, sd, runs = one.of[name]
            place = y + (i - (len(series) - 1) / 2) * 0.76 / len(series)
            for run in runs:
                axis.plot(run, place, ms=3, alpha=0.5, mew=0, clip_on=False, **look)
            if not math.isnan(sd):
                axis.plot([mean - sd, mean + sd], [place, place], color=colour, lw=1.2)
            axis.plot(mean, place, ms=6.5, clip_on=False, **look)
            top = max(top, mean + (0 if math.isnan(sd) else sd), *runs, mean)
        axis.plot([], [], ms=6.5, label=label, **look)
    for y in range(1, len(rows)):
        axis.axhline(y - 0.5, color="#DDD", lw=0.7)
    axis.axvline(chance, color="#222", lw=1, ls=":", label=f"chance, {chance:.2g} %")
    axis.set_yticks(range(len(rows)), rows)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlim(0, min(100, 1.08 * max(top, chance)))
    axis.set_xlabel(ACCURACY, **TEXT)
    tidy(axis, grid="x")
    legend(figure, axis)
    return figure


def learning_curves(groups: Sequence[Group]) -> Figure:
    """Accuracy and loss against epochs, a row of panels for each group, a line for each run."""
    figure = Figure(figsize=(WIDTH, 0.8 + 1.5 * len(groups)), layout="constrained")
    axes = figure.subplots(len(groups), 2, sharex=True, sharey="col", squeeze=False)
    for i, (line, of) in enumerate(zip(axes, groups, strict=True)):
        line[0].set_title(textwrap.fill(of.label, 60), fontsize=10, loc="left")
        for axis, quantity, scale in zip(line, ("accuracy", "loss"), (100, 1), strict=True):
            for half, style in (("train", "--"), ("test", "-")):
                colour = TRAIN_COLOUR if half == "train" else LOOKS[i % len(LOOKS)][0]
                for run in of.runs:
                    name = f"{half}_{quantity}"
                    points = [(e["epoch"], scale * e[name]) for e in run.metrics if name in e]
                    x, y = np.reshape(points, (-1, 2)).T
                    dot = "o" if len(points) == 1 else None
                    # Training values are those of a few batches each: noisy, so drawn thin.
                    width = 0.7 if half == "train" else 1.5
                    axis.plot(x, y, color=colour, lw=width, ls=style, marker=dot, ms=3)
            axis.set_ylabel("accuracy (%)" if scale > 1 else "loss (nats)", **TEXT)
            tidy(axis)
    for axis, last in zip(axes[0], axes[-1], strict=True):
        axis.set_ylim(bottom=0)
        last.set_xlabel("epoch", **TEXT)
    axes[0, 0].plot([], [], color=TRAIN_COLOUR, ls="--", label="dashed: batches of the training")
    axes[0, 0].plot([], [], color=LOOKS[0][0], label="solid: test sites")
    legend(figure, axes[0, 0])
    return figure


def last_accuracies(groups: Sequence[Group]) -> str:
    """What the learning curves end with."""
    said = []
    for of in groups:
        ends = [
            [[e[name] for e in run.metrics if name in e][-1:] for run in of.runs]
            for name in ("train_accuracy", "test_accuracy")
        ]
        if all(all(end) for end in ends):
            train, test = (100 * float(np.mean(end)) for end in ends)
            said.append(f"{of.label}: {train:.0f} % in training, {test:.0f} % of the test sites")
    return "; ".join(said)


def channel_montage(chosen: dict[str, tuple[np.ndarray, list[np.ndarray]]]) -> Figure:
    """One site of each cell type: its six channels in the paper's colours and the composite."""
    figure, axes = _grid(len(CHANNELS) + 1, len(chosen))
    for line, (cell_type, (sites, images)) in zip(axes.T, chosen.items(), strict=True):
        planes = stretch(images[0], *contrast_limits(images, CHANNEL_PERCENTILES))
        for axis, plane, colour in zip(line, planes, CHANNEL_COLOURS, strict=False):
            _show(axis, plane[..., None] * colour)
        limits = contrast_limits(images, COMPOSITE_PERCENTILES)
        _show(line[-1], composite(stretch(images[0], *limits)))
        where = f"{sites[0]['experiment']}\nplate {sites[0]['plate']}, {sites[0]['well']}"
        line[0].set_title(f"{COLUMNS.get(cell_type, cell_type)}\n{where}", fontsize=SMALL)
    for axis, channel in zip(axes[:, 0], (*CHANNELS, "composite"), strict=True):
        _name_row(axis, channel)
    return figure


def experiment_montage(chosen: dict[str, tuple[np.ndarray, list[np.ndarray]]]) -> Figure:
    """One siRNA in several experiments of each cell type: what a batch effect looks like."""
    figure, axes = _grid(max(len(images) for _, images in chosen.values()), len(chosen))
    for line, (cell_type, (sites, images)) in zip(axes.T, chosen.items(), strict=True):
        limits = contrast_limits(images, COMPOSITE_PERCENTILES)
        for axis, site, image in zip(line, sites, images, strict=False):
            _show(axis, composite(stretch(image, *limits)))
            axis.set_title(str(site["experiment"]), fontsize=SMALL)
        for axis in line[len(images) :]:
            axis.set_visible(False)
        name = COLUMNS.get(cell_type, cell_type)
        named = f"{name}, siRNA {sites[0]['sirna_id']}"
        line[0].set_title(f"{named}\n{sites[0]['experiment']}", fontsize=SMALL)
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
    side = (WIDTH - 0.8) / max(columns, 3)
    figure = Figure(figsize=(WIDTH, (side + 0.2) * rows + 0.5), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _name_row(axis: Axes, text: str) -> None:
    said = textwrap.fill(text, 12)
    axis.set_ylabel(said, rotation=0, ha="right", va="center", fontsize=SMALL)


def _show(axis: Axes, rgb: np.ndarray) -> None:
    axis.imshow(rgb, interpolation="nearest" if len(rgb) < 200 else "antialiased")
    axis.set_xticks([])
    axis.set_yticks([])
    for side in axis.spines.values():
        side.set_visible(False)


def legend(figure: Figure, axis: Axes) -> None:
    """Above the axes, a line for each entry."""
    figure.legend(
        *axis.get_legend_handles_labels(), loc="outside upper left", frameon=False, fontsize=SMALL,
        borderaxespad=0.1,
    )  # fmt: skip


def tidy(axis: Axes, grid: Literal["x", "y"] = "y") -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis=grid, color="#E4E4E4", lw=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=SMALL)

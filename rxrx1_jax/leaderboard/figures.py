"""The pictures of the leaderboard: gains, gaps, accuracy by experiment."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from rxrx1_jax.leaderboard.scores import Row, Score, by_fold, difference, ratio
from rxrx1_jax.methods import statistics
from rxrx1_jax.methods.evidence import BUDGETS
from rxrx1_jax.report.figures import OUTSIDE, ROW_COLOURS, TEXT, tidy
from rxrx1_jax.report.runs import PROTOCOLS
from rxrx1_jax.report.table1 import COLUMNS

BUDGET_COLOURS = dict(zip(BUDGETS, ("#0072B2", "#009E73", "#E69F00", "#999999"), strict=True))
DOT_COLOURS = ("#222222", "#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#D55E00")
SHOWN_METHODS = len(DOT_COLOURS)


def gains(rows: Sequence[Row], baseline: str) -> Figure:
    """Gain by site over the baseline with its interval; a dot for each fold (mean over seeds)."""
    base = next(row.by_site for row in rows if row.name == baseline)
    others = [row for row in rows if row.name != baseline]
    found = [difference(row.by_site, base) for row in others]
    places = [k + BUDGETS.index(row.budget) * 0.8 for k, row in enumerate(others)]
    figure = Figure(figsize=(8, 1.3 + 0.23 * len(others)), layout="constrained")
    axis = figure.subplots()
    for row, gain, y in zip(others, found, places, strict=True):
        if gain is None:
            continue
        colour = BUDGET_COLOURS[row.budget]
        if gain.n > 1:
            axis.plot([100 * gain.low, 100 * gain.high], [y, y], color=colour, lw=2, alpha=0.7)
        keys = row.by_site.keys() & base.keys()
        folds = by_fold({key: row.by_site[key] - base[key] for key in keys})
        dots = [100 * value for value in folds.values()]
        axis.plot(dots, [y] * len(dots), "o", ms=3, mfc="white", mec=colour, mew=0.8)
        axis.plot(100 * gain.mean, y, "o", ms=6, color=colour)
    for budget, colour in BUDGET_COLOURS.items():
        if any(row.budget == budget for row in others):
            axis.plot([], [], "o-", color=colour, ms=6, lw=2, label=budget)
    axis.axvline(0, color="#222", lw=0.8)
    axis.set_yticks(places, [row.name for row in others])
    axis.set_ylim(max(places, default=0) + 0.7, -0.7)
    axis.set_xlabel(f"gain over {baseline}, accuracy by site (points)", **TEXT)
    tidy(axis, grid="x")
    figure.legend(**OUTSIDE | {"ncols": len(BUDGETS)})
    return figure


def gap_bars(scores: Mapping[str, Mapping[str, Score]], chance: float) -> Figure:
    """Accuracy of each method on the batch and the random splits; gap in points and as a ratio.

    scores: {method: {protocol: {(fold, seed): fraction}}}. chance in %.
    """
    figure = Figure(figsize=(max(4.5, 1.2 + 2.1 * len(scores)), 4.2), layout="constrained")
    axis = figure.subplots()
    protocols = [p for p in PROTOCOLS if any(p in found for found in scores.values())]
    width = 0.8 / len(protocols)
    for x, found in enumerate(scores.values()):
        for i, protocol in enumerate(protocols):
            score = found.get(protocol)
            if not score:
                continue
            place = x + (i - (len(protocols) - 1) / 2) * width
            folds = [100 * value for value in by_fold(score).values()]
            spread = statistics.spread(folds)
            colour = ROW_COLOURS[protocol, "plate_control"]
            axis.bar(
                place, spread.mean, width * 0.94, color=colour,
                label=PROTOCOLS[protocol] if x == 0 else None,
                yerr=None if math.isnan(spread.sd) else spread.sd,
                error_kw={"lw": 1, "capsize": 2},
            )  # fmt: skip
            dots = [100 * value for value in score.values()]
            axis.plot([place] * len(dots), dots, "o", ms=3, mfc="white", mec="#222", mew=0.6)
            gap = difference(score, found["batch"]) if protocol != "batch" else None
            if gap:
                top = max(*dots, spread.mean + (0 if math.isnan(spread.sd) else spread.sd))
                text = f"{100 * gap.mean:+.1f}\n× {ratio(score, found['batch']):.2f}"
                axis.text(place, top + 1.5, text, ha="center", va="bottom", fontsize=8)
    axis.axhline(chance, color="#222", lw=0.8, ls=":", label=f"chance, {chance:.2g} %")
    axis.set_xticks(range(len(scores)), list(scores))
    top = max(
        100 * v for found in scores.values() for score in found.values() for v in score.values()
    )
    axis.set_ylim(0, min(112, top + 14))
    axis.set_ylabel("test accuracy by site (%)", **TEXT)
    tidy(axis)
    handles, labels = axis.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda k: labels[k].startswith("chance"))
    figure.legend(
        [handles[k] for k in order], [labels[k] for k in order],
        **OUTSIDE | {"ncols": 4 if len(scores) > 2 else 2},
    )  # fmt: skip
    return figure


def experiment_dots(rows: Sequence[Row], chance: float) -> Figure:
    """Accuracy by site of each test experiment, means over seeds; lines join a method's dots."""
    names = sorted(
        {name for row in rows for a in row.accuracy.values() for name in a["site"]["experiment"]},
        key=lambda name: (_cell_type_order(name), name),
    )
    figure = Figure(figsize=(8.5, 1.4 + 0.36 * len(names)), layout="constrained")
    axis = figure.subplots()
    for k, row in enumerate(rows):
        offset = (k - (len(rows) - 1) / 2) * 0.6 / max(1, len(rows) - 1)
        for y, name in enumerate(names):
            values = [
                100 * a["site"]["experiment"][name]
                for a in row.accuracy.values()
                if name in a["site"]["experiment"]
            ]
            if values:
                ends = [min(values), max(values)]
                axis.plot(ends, [y + offset] * 2, color=DOT_COLOURS[k], lw=1, alpha=0.6)
                axis.plot(np.mean(values), y + offset, "o", ms=5, color=DOT_COLOURS[k])
        axis.plot([], [], "o", ms=5, color=DOT_COLOURS[k], label=row.name)
    for y in range(len(names) - 1):
        axis.axhline(y + 0.5, color="#EEE", lw=0.7)
    axis.axvline(chance, color="#222", lw=0.8, ls=":", label=f"chance, {chance:.2g} %")
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_xlim(0, 1.03 * axis.dataLim.x1)
    axis.set_xlabel("test accuracy by site (%)", **TEXT)
    tidy(axis, grid="x")
    figure.legend(**OUTSIDE)
    return figure


def choose_rows(rows: Sequence[Row], baseline: str) -> list[Row]:
    """The baseline and, of each budget, the row with the highest mean by site."""
    chosen = [row for row in rows if row.name == baseline]
    for budget in BUDGETS:
        members = [row for row in rows if row.budget == budget and row.name != baseline]
        if members:
            chosen.append(
                max(members, key=lambda row: np.mean(list(by_fold(row.by_site).values())))
            )
    return chosen


def _cell_type_order(experiment: str) -> int:
    order = list(COLUMNS)
    cell_type = experiment.split("-")[0]
    return order.index(cell_type) if cell_type in order else len(order)

"""The pictures of the leaderboard: gains, gaps, accuracy by experiment."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from rxrx1_jax.leaderboard.methods import Methods
from rxrx1_jax.leaderboard.scores import Row
from rxrx1_jax.leaderboard.scores import gains as gains_of
from rxrx1_jax.methods.evidence import BUDGETS
from rxrx1_jax.methods.statistics import Score, by_fold, difference, ratio, summarise
from rxrx1_jax.report.figures import (
    OUTSIDE,
    ROW_COLOURS,
    TEXT,
    Series,
    make_series,
    score_bar,
    tidy,
)
from rxrx1_jax.report.runs import PROTOCOLS

BUDGET_COLOURS = dict(
    zip(BUDGETS, ("#0072B2", "#009E73", "#E69F00", "#999999", "#CC79A7"), strict=True)
)
DOT_COLOURS = ("#222222", "#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#D55E00")


def gains(methods: Methods, rows: Sequence[Row]) -> Figure:
    """Gain by site over the baseline with its interval; a dot for each fold (mean over seeds)."""
    found = gains_of(methods, rows)
    others = [row for row in rows if row.name != methods.baseline]
    places = [k + BUDGETS.index(row.budget) * 0.8 for k, row in enumerate(others)]
    figure = Figure(figsize=(8, 1.3 + 0.23 * len(others)), layout="constrained")
    axis = figure.subplots()
    for row, y in zip(others, places, strict=True):
        pairs, gain = found[row.name]
        if not gain.n:
            continue
        colour = BUDGET_COLOURS[row.budget]
        if not math.isnan(gain.low):
            axis.plot([100 * gain.low, 100 * gain.high], [y, y], color=colour, lw=2, alpha=0.7)
        dots = [100 * value for value in by_fold(pairs).values()]
        axis.plot(dots, [y] * len(dots), "o", ms=3, mfc="white", mec=colour, mew=0.8)
        axis.plot(100 * gain.mean, y, "o", ms=6, color=colour)
    for budget, colour in BUDGET_COLOURS.items():
        if any(row.budget == budget for row in others):
            axis.plot([], [], "o-", color=colour, ms=6, lw=2, label=budget)
    axis.axvline(0, color="#222", lw=0.8)
    axis.set_yticks(places, [row.name for row in others])
    axis.set_ylim(max(places, default=0) + 0.7, -0.7)
    axis.set_xlabel(f"gain over {methods.baseline}, accuracy by site (points)", **TEXT)
    tidy(axis, grid="x")
    figure.legend(**OUTSIDE | {"ncols": len(BUDGETS)})
    return figure


def gap_bars(scores: Mapping[str, Mapping[str, Score]], chance: float) -> Figure:
    """Accuracy of each method on the batch and the random splits; gap in points and as a ratio.

    scores: {method: {protocol: score}}. chance in %.
    """
    figure = Figure(figsize=(max(4.5, 1.2 + 2.1 * len(scores)), 4.2), layout="constrained")
    axis = figure.subplots()
    protocols = [p for p in PROTOCOLS if any(found.get(p) for found in scores.values())]
    width, highest = 0.8 / len(protocols), 0.0
    for x, found in enumerate(scores.values()):
        for i, protocol in enumerate(protocols):
            score = found.get(protocol)
            if not score:
                continue
            place = x + (i - (len(protocols) - 1) / 2) * width
            top = score_bar(axis, place, score, width, ROW_COLOURS[protocol, "plate_control"])
            highest = max(highest, top)
            gap = summarise(difference(score, found["batch"]))
            if protocol != "batch" and gap.n:
                text = f"{100 * gap.mean:+.1f}\n× {ratio(score, found['batch']):.2f}"
                axis.text(place, top + 1.5, text, ha="center", va="bottom", fontsize=8)
    legend: dict[str, Any] = {
        PROTOCOLS[protocol]: axis.bar(0, 0, color=ROW_COLOURS[protocol, "plate_control"])
        for protocol in protocols
    }
    legend[f"chance, {chance:.2g} %"] = axis.axhline(chance, color="#222", lw=0.8, ls=":")
    axis.set_xticks(range(len(scores)), list(scores))
    axis.set_ylim(0, min(112, highest + 14))
    axis.set_ylabel("test accuracy by site (%)", **TEXT)
    tidy(axis)
    columns = 4 if len(scores) > 2 else 2
    figure.legend(legend.values(), legend.keys(), **OUTSIDE | {"ncols": columns})
    return figure


def choose_rows(rows: Sequence[Row], baseline: str) -> list[Row]:
    """The baseline and the first other row of each budget: the test set chooses none."""
    others: dict[str, Row] = {}
    for row in rows:
        if row.name != baseline:
            others.setdefault(row.budget, row)
    return [*(row for row in rows if row.name == baseline), *others.values()]


def series_of(rows: Sequence[Row]) -> list[Series]:
    """Accuracy of each test experiment in the runs of each row, for `experiment_dots`."""
    return [
        make_series(row.name, colour, [a["site"]["experiment"] for a in row.accuracy.values()])
        for row, colour in zip(rows, DOT_COLOURS, strict=False)
    ]

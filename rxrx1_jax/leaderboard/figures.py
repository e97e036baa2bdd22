"""The pictures of the leaderboard: gains, gaps, accuracy by experiment."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from rxrx1_jax.leaderboard.methods import Methods
from rxrx1_jax.leaderboard.scores import Row
from rxrx1_jax.leaderboard.scores import gains as gains_of
from rxrx1_jax.methods.evidence import BUDGETS
from rxrx1_jax.methods.statistics import Comparison, Score, by_fold
from rxrx1_jax.report import figures
from rxrx1_jax.report.figures import LOOKS, SMALL, TEXT, WIDTH, Series, mark
from rxrx1_jax.report.runs import PROTOCOLS

LINEAR = 10  # points: beyond them the axis of gains is logarithmic
TICKS = (-80, -30, -10, -5, 0, 5, 10, 30, 80)


def gains(methods: Methods, rows: Sequence[Row]) -> Figure:
    """Gain by site over the baseline with its interval; a dot for each fold (mean over seeds)."""
    budgets = {row.name: row.budget for row in rows}
    return gain_dots(gains_of(methods, rows), budgets, methods.baseline)


def gain_dots(
    found: Mapping[str, tuple[Score, Comparison]], budgets: Mapping[str, str], baseline: str
) -> Figure:
    """A row for each {name: (differences, comparison)} that has some."""
    others = [name for name, (_, gain) in found.items() if gain.n]
    places = [k + BUDGETS.index(budgets[name]) * 0.8 for k, name in enumerate(others)]
    figure = Figure(figsize=(WIDTH, 1.7 + 0.24 * len(others)), layout="constrained")
    axis = figure.subplots()
    for name, y in zip(others, places, strict=True):
        pairs, gain = found[name]
        colour, shape = LOOKS[BUDGETS.index(budgets[name])]
        if not math.isnan(gain.low):
            axis.plot([100 * gain.low, 100 * gain.high], [y, y], color=colour, lw=2, alpha=0.7)
        dots = [100 * value for value in by_fold(pairs).values()]
        axis.plot(dots, [y] * len(dots), shape, ms=3, mfc="white", mec=colour, mew=0.8)
        axis.plot(100 * gain.mean, y, shape, ms=6, color=colour)
    for budget, (colour, shape) in zip(BUDGETS, LOOKS, strict=False):
        if any(budgets[name] == budget for name in others):
            axis.plot([], [], shape, ls="-", color=colour, ms=6, lw=2, label=budget)
    axis.axvline(0, color="#222", lw=0.8)
    axis.set_yticks(places, [name.replace(f"{baseline} + ", "+ ") for name in others])
    axis.set_ylim(max(places, default=0) + 0.7, -0.7)
    axis.set_xscale("symlog", linthresh=LINEAR)
    low, high = axis.get_xlim()
    axis.set_xticks([tick for tick in TICKS if low <= tick <= high])
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.minorticks_off()
    axis.set_xlabel(f"gain over {baseline} (points)", **TEXT)
    figures.tidy(axis, grid="x")
    axis.tick_params(axis="y", labelsize=SMALL)
    figures.legend(figure, axis)
    return figure


def gap_series(scores: Mapping[str, Mapping[str, Score]]) -> list[Series]:
    """{method: {protocol: score}} -> a series for each protocol, a row for each method."""
    return [
        Series(label, {method: mark(of[protocol]) for method, of in scores.items() if of[protocol]})
        for protocol, label in PROTOCOLS.items()
        if any(of.get(protocol) for of in scores.values())
    ]


def experiments(rows: Sequence[Row]) -> list[Series]:
    """A series for each row. Experiments of several worlds are told apart by their world."""
    several = len({unit.world for row in rows for unit in row.accuracy}) > 1
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        for unit, accuracy in row.accuracy.items():
            where = f" of {unit.world}" if several else ""
            named = {f"{n}{where}": x for n, x in accuracy["site"]["experiment"].items()}
            found.setdefault(row.name, []).append({"site": {"experiment": named}})
    return figures.by_experiment(found)


def choose_rows(rows: Sequence[Row], baseline: str) -> list[Row]:
    """The baseline and the first other row of each budget: the test set chooses none."""
    others: dict[str, Row] = {}
    for row in rows:
        if row.name != baseline:
            others.setdefault(row.budget, row)
    return [*(row for row in rows if row.name == baseline), *others.values()]

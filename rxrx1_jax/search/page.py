"""The page of a search: what was drawn, chosen and gained, and how fast the best was found."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from rxrx1_jax.data.files import write_text
from rxrx1_jax.leaderboard.scores import Outcome, by_site, select
from rxrx1_jax.methods.statistics import Comparison, Score, compare, units_of
from rxrx1_jax.report import figures
from rxrx1_jax.report.comparison import GAIN, told_apart
from rxrx1_jax.report.figures import LOOKS, SMALL, TEXT, WIDTH
from rxrx1_jax.report.page import ToldPage
from rxrx1_jax.report.runs import shared_of
from rxrx1_jax.report.tables import Cell, Links, Table, Value, gain, percent
from rxrx1_jax.search.space import name_of
from rxrx1_jax.search.trials import DIVERGED, Draw, Draws, is_judged

TITLE = "RxRx1: settings that were searched, the same number of draws per method"
OWN = "own"  # settings of a method: those that the methods file gives it
COLUMNS = 3  # panels beside each other


def write(
    draws: Draws, choice: Mapping[str, int], found: Sequence[Outcome], judges: str, out: Path
) -> tuple[str, Path]:
    """Writes OUT/search.md, index.html, the picture and tables. Returns the Markdown and the page.

    Args:
      choice: {method: number of a draw}; empty while draws are left to do.
      found: the runs of the leaderboard, of chosen and own settings; none while there is no choice.
      judges: what chose, in words.
    """
    page = ToldPage(TITLE, out)
    gains = {name: _gain(name, draw, found) for name, draw in choice.items()}
    changed = {name: of for name, (*_, of) in gains.items() if choice[name]}
    if changed:
        units = units_of(score for one in gains.values() for score in one[:2])
        page.say(told_apart(changed, "own settings", units), "result")
    number = max(map(len, draws.values()))
    page.say(f"{number} draws of each of {len(draws)} methods, judged by {judges}.")
    if left := sum(not is_judged(draw) for of in draws.values() for draw in of):
        page.say(f"Nothing is chosen yet. Draws that are not done: {left}, see below.", "note")
    page.show("search", _table(draws, choice, gains), "What was drawn, chosen and gained")
    if any(not math.isnan(draw.accuracy) for of in draws.values() for draw in of):
        best = {name: best_so_far(of)[-1] for name, of in draws.items()}
        said = (f"{name} {value:.1f} %" for name, value in best.items() if not math.isnan(value))
        page.picture(
            "draws", figure(draws), f"Best accuracy over draws. In the end: {', '.join(said)}.",
            f"Line: highest accuracy by site of {judges}, after so many draws. Dots: draws, the "
            "first with the method's own settings. A line that still rises asks for more draws.",
        )  # fmt: skip
    page.show("draws", _draws_table(draws), "Draws")
    if choice:
        page.parts.append('<p><a href="leaderboard/index.html">The leaderboard of these settings'
                          "</a></p>")  # fmt: skip
    text = "\n".join(page.texts)
    write_text(out / "search.md", text)
    return text, page.write()


def best_so_far(draws: Sequence[Draw]) -> np.ndarray:
    """[n] the highest accuracy of the first 1, 2 ... draws, %; NaN before the first there is."""
    return np.fmax.accumulate([100 * draw.accuracy for draw in draws])


def figure(draws: Draws) -> Figure:
    """A panel for each method, all with the same axes."""
    rows = -(-len(draws) // COLUMNS)
    made = Figure(figsize=(WIDTH, 0.5 + 1.3 * rows), layout="constrained")
    axes = made.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False)
    for axis, (name, of) in zip(axes.flat, draws.items(), strict=False):
        x, colour = np.arange(1, len(of) + 1), LOOKS[0][0]
        axis.plot(x, [100 * draw.accuracy for draw in of], "o", ms=3, color=LOOKS[6][0])
        axis.plot(x, best_so_far(of), drawstyle="steps-post", color=colour, lw=1.5)
        axis.plot(x[-1:], best_so_far(of)[-1:], "o", ms=4, color=colour)
        axis.set_title(name, fontsize=SMALL, loc="left")
        axis.xaxis.get_major_locator().set_params(integer=True)
        figures.tidy(axis)
    for axis in list(axes.flat)[len(draws) :]:
        axis.set_visible(False)
    made.supxlabel("draws", **TEXT)
    made.supylabel("accuracy by site (%)", **TEXT)
    return made


def _gain(name: str, draw: int, found: Sequence[Outcome]) -> tuple[Score, Score, Comparison]:
    """(test accuracy with the chosen settings, with the method's own, their difference)."""
    runs = [select(found, of) for of in (name_of(name, draw), name)]
    chosen, own = map(by_site, runs)
    shared = shared_of(o.run for of in runs for o in of if o.run)
    return chosen, own, compare(chosen, own, shared)


def _table(
    draws: Draws, choice: Mapping[str, int], gains: Mapping[str, tuple[Score, Score, Comparison]]
) -> Table:
    rows: list[list[Cell]] = []
    for name, of in draws.items():
        done, diverged = (sum(map(test, of)) for test in (is_judged, _diverged))
        said = f"{done}" + f", {diverged} {DIVERGED}" * bool(diverged)
        if name not in choice:
            rows.append([name, said, "", "", *[Value(math.nan)] * 5])
            continue
        draw, (chosen, own, difference) = of[choice[name]], gains[name]
        settings = ", ".join(f"{field}={value}" for field, value in draw.settings.items())
        judged = (Value(100 * one.accuracy) for one in (of[0], draw))
        rows.append([
            name, said, str(draw.number) if draw.number else OWN, settings, *judged, percent(own),
            percent(chosen), gain(difference) if draw.number else Value(math.nan),
        ])  # fmt: skip
    head = ["method", "draws", "chosen", "its settings", "validation: own", "validation: chosen"]
    head += ["test: own", "test: chosen", GAIN]
    notes = [
        "Own: the method's settings in the methods file, draw 0. Validation: accuracy by "
        "site of what chose. That of the chosen draw is the highest of all draws, so it flatters. "
        "Test: of what chose nothing, ± sd. Gain: chosen minus own on the same fold and seed, with "
        "its 95 % interval, as in the leaderboard."
    ]
    return Table("Drawn, chosen and gained, %", head, rows, notes)


def _draws_table(draws: Draws) -> Table:
    """All draws, with their settings."""
    fields = list(dict.fromkeys(f for of in draws.values() for one in of for f in one.settings))
    rows: list[list[Cell]] = [
        [
            name, Value(draw.number, 0), *(str(draw.settings.get(field, "")) for field in fields),
            Value(100 * draw.accuracy), draw.why,
            Links(tuple((str(k), path) for k, path in enumerate(draw.paths) if path.exists())),
        ]
        for name, of in draws.items()
        for draw in of
    ]  # fmt: skip
    head = ["method", "draw", *fields, "validation", "not judged", "runs"]
    return Table("Every draw, accuracy in %", head, rows)


def _diverged(draw: Draw) -> bool:
    return draw.why == DIVERGED

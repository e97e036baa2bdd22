"""Gain over dose: what corrections give as batch effects grow, from finished leaderboards.

    make dose
    python -m benchmarks.dose 0=runs/worlds/0 0.5=runs/worlds/0.5 1=runs/worlds/1 --out=dose.png

DOSE=DIR: a leaderboard with the methods of configs/dose.py on worlds whose batch effects are DOSE
times the screen's. Prints the table, and draws the gap and the gains over dose, with intervals over
worlds. A right screen has 0 at dose 0: no method can remove what is not there.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.acceptance import BASE, corrected, finished, gap
from rxrx1_jax.data.files import replacing
from rxrx1_jax.leaderboard.scores import NONE, Outcome, by_site, select
from rxrx1_jax.methods.catalogue import reference
from rxrx1_jax.methods.statistics import Comparison, Score, compare, difference
from rxrx1_jax.report.figures import LOOKS, TEXT, WIDTH, legend, tidy
from rxrx1_jax.report.runs import shared_of
from rxrx1_jax.report.tables import Cell, Table, gain

METHODS = "adabn_experiment", "centre_experiment", "centre_scale_plate"
GAP = "gap: random by well - batch"
Curves = Mapping[str, Mapping[float, Comparison]]  # name -> dose -> difference


def folders(words: Sequence[str]) -> dict[float, Path]:
    """{dose: folder}, of DOSE=DIR. Raises ValueError."""
    found: dict[float, Path] = {}
    for word in words:
        text, _, folder = word.partition("=")
        try:
            dose = float(text)
        except ValueError:
            dose = math.nan
        if not (0 <= dose < math.inf and folder):
            raise ValueError(f"{word!r}: expected DOSE=DIR, a dose of 0 or more")
        if dose in found:
            raise ValueError(f"dose {text} is there twice: expected one folder per dose")
        found[dose] = Path(folder)
    return found


def differences(outcomes: Sequence[Outcome]) -> dict[str, Score]:
    """The gap, and the gain of each correction over the same read-out without it."""
    found = {GAP: gap(outcomes)}
    for name in METHODS:
        base, network = reference(name), by_site(select(outcomes, BASE))
        plain = network if base == NONE else corrected(outcomes, base)
        found[f"gain of {name}"] = difference(corrected(outcomes, name), plain)
    return found


def curves(doses: Mapping[float, Sequence[Outcome]]) -> Curves:
    found: dict[str, dict[float, Comparison]] = {}
    for dose, outcomes in doses.items():
        shared = shared_of(o.run for o in outcomes if o.run)
        for name, score in differences(outcomes).items():
            compared = compare(score, dict.fromkeys(score, 0.0), shared)
            found.setdefault(name, {})[dose] = compared
    return found


def table_of(found: Curves) -> Table:
    doses = list(next(iter(found.values())))
    rows: list[list[Cell]] = [
        [name, *(gain(of[dose]) for dose in doses)] for name, of in found.items()
    ]
    head = ["accuracy by site, points", *(f"dose {dose:g}" for dose in doses)]
    notes = ["Means over worlds, with 95 % intervals."]
    return Table("Gap and gains over the dose of batch effects", head, rows, notes)


def draw(found: Curves) -> Figure:
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axis = figure.subplots()
    for i, (name, of) in enumerate(found.items()):
        colour, shape = LOOKS[i]
        shift = 0.02 * (i - (len(found) - 1) / 2)  # so that intervals do not hide each other
        for dose, one in of.items():
            axis.plot([dose + shift] * 2, [100 * one.low, 100 * one.high], color=colour, lw=1)
        means = 100 * np.array([one.mean for one in of.values()])
        axis.plot(np.array([*of]) + shift, means, shape, ls="-", color=colour, ms=5, label=name)
    axis.axhline(0, color="#222", lw=0.8)
    axis.set_xticks(list(next(iter(found.values()))))
    axis.set_xlabel("dose of batch effects", **TEXT)
    axis.set_ylabel("points of accuracy by site", **TEXT)
    tidy(axis)
    legend(figure, axis)
    return figure


def save(found: Curves, path: Path) -> None:
    with replacing(path) as partial:
        draw(found).savefig(partial, format="png", dpi=200)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.dose", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("doses", nargs="+", metavar="DOSE=DIR", help="workdir of a leaderboard")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the picture, .png")
    options = parser.parse_args(arguments)
    try:
        given = folders(options.doses)
        if options.out.is_dir() or not options.out.parent.is_dir():
            raise ValueError(f"--out={options.out}: expected a file in a folder that is there")
        found = curves({dose: finished(given[dose]) for dose in sorted(given)})
        save(found, options.out)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table_of(found).markdown())
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Results by siRNA: which are hard, what they are taken for, and how many wells they had."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rxrx1_jax.methods.statistics import wilson
from rxrx1_jax.report import figures
from rxrx1_jax.report.runs import Group
from rxrx1_jax.report.tables import NOTHING, Cell, Table, Value

if TYPE_CHECKING:
    from rxrx1_jax.report.page import Page

SHOWN = 10  # rows of a table of the page
HEAD = ["siRNA", "name", "accuracy, %", "right", "wells", "training wells", "taken for", "times"]


class Results(NamedTuple):
    """K siRNAs by their ids, ascending, and P pairs of a siRNA and another one it was taken for.

    A well that several runs test counts once: each of them has a part of it.
    """

    ids: np.ndarray  # int [K]: labels and predictions
    names: dict[int, str]
    wells: np.ndarray  # float [K]
    right: np.ndarray  # float [K]
    trained: np.ndarray  # float [K], mean over the runs; NaN where they do not say
    pairs: np.ndarray  # int [P, 2]: positions of the label and of the prediction
    times: np.ndarray  # float [P]
    expected: np.ndarray  # float [P], were wrong predictions independent of the label

    @property
    def tested(self) -> np.ndarray:
        """bool [K]: siRNAs with a test well."""
        return self.wells > 0


def results(tables: Sequence[pa.Table], trained: Sequence[Mapping[int, int]] = ()) -> Results:
    """Of the wells that runs tested: a table for each run, a row a well, with well_id, label,
    well_prediction and maybe sirna; trained: {sirna_id: training wells} of each run."""
    columns = [np.concatenate([table[name].to_numpy(zero_copy_only=False) for table in tables])
               for name in ("label", "well_prediction", "well_id")]  # fmt: skip
    ids, codes = np.unique(np.concatenate(columns[:2]), return_inverse=True)
    label, said = np.split(codes, 2)
    _, well, runs = np.unique(columns[2], return_inverse=True, return_counts=True)
    part = 1 / runs[well]
    k, wrong = len(ids), label != said
    pairs, place = np.unique(label[wrong] * k + said[wrong], return_inverse=True)
    label_of, said_of = pairs // k, pairs % k
    missed = np.bincount(label[wrong], part[wrong], minlength=k)
    taken = np.bincount(said[wrong], part[wrong], minlength=k)
    expected = missed[label_of] * taken[said_of] / (missed.sum() - missed[said_of])
    names = {
        sirna: name for table in tables if "sirna" in table.column_names
        for sirna, name in zip(*(table[x].to_pylist() for x in ("label", "sirna")), strict=True)
    }  # fmt: skip
    counts = [[of.get(sirna, 0) for sirna in ids.tolist()] for of in trained if of]
    return Results(
        ids, names, np.bincount(label, part, k), np.bincount(label[~wrong], part[~wrong], k),
        np.mean(counts, axis=0) if counts else np.full(k, math.nan),
        np.stack([label_of, said_of], axis=1), np.bincount(place, part[wrong], len(pairs)),
        expected,
    )  # fmt: skip


def hardest(found: Results) -> np.ndarray:
    """Positions of the tested siRNAs, those first whose interval ends lowest."""
    high = wilson(found.right, found.wells)[1]
    return np.lexsort((found.ids, high))[: found.tested.sum()]  # NaN, untested, comes last


def all_sirnas(found: Results) -> Table:
    """A row for each tested siRNA, the hardest first."""
    low, high = (100 * end for end in wilson(found.right, found.wells))
    often = dict[int, int]()  # position of a siRNA -> its most frequent pair, the first of equals
    for pair in np.argsort(-found.times, kind="stable").tolist():
        often.setdefault(int(found.pairs[pair, 0]), pair)
    rows: list[list[Cell]] = []
    for k in hardest(found).tolist():
        pair = often.get(k)
        taken: list[Cell] = [NOTHING, Value(math.nan)]
        if pair is not None:
            taken = [str(found.ids[found.pairs[pair, 1]]), _count(found.times[pair])]
        share = 100 * found.right[k] / found.wells[k]
        rows.append([
            str(found.ids[k]), found.names.get(int(found.ids[k]), ""),
            Value(share, low=low[k], high=high[k]), _count(found.right[k]), _count(found.wells[k]),
            _count(found.trained[k]), *taken,
        ])  # fmt: skip
    return Table("Test wells by siRNA, the hardest first", HEAD, rows)


def confusions(found: Results) -> Table:
    """The pairs that occur most often; of equals those that are expected least."""
    back = {tuple(pair): n for pair, n in zip(found.pairs.tolist(), found.times, strict=True)}
    rows: list[list[Cell]] = []
    for pair in np.lexsort((found.expected, -found.times))[:SHOWN].tolist():
        label, said = found.pairs[pair].tolist()
        rows.append([
            *(f"{found.ids[k]} {found.names.get(int(found.ids[k]), '')}".strip()
              for k in (label, said)),
            _count(found.times[pair]), Value(found.expected[pair], 2),
            _count(back.get((said, label), 0.0)),
        ])  # fmt: skip
    return Table(
        "The most frequent confusions, in wells",
        ["siRNA", "taken for", "times", "expected", "back"], rows,
        ["Expected: if what a wrong well is taken for did not depend on its siRNA. Back: the other"
         " way round."],
    )  # fmt: skip


def summary(found: Results) -> str:
    """How much siRNAs differ, in sentences."""
    wells, right = found.wells[found.tested], found.right[found.tested]
    share, mean = right / wells, right.sum() / wells.sum()
    low, middle, high = (100 * np.quantile(share, q) for q in (0.1, 0.5, 0.9))
    luck = math.sqrt(np.mean(mean * (1 - mean) / wells))
    return (
        f"Accuracy by well of {len(share):,} siRNAs: median {middle:.0f} %, from {low:.0f} to"
        f" {high:.0f} % in the middle 80 %. {(right == 0).sum():,} were named right in no well,"
        f" {(right == wells).sum():,} in all. Standard deviation over siRNAs:"
        f" {100 * share.std():.0f} points; were all equally hard, luck alone would make it"
        f" {100 * luck:.0f}."
    )


def against_training(found: Results) -> Figure:
    """Accuracy of each siRNA against its number of training wells; large dots are several."""
    share = 100 * found.right[found.tested] / found.wells[found.tested]
    points = np.stack([found.trained[found.tested], share], axis=1).round(1)
    places, count = np.unique(points, axis=0, return_counts=True)
    figure = Figure(figsize=(figures.WIDTH, 3.4), layout="constrained")
    axis = figure.subplots()
    colour = figures.LOOKS[0][0]
    x, y = places.T
    axis.scatter(x, y, s=9 * count, color=colour, alpha=0.5, lw=0, clip_on=False)
    x = np.unique(points[:, 0])
    means = [share[points[:, 0] == wells].mean() for wells in x]
    axis.plot(x, means, color="#222", lw=1, marker="_", ms=12, label="mean")
    axis.set_ylim(0, 100)
    axis.margins(x=0.1)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("training wells of a siRNA", **figures.TEXT)
    axis.set_ylabel("test accuracy by well (%)", **figures.TEXT)
    figures.tidy(axis)
    figures.legend(figure, axis)
    return figure


def of_row(page: "Page", row: Group, prefix: str = "") -> None:
    """`section` of the runs of a row, but for those on one cell type beside others on all. Nothing
    where they are of several worlds, whose siRNAs have no more than ids in common."""
    runs = [run for run in row.runs if run.cell_type == "all"] or row.runs
    if len({run.unit.world for run in runs}) == 1:
        found = results([run.wells for run in runs], [run.trained for run in runs])
        section(page, row.label, found, prefix)


def section(page: "Page", of: str, found: Results, prefix: str = "") -> None:
    """What a page says by siRNA. The table of all is OUT/sirnas.csv and .json.

    of: what predicted the wells.
    """
    every, name = all_sirnas(found), f"{prefix}sirnas"
    every.write(page.out, name)
    page.heading(f"By siRNA: {of}")
    page.paragraph(summary(found))
    first = every.rows[:SHOWN]
    note = "In brackets: Wilson's 95 % interval, for wells of these experiments."
    files = " or ".join(f'<a href="{name}.{kind}">{kind.upper()}</a>' for kind in ("csv", "json"))
    page.parts += [
        Table(f"The hardest {len(first)} siRNAs", HEAD, first, [note]).html(page.out),
        f'<p class="note files">All siRNAs as {files}</p>',
    ]
    page.table(f"{prefix}confusions", confusions(found))
    wells = found.trained[found.tested]
    if np.isnan(wells).any():
        page.paragraph("The runs have no metadata.csv that counts training wells.", "note")
        return
    few, many = wells.min(), wells.max()
    page.picture(
        f"{prefix}training-wells",
        against_training(found),
        f"Accuracy of {len(wells)} siRNAs, which had {few:.0f} to {many:.0f} training wells.",
        "Each siRNA by its number of training wells (mean over runs). A dot is larger where siRNAs"
        " coincide; the line joins the means.",
    )


def _count(value: float) -> Value:
    return Value(float(value), 0 if math.isnan(value) or float(value).is_integer() else 1)

"""Runs on one split and their mean: a table, and a page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rxrx1_jax.methods.statistics import Score, Unit, compare, wilson
from rxrx1_jax.report import figures, sirnas
from rxrx1_jax.report.page import ToldPage, written_by
from rxrx1_jax.report.tables import Cell, Links, Table, Value, gain
from rxrx1_jax.training.predictions import accuracies, firsts_of_wells

HEAD = ["predictions of", "by site", "by well", "top-5", "gain of the mean, points"]
NOTE = (
    "In brackets by well: Wilson's 95 % interval, for wells of these experiments. Gain of the mean:"
    " the mean over test experiments of its accuracy by site minus the run's, with its t interval"
    " over experiments; – below three."
)


def compared(tables: Mapping[str, pa.Table], folders: Mapping[str, Path]) -> Table:
    """Test accuracy of each of {name: predictions}, the last of them the mean's, where there is
    one; folders: where names lead to."""
    found = {name: accuracies(table) for name, table in tables.items()}
    *_, last = found.values()
    rows: list[list[Cell]] = []
    for name, accuracy in found.items():
        wells, share = len(firsts_of_wells(tables[name])), accuracy["well"]["all"]
        low, high = wilson(share * wells, wells)
        more: Cell = ""
        if accuracy is not last:
            more = gain(compare(_by_experiment(last), _by_experiment(accuracy), 0))
        rows.append([
            Links(((name, folders[name]),)) if name in folders else name,
            Value(100 * accuracy["site"]["all"]),
            Value(100 * share, low=100 * low, high=100 * high), Value(100 * accuracy["top5"]), more,
        ])  # fmt: skip
    return Table("Test accuracy, %", HEAD, rows, [NOTE])


def write_page(
    out: Path, tables: Mapping[str, pa.Table], folders: Mapping[str, Path],
    trained: Mapping[int, int], chance: float, remarks: Sequence[str],
) -> tuple[str, Path]:  # fmt: skip
    """Writes OUT/index.html with its tables; returns what it says as Markdown, and its path.

    tables, folders: as in `compared`. trained: {sirna_id: training wells}. chance: a fraction.
    remarks: the budget, and what else was written.
    """
    page = ToldPage("RxRx1: the mean of runs", out)
    found = {name: accuracies(table) for name, table in tables.items()}
    *_, (last, best) = found.items()
    single = [100 * of["site"]["all"] for name, of in found.items() if name in folders]
    said = f"{last}: {100 * best['site']['all']:.1f} % of the test sites are named right"
    said += f"; single runs: {np.mean(single):.1f} % on average." if last not in folders else "."
    page.say(said, "result")
    page.show("runs", compared(tables, folders))
    page.say_items(remarks)
    series = figures.by_experiment(
        {"single runs": [of for name, of in found.items() if name in folders], last: [best]}
    )
    names = figures.experiments_of(series)
    page.picture(
        "experiments", figures.dots(names, series, 100 * chance),
        f"Test accuracy by site of {len(names)} experiments.",
        "Large marks: means over runs; small ones: runs.",
    )  # fmt: skip
    wells = tables[last].take(firsts_of_wells(tables[last]))
    sirnas.section(page, last, sirnas.results([wells], [trained]))
    page.table("made-with", Table("Made with", ["what", "value"], written_by()))
    return "\n".join(page.texts), page.write()


def _by_experiment(accuracy: Mapping[str, Any]) -> Score:
    """A unit for each experiment, which are independent."""
    experiments = accuracy["site"]["experiment"]
    return {Unit(name, 0, 0): share for name, share in experiments.items()}

"""The leaderboard as Markdown and as a page: one folder with index.html and its pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rxrx1_jax.config import ConfigError
from rxrx1_jax.data import embeddings
from rxrx1_jax.data.files import write_text
from rxrx1_jax.data.images import DatasetError
from rxrx1_jax.data.splits import SplitError
from rxrx1_jax.leaderboard import embedding_map, figures, tables
from rxrx1_jax.leaderboard.methods import LDA12, Methods
from rxrx1_jax.leaderboard.scores import (
    Outcome,
    Row,
    gap_scores,
    make_rows,
    select,
    with_lda12,
)
from rxrx1_jax.methods import transforms
from rxrx1_jax.report import table1
from rxrx1_jax.report.figures import DOTS, experiment_dots
from rxrx1_jax.report.page import Page
from rxrx1_jax.report.tables import Table
from rxrx1_jax.training.run import EMBEDDINGS

TITLE = "RxRx1: does a correction help on unseen experiments?"
MAP_CELL_TYPE = "HUVEC"  # the one with the most experiments


def write(methods: Methods, outcomes: Sequence[Outcome], out: Path) -> tuple[str, Path, list[str]]:
    """Writes OUT/leaderboard.md, index.html and PNG files.

    Returns the Markdown, the page, and remarks on what was left out.
    """
    page = Page(TITLE, out)
    runs = [o.run for o in outcomes if o.run and not o.job.control]
    texts, remarks = list[str](), list[str]()
    asked = len({o.job.unit[1:] for o in outcomes})  # folds x seeds
    try:
        methods, outcomes = with_lda12(methods, outcomes)
    except (ConfigError, DatasetError, SplitError, OSError) as error:
        remarks.append(f"No row {LDA12}: {error}")
    rows = make_rows(methods, outcomes)
    if runs:
        seeds = sorted({str(o.job.unit.seed) for o in outcomes if o.run})
        said = (
            f"{table1.describe(runs[0].screen, runs)} Seeds {', '.join(seeds)}. Baseline: "
            f"{methods.baseline}."
        )
        page.paragraph(said)
        texts.append(said + "\n")
    missing = tables.missing_list(outcomes)
    if missing:
        page.paragraph("Not in the tables:", note=True)
        page.items(missing)

    def show(table: Table | None, heading: str) -> None:
        if table is not None:
            page.heading(heading)
            page.table(table)
            texts.append(table.markdown())

    if rows:
        chance = 100 / runs[0].screen.classes
        said_of_it = tables.claims(methods, rows)
        page.paragraph("What the leaderboard can say, and what it cannot:")
        page.items(said_of_it)
        texts.append("".join(f"- {line}\n" for line in said_of_it))
        show(tables.accuracy_table(methods, rows, asked), "Leaderboard")
        _gain_picture(methods, rows, page)
        show(tables.gap_table(methods, outcomes), "Gap")
        if gaps := gap_scores(methods, outcomes):
            page.picture(
                "gaps",
                figures.gap_bars(gaps, chance),
                "Bars: mean over folds of the means over seeds; whiskers: ± 1 sd over folds; "
                "points: runs. Above the random splits: difference from the batch split in points, "
                "and ratio.",
            )
        page.heading("Experiments")
        page.picture(
            "experiments",
            experiment_dots(figures.series_of(figures.choose_rows(rows, methods.baseline)), chance),
            f"Accuracy by site of each test experiment. {DOTS} Shown: the baseline and the first "
            "other row of each budget.",
        )
        show(tables.diagnosis_table(methods, outcomes), "Embeddings")
        _maps(methods, outcomes, page, remarks)
    show(tables.control_table(methods, outcomes), "Controls")
    if missing:
        texts.append("Not in the tables:\n\n" + "".join(f"- {line}\n" for line in missing))
    for remark in remarks:
        page.paragraph(remark, note=True)
    text = "\n".join(texts)
    write_text(out / "leaderboard.md", text)
    return text, page.write(), remarks


def _gain_picture(methods: Methods, rows: Sequence[Row], page: Page) -> None:
    if len(rows) > 1 and any(row.name == methods.baseline for row in rows):
        page.picture(
            "gains",
            figures.gains(methods, rows),
            "Gain by site over the baseline. Large dots: mean; lines: 95 % interval; small dots: "
            "folds (mean over seeds).",
        )


def _maps(methods: Methods, outcomes: Sequence[Outcome], page: Page, remarks: list[str]) -> None:
    """Maps of one run of the baseline, before and after centring and scaling on plate controls."""
    chosen = [o.run for o in select(outcomes, methods.baseline) if o.run]
    if not chosen:
        return
    try:
        found = embeddings.read(chosen[0].path / EMBEDDINGS)
        sites = found.sites
        after = transforms.centre_scale(found.x, sites, sites["well_type"] != "treatment", "plate")
    except (OSError, ValueError) as error:
        remarks.append(f"No maps of embeddings: {error}")
        return
    wells = sites["well_type"] == "positive_control"
    counts = {c: len(set(sites["experiment"][sites["cell_type"] == c])) for c in
              np.unique(sites["cell_type"])}  # fmt: skip
    cell_type = max(counts, key=lambda name: (counts[name], name == MAP_CELL_TYPE))
    unseen = set(chosen[0].accuracy["site"]["experiment"])
    stages = [("before", found.x[wells]), ("after", after[wells])]
    page.picture(
        "maps",
        embedding_map.figure(stages, sites[wells], cell_type, unseen),
        f"Positive controls (the same siRNAs on every plate, no classes of the network), run "
        f"{chosen[0].path.parent.name}/{chosen[0].path.name}: the first two principal components "
        "of the mean embedding of each siRNA in each experiment, before and after "
        "centre_scale_plate, computed separately for each panel. Large marks: means of the groups; "
        "crosses: experiments not trained on. Coloured siRNAs: far apart in the embeddings before.",
    )

"""The leaderboard as Markdown and as a page: one folder with index.html and its pictures."""

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from rxrx1_jax import diagnose
from rxrx1_jax.data.records import DatasetError
from rxrx1_jax.leaderboard import embedding_map, figures, tables
from rxrx1_jax.leaderboard.methods import Methods
from rxrx1_jax.leaderboard.scores import Outcome, Row, by_site, make_rows, select
from rxrx1_jax.methods import transforms
from rxrx1_jax.report import table1 as report_table
from rxrx1_jax.report.page import html_table, save_picture, write_html

TITLE = "RxRx1: does a correction help on unseen experiments?"
STYLE = "<style>tr.heading td { font-weight: 600; padding-top: .7rem; }</style>"
MAP_CELL_TYPE = "HUVEC"  # the one with the most experiments


def write(methods: Methods, outcomes: Sequence[Outcome], out: Path) -> tuple[str, Path, list[str]]:
    """Writes OUT/leaderboard.md, index.html and PNG files.

    Returns the Markdown, the page, and remarks on what was left out.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows = make_rows(methods, outcomes)
    runs = [o.run for o in outcomes if o.run and not o.control]
    parts, texts, remarks = [STYLE, f"<h1>{escape(TITLE)}</h1>"], [], list[str]()
    if runs:
        (said,) = [" ".join(report_table.describe(runs[0].screen, runs))]
        seeds = sorted({str(o.seed) for o in outcomes if o.run})
        said += f" Seeds {', '.join(seeds)}. Baseline: {methods.baseline}."
        parts.append(f"<p>{escape(said)}</p>")
        texts.append(said + "\n")
    missing = tables.missing_list(outcomes)
    if missing:
        items = "".join(f"<li>{escape(line)}</li>" for line in missing)
        parts.append(f'<p class="note">Not in the tables:</p><ul class="note">{items}</ul>')

    def show(table: tables.Table | None, heading: str) -> None:
        if table is not None:
            parts.append(f"<h2>{escape(heading)}</h2>")
            parts.append(html_table(table.caption, table.head, table.rows))
            parts.extend(f'<p class="note">{escape(note)}</p>' for note in table.notes)
            texts.append(tables.markdown(table))

    def picture(name: str, figure: Figure, caption: str) -> None:
        parts.append(save_picture(figure, out / f"{name}.png", caption))

    if rows:
        asked = len({o.key for o in outcomes})
        chance = 100 / runs[0].screen.classes
        show(tables.accuracy_table(methods, rows, asked), "Leaderboard")
        _gain_picture(methods, rows, picture)
        show(tables.gap_table(methods, outcomes), "Gap")
        _gap_picture(methods, outcomes, chance, picture)
        chosen = figures.choose_rows(rows, methods.baseline)
        parts.append("<h2>Experiments</h2>")
        picture(
            "experiments",
            figures.experiment_dots(chosen, chance),
            "Accuracy by site of each test experiment: dots are means over folds and seeds, lines "
            "reach from the lowest to the highest. Shown: the baseline and the best row of each "
            "budget, chosen by the figures of the table above, which flatters them.",
        )
        show(tables.diagnosis_table(methods, outcomes), "Embeddings")
        _maps(methods, outcomes, picture, remarks)
    show(tables.control_table(methods, outcomes), "Controls")
    if missing:
        texts.append("Not in the tables:\n\n" + "".join(f"- {line}\n" for line in missing))
    parts.extend(f'<p class="note">{escape(remark)}</p>' for remark in remarks)
    text = "\n".join(texts)
    partial = out / "leaderboard.md.tmp"
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, out / "leaderboard.md")
    return text, write_html(TITLE, parts, out), remarks


def _gain_picture(methods: Methods, rows: Sequence[Row], picture) -> None:
    if len(rows) > 1 and any(row.name == methods.baseline for row in rows):
        picture(
            "gains",
            figures.gains(rows, methods.baseline),
            "Gain by site over the baseline. Large dots: mean; lines: 95 % t interval over pairs "
            "of the same fold and seed; small dots: folds (mean over seeds).",
        )


def _gap_picture(methods: Methods, outcomes: Sequence[Outcome], chance: float, picture) -> None:
    scores = {}
    for name in methods.gap:
        found = {p: by_site(select(outcomes, name, p)) for p in tables.PROTOCOLS}
        if found["batch"] and (found["random_site"] or found["random_well"]):
            scores[name] = {protocol: score for protocol, score in found.items() if score}
    if scores:
        picture(
            "gaps",
            figures.gap_bars(scores, chance),
            "Bars: mean over folds of the means over seeds; whiskers: ± 1 sd over folds; points: "
            "runs. Above the random splits: difference from the batch split in points, and ratio.",
        )


def _maps(methods: Methods, outcomes: Sequence[Outcome], picture, remarks: list[str]) -> None:
    """Maps of one run of the baseline, before and after centring and scaling on plate controls."""
    chosen = [o.run for o in select(outcomes, methods.baseline) if o.run]
    if not chosen:
        return
    try:
        embeddings, records = diagnose.all_embeddings(chosen[0].path)
    except (DatasetError, OSError) as error:
        remarks.append(f"No maps of embeddings: {error}")
        return
    sites = records.sites
    try:
        after = transforms.centre_scale(
            embeddings, sites, sites["well_type"] != "treatment", "plate"
        )
    except ValueError as error:
        remarks.append(f"No maps of embeddings: {error}")
        return
    wells = sites["well_type"] == "positive_control"
    counts = {c: len(set(sites["experiment"][sites["cell_type"] == c])) for c in
              np.unique(sites["cell_type"])}  # fmt: skip
    cell_type = max(counts, key=lambda name: (counts[name], name == MAP_CELL_TYPE))
    unseen = set(chosen[0].accuracy["site"]["experiment"])
    picture(
        "maps",
        embedding_map.figure(
            [("before", embeddings[wells]), ("after", after[wells])],
            sites[wells],
            cell_type,
            unseen,
        ),
        f"Positive controls (the same siRNAs on every plate, no classes of the network), run "
        f"{chosen[0].path.parent.name}/{chosen[0].path.name}: the first two principal components "
        "of the mean embedding of each siRNA in each experiment, before and after "
        "centre_scale_plate, computed anew for each panel. Large marks: means of the groups; "
        "crosses: experiments not trained on. Coloured siRNAs: far apart in the embeddings before.",
    )

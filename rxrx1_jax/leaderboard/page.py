"""The leaderboard as Markdown and as a page: one folder with index.html, pictures and tables."""

import importlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rxrx1_jax.config import POINTS, ConfigError
from rxrx1_jax.data import embeddings
from rxrx1_jax.data.files import write_text
from rxrx1_jax.data.images import DatasetError
from rxrx1_jax.data.splits import SplitError
from rxrx1_jax.leaderboard import embedding_map, figures, tables
from rxrx1_jax.leaderboard.methods import LDA12, Methods
from rxrx1_jax.leaderboard.scores import (
    Outcome,
    Row,
    gains,
    gap_scores,
    make_rows,
    select,
    with_lda12,
)
from rxrx1_jax.methods import evidence, transforms
from rxrx1_jax.methods.catalogue import find
from rxrx1_jax.methods.lda12 import lda12
from rxrx1_jax.report import table1
from rxrx1_jax.report.figures import dots, experiments_of
from rxrx1_jax.report.page import Page, ToldPage, made_with, markdown_list
from rxrx1_jax.training.run import EMBEDDINGS

TITLE = "RxRx1: does a correction help on unseen experiments?"
MAP_CELL_TYPE = "HUVEC"  # the one with the most experiments
CORRECTED = "centre_scale_plate"  # what the maps show beside the raw embeddings
RAW = {"data.normalisation": "none"}  # what a method changes whose embeddings are raw


def write(
    methods: Methods, outcomes: Sequence[Outcome], out: Path, data_dir: str
) -> tuple[str, Path, list[str]]:
    """Writes OUT/leaderboard.md, index.html, pictures and tables.

    Returns the Markdown, the page, and remarks on what was left out.
    """
    page = ToldPage(TITLE, out)
    runs = [o.run for o in outcomes if o.run and not o.job.control]
    remarks = list[str]()
    # worlds x folds x seeds
    asked = len({o.job.unit for o in outcomes if o.job.trained == methods.baseline and
                 not o.job.control})  # fmt: skip
    try:
        methods, outcomes = with_lda12(methods, outcomes, data_dir)
    except (ConfigError, DatasetError, SplitError, OSError) as error:
        remarks.append(f"No row {LDA12}: {error}")
    rows = make_rows(methods, outcomes)

    if rows:
        page.say(tables.headline(methods, rows), "result")
        seeds = sorted({str(o.job.unit.seed) for o in outcomes if o.run})
        page.say(
            f"{table1.describe(runs[0].screen, runs)} Seeds {', '.join(seeds)}. Baseline: "
            f"{methods.baseline}."
        )
    missing = tables.missing_list(outcomes)
    if missing:
        page.paragraph("Not in the tables:", "note")
        page.items(missing)
    if rows:
        page.paragraph("What the leaderboard can say, and what it cannot:")
        page.say_items(tables.claims(methods, rows))
        page.show("leaderboard", tables.accuracy_table(methods, rows, asked), "Leaderboard")
        _gain_picture(methods, rows, page)
        page.show("folds", tables.spread_table(methods, rows))
        page.show("gap", tables.gap_table(methods, outcomes), "Gap")
        _pictures(methods, outcomes, rows, page)
        page.show("embeddings", tables.diagnosis_table(methods, outcomes), "Embeddings")
        _maps(methods, outcomes, page, remarks)
    page.show("controls", tables.control_table(methods, outcomes), "Controls")
    if missing:
        page.texts.append(f"Not in the tables:\n\n{markdown_list(missing)}")
    for remark in remarks:
        page.paragraph(remark, "note")
    page.heading("Methods")
    page.glossary(_explained(methods))
    if runs:
        page.table("made-with", made_with(runs))
    text = "\n".join(page.texts)
    write_text(out / "leaderboard.md", text)
    return text, page.write(), remarks


def _gain_picture(methods: Methods, rows: Sequence[Row], page: Page) -> None:
    found = {name: of for name, (_, of) in gains(methods, rows).items() if of.n}
    if not found:
        return
    highest = max(found, key=lambda name: found[name].mean)
    lowest = min(found, key=lambda name: found[name].mean)
    page.picture(
        "gains",
        figures.gains(methods, rows),
        f"Gains of {len(found)} methods over {methods.baseline}: from "
        f"{100 * found[lowest].mean:+.1f} points ({lowest}) to {100 * found[highest].mean:+.1f} "
        f"({highest}).",
        "Gain by site over the baseline. Large marks: mean; lines: 95 % interval; small marks: "
        f"folds (mean over seeds). Beyond {figures.LINEAR} points the axis is logarithmic.",
    )


def _pictures(
    methods: Methods, outcomes: Sequence[Outcome], rows: Sequence[Row], page: Page
) -> None:
    chance = 100 / next(o.run for o in outcomes if o.run).screen.classes
    gaps = figures.gap_series(gap_scores(methods, outcomes))
    if gaps:
        names = list(dict.fromkeys(name for one in gaps for name in one.of))
        said = (f"{one.label} {mark.mean:.0f} %" for one in gaps for mark in one.of.values())
        page.picture(
            "gaps",
            dots(names, gaps, chance),
            f"Accuracy on the batch and the random splits: {', '.join(said)}.",
            "Large marks: mean over folds of the means over seeds, with ± 1 sd; small ones: runs.",
        )
    shown = figures.choose_rows(rows, methods.baseline)
    series = figures.experiments(shown)
    names = experiments_of(series)
    page.picture(
        "experiments",
        dots(names, series, chance),
        f"Accuracy by site of {len(names)} test experiments under {len(shown)} methods.",
        "Large marks: mean over the runs that test the experiment; small ones: runs. Shown: the "
        "baseline and the first other row of each budget.",
    )


def _maps(methods: Methods, outcomes: Sequence[Outcome], page: Page, remarks: list[str]) -> None:
    """Maps of one run: its embeddings as they are, beside those of the baseline corrected."""
    raw = next((n for n, changed in methods.trained.items() if changed == RAW), methods.baseline)
    of_raw, of_base = ({o.job.unit: o.run for o in select(outcomes, name) if o.run}
                       for name in (raw, methods.baseline))  # fmt: skip
    found = next(((of_raw[unit], of_base[unit]) for unit in of_raw if unit in of_base), None)
    if found is None:
        return
    try:
        first, second = (embeddings.read(run.path / EMBEDDINGS) for run in found)
        sites = second.sites
        controls = sites["well_type"] != "treatment"
        after = transforms.centre_scale(second.x, sites, controls, "plate")
    except (OSError, ValueError) as error:
        remarks.append(f"No maps of embeddings: {error}")
        return
    if not np.array_equal(first.sites["site_id"], sites["site_id"]):
        remarks.append(f"No maps of embeddings: {raw} has those of other sites")
        return
    wells = sites["well_type"] == "positive_control"
    counts = {c: len(set(sites["experiment"][sites["cell_type"] == c])) for c in
              np.unique(sites["cell_type"])}  # fmt: skip
    cell_type = max(counts, key=lambda name: (counts[name], name == MAP_CELL_TYPE))
    mine = wells & (sites["cell_type"] == cell_type)
    titles = f"{raw}, uncorrected", f"{methods.baseline}, corrected"
    stages = list(zip(titles, (first.x[mine], after[mine]), strict=True))
    unseen = set(found[1].accuracy["site"]["experiment"])
    for column, one in (("experiment", "an experiment"), ("sirna_id", "a siRNA")):
        page.picture(
            f"map-{column.removesuffix('_id')}",
            embedding_map.figure(stages, sites[mine], column, unseen),
            f"Two maps of the embeddings of {cell_type}, uncorrected and corrected, where a colour "
            f"is {one}.",
            f"A colour and a shape are {one}. Left: {raw} as it is; right: {methods.baseline} "
            f"after {CORRECTED}. Where a correction works, experiments mix and siRNAs part. Marks: "
            f"the mean embedding of a siRNA in an experiment, of the positive controls of "
            f"{cell_type} (the same siRNAs on every plate, no classes of the network), on the "
            "first two principal components of each map. Hollow: experiments not trained on. Of "
            f"{counts[cell_type]} experiments, and of the siRNAs, the first {embedding_map.SHOWN} "
            "are coloured.",
        )


def _explained(methods: Methods) -> dict[str, tuple[str, Path | None]]:
    """{name of a method: (what it is, where its source is)}."""
    found: dict[str, tuple[str, Path | None]] = {}
    for name, changed in methods.trained.items():
        parts = [f"{field}={value}" for field, value in changed.items()]
        sources = [_factory(field, value) for field, value in changed.items() if field in POINTS]
        docs = [(inspect.getdoc(one) or "").partition("\n\n")[0] for one in sources if one]
        text = "; ".join([*parts, *(" ".join(doc.split()).rstrip(".") for doc in docs)])
        found[name] = text or "the settings of --config, unchanged", _file(*sources)
    if LDA12 in methods.trained:
        found[LDA12] = "linear discriminant analysis of twelve intensities of a site", _file(lda12)
    for name in dict.fromkeys(n for chosen in methods.corrections.values() for n in chosen):
        method = find(name)
        stages = [*method.transforms, method.classify, method.decide]
        first = next((stage for stage in stages if stage), None)
        source = _file(getattr(first, "function", first)) or Path(evidence.__file__)
        if method.adapt and first is None:
            source = source.with_name("adabn.py")  # which imports JAX
        found[name] = method.about or "a method of yours", source
    return found


def _factory(field: str, value: Any) -> Any:
    """What a setting names: a factory of ours or of anybody's."""
    module, _, name = str(value).partition("(")[0].strip().rpartition(".")
    return getattr(importlib.import_module(module or POINTS[field]), name, None)


def _file(*of: Any) -> Path | None:
    files = (inspect.getsourcefile(one) for one in of if one is not None)
    return next((Path(file) for file in files if file), None)

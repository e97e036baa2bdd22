"""The tables of the leaderboard, once as cells, for Markdown and for the page."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from rxrx1_jax import diagnose
from rxrx1_jax.leaderboard.methods import Methods
from rxrx1_jax.leaderboard.scores import (
    Outcome,
    Row,
    Score,
    by_fold,
    by_site,
    diagnoses,
    difference,
    ratio,
    select,
    summarise,
    verdict,
)
from rxrx1_jax.methods.evidence import BUDGETS
from rxrx1_jax.methods.statistics import PairedSpread

NOTHING = "–"
BUDGET_NOTES = {
    "inductive": "the image, and the control statistics of its plate that normalise it",
    "test controls": "also images of the control wells of the test experiments",
    "unlabelled test images": "also all images of the test experiments, without labels",
    "design": "also that a siRNA occurs once in an experiment, plate by plate",
}
MUST = {
    "no gap": "no gap: the interval of random by site - batch includes 0",
    "gap": "a gap: the interval of random by site - batch lies above 0",
    "chance": "chance: the intervals of both accuracies include it",
}


class Table(NamedTuple):
    caption: str
    head: list[str]
    rows: list[tuple[str, list[str]]]  # (kind, cells); of kind "heading" a single one
    notes: list[str]


def accuracy_table(methods: Methods, rows: Sequence[Row], runs: int) -> Table:
    """The leaderboard, grouped by budget; `runs` = folds x seeds that were asked for."""
    base = next((row.by_site for row in rows if row.name == methods.baseline), {})
    folds = sorted({fold for row in rows for fold, _ in row.accuracy})
    head = ["method", "by site", "over seeds", "by well", "top-5", "cell-type mean"]
    head += ["worst experiment", "gain by site", "95 % interval"]
    head += [f"fold {fold}" for fold in folds] if len(folds) > 1 else []
    cells: list[tuple[str, list[str]]] = []
    clear = compared = 0
    for budget in BUDGETS:
        members = [row for row in rows if row.budget == budget]
        if members:
            text = f"{budget}: {BUDGET_NOTES[budget]}"
            cells.append(("heading", [text]))
        for row in members:
            name = row.name + (f" (n = {len(row.accuracy)})" if len(row.accuracy) < runs else "")
            found = summarise(row.by_site)
            scores = (row.by_well, row.top5, row.by_cell_type, row.worst_experiment)
            line = [name, spread(row.by_site), _points(found.over_seeds), *map(spread, scores)]
            gain = None if row.name == methods.baseline else difference(row.by_site, base)
            line += gain_cells(gain)
            if len(folds) > 1:
                line += _gain_by_fold(row, base, folds, row.name == methods.baseline)
            if gain and gain.n > 1:
                compared += 1
                clear += gain.low > 0 or gain.high < 0
            cells.append(("", line))
    notes = [
        "± is the standard deviation over folds (n - 1) of the means over seeds; over seeds: the "
        "standard deviation between trainings on the same fold, pooled. Cell-type mean: each cell "
        "type counts the same. Worst experiment: its accuracy by site.",
        f"Gain: accuracy by site minus that of {methods.baseline} on the same fold and seed, in "
        "points, with its Student t interval over these pairs, and its mean over seeds in each "
        "fold. Seeds of a fold share their data and folds share training data, so intervals are "
        "rather too narrow.",
    ]
    if compared:
        notes.append(
            f"{clear} of {compared} intervals exclude 0; if no method did anything, about "
            f"{compared / 20:.1f} of them would."
        )
    return Table("Accuracy on unseen experiments (batch split), %", head, cells, notes)


def gap_table(methods: Methods, outcomes: Sequence[Outcome]) -> Table | None:
    """Random against batch split, for the methods that were trained on both."""
    head = ["method", "batch", "random by site", "random by well"]
    head += ["by site - batch", "95 % interval", "ratio", "by well - batch", "95 % interval"]
    head += ["ratio"]
    rows = []
    for name in methods.gap:
        batch, site, well = (by_site(select(outcomes, name, p)) for p in PROTOCOLS)
        if batch and (site or well):
            line = [name, *map(spread, (batch, site, well))]
            for random in (site, well):
                line += [*gain_cells(difference(random, batch)), _number(ratio(random, batch))]
            rows.append(("", line))
    notes = [
        "By site throughout. In the random split by site the other site of a test well may have "
        "been trained on; in that by well both sites are held out together. Differences in points, "
        "paired by fold and seed; ratios of means."
    ]
    caption = "The gap: random against batch split, %"
    return Table(caption, head, rows, notes) if rows else None


PROTOCOLS = ("batch", "random_site", "random_well")


def diagnosis_table(methods: Methods, outcomes: Sequence[Outcome]) -> Table | None:
    """Batch and biology in the embeddings of each trained method."""
    rows = []
    chance: dict[str, float] = {}
    for name in methods.trained:
        chosen = select(outcomes, name)
        found = diagnoses(chosen)
        if found:
            chance |= {column: pair[1] for column, pair in found.items()}
            cells = [
                f"{found[c][0]:.{diagnose.digits(found[c][1])}f}" if c in found else NOTHING
                for c in diagnose.COLUMNS
            ]
            rows.append(("", [name, *cells, spread(by_site(chosen))]))
    if not rows:
        return None
    line = [
        f"{chance[c]:.{diagnose.digits(chance[c])}f}" if c in chance else NOTHING
        for c in diagnose.COLUMNS
    ]
    rows.append(("derived", ["chance", *line, ""]))
    notes = [
        "Positive-control wells, which are no classes of the network, within cell types. Experiment"
        " found: a linear probe names the experiment of a site (less is better, down to chance). "
        "siRNA found again: mean average precision in other experiments. Consistent: share of "
        "siRNAs whose replicates agree beyond chance. Planted: rank correlation of measured with "
        "planted distances between siRNAs (synthetic screens). Means over folds and seeds.",
        "A method that lowers the first must be read with the others: mixing batches is easy if "
        "biology may go.",
    ]
    head = ["trained", *diagnose.COLUMNS, "accuracy by site, %"]
    return Table("Batch and biology in the embeddings, uncorrected", head, rows, notes)


def control_table(methods: Methods, outcomes: Sequence[Outcome]) -> Table | None:
    """What each control must show, beside what it showed."""
    head = ["control", "trained", "batch", "random by site", "must show", "showed", ""]
    rows = []
    for control, (_, expected) in methods.controls.items():
        for name, claim in expected.items():
            runs = [select(outcomes, name, p, control) for p in ("batch", "random_site")]
            batch, random = map(by_site, runs)
            if not (batch or random):
                continue
            classes = next(o.run for o in runs[0] + runs[1] if o.run).screen.classes
            showed, held = verdict(claim, batch, random, 1 / classes)
            said = {True: "holds", False: "DOES NOT HOLD", None: NOTHING}[held]
            cells = [control, name, spread(batch), spread(random), MUST[claim], showed, said]
            rows.append(("", cells))
    notes = [
        "Intervals are 95 % t intervals over folds and seeds. That one includes 0 says little if it"
        " is wide: compare it with the gap of the same method in the table above."
    ]
    return Table("Controls: what must come out, and what did", head, rows, notes) if rows else None


def missing_list(outcomes: Sequence[Outcome]) -> list[str]:
    """Lines "runs: reason" of what is not in the tables."""
    reasons: dict[str, list[str]] = {}
    for o in outcomes:
        if o.run is None or o.why:
            name = "/".join(filter(None, (o.control, o.trained)))
            reasons.setdefault(o.why, []).append(f"{name}/{o.protocol}-{o.fold}-{o.seed}")
    return [
        f"{', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}: {why}"
        for why, names in reasons.items()
    ]


def markdown(table: Table) -> str:
    lines = [table.caption + ":", "", "| " + " | ".join(table.head) + " |"]
    lines.append("|---" * len(table.head) + "|")
    for kind, (first, *rest) in table.rows:
        name = f"**{first}**" if kind == "heading" else first
        filled = rest or [""] * (len(table.head) - 1)
        lines.append("| " + " | ".join([name, *filled]) + " |")
    return "\n".join([*lines, "", *table.notes, ""])


def spread(score: Score) -> str:
    """Mean in % over folds, ± sd over them where there are several."""
    if not score:
        return NOTHING
    found = summarise(score)
    sd = "" if math.isnan(found.over_folds) else f" ± {100 * found.over_folds:.1f}"
    return f"{100 * found.mean:.1f}{sd}"


def gain_cells(found: PairedSpread | None) -> list[str]:
    """[points, interval]"""
    if found is None:
        return [NOTHING, NOTHING]
    interval = f"{100 * found.low:+.1f} to {100 * found.high:+.1f}" if found.n > 1 else NOTHING
    return [f"{100 * found.mean:+.1f}", interval]


def _gain_by_fold(row: Row, base: Score, folds: Sequence[int], is_base: bool) -> list[str]:
    keys = row.by_site.keys() & base.keys()
    gains = {} if is_base else by_fold({k: row.by_site[k] - base[k] for k in keys})
    return [f"{100 * gains[fold]:+.1f}" if fold in gains else NOTHING for fold in folds]


def _points(fraction: float) -> str:
    return NOTHING if math.isnan(fraction) else f"{100 * fraction:.1f}"


def _number(value: float) -> str:
    return NOTHING if math.isnan(value) else f"{value:.2f}"

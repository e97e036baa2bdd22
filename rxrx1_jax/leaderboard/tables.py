"""The tables of the leaderboard."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from rxrx1_jax.leaderboard.methods import LDA12, Methods
from rxrx1_jax.leaderboard.scores import (
    MARGIN,
    NONE,
    Outcome,
    Row,
    by_site,
    diagnoses,
    gains,
    gap_scores,
    select,
    verdict,
)
from rxrx1_jax.methods import diagnosis
from rxrx1_jax.methods.evidence import BUDGETS, SEEN
from rxrx1_jax.methods.statistics import (
    SIGNIFICANT,
    by_fold,
    by_world,
    compare,
    holm,
    ratio,
    summarise,
    units_of,
)
from rxrx1_jax.report.comparison import FIGURES, GAIN, NOTE, RUNS, name_of, told_apart
from rxrx1_jax.report.runs import shared_of
from rxrx1_jax.report.tables import ADJUSTED, Cell, Links, Table, Value, gain, percent

UNDECIDED = "cannot say"
MUST = {
    "no gap": f"no gap: random by site - batch below {100 * MARGIN:.0f} points",
    "gap": "a gap: the interval of random by site - batch above 0",
    "chance": f"chance: both accuracies within {100 * MARGIN:.0f} points",
}


def accuracy_table(methods: Methods, rows: Sequence[Row], runs: int) -> Table:
    """The leaderboard, grouped by budget; `runs` = worlds x folds x seeds that were asked for."""
    compared, units = gains(methods, rows), _units(rows)
    how = {"worlds": "are independent", "folds": "share training data (Nadeau and Bengio 2003)"}
    p = holm([found.p for _, found in compared.values()])
    adjusted = dict(zip(compared, p, strict=True))
    cells: list[list[Cell]] = []
    for row, name in _by_budget(rows, cells):
        few = f" (n = {len(row.accuracy)})" if len(row.accuracy) < runs else ""
        links = Links(tuple(
            (name_of(unit, units), path) for unit, path in sorted(row.paths.items())
        ))  # fmt: skip
        cells.append([
            name._replace(more=few), percent(row.by_site), percent(row.training),
            gain(compared[row.name][1]), Value(adjusted[row.name], 3),
            *map(percent, map(row.score, FIGURES.values())), links,
        ])  # fmt: skip
    notes = [
        NOTE.replace("over folds", f"over {units}"),
        f"Gain: accuracy by site minus that of {methods.baseline} on the same fold and seed, in "
        "points; of transformed embeddings minus that of the same classifier of the embeddings as "
        f"they are. Its t interval is over {units}, which {how[units]}. Of fewer than three there "
        f"is none (–). {ADJUSTED}: adjusted for all rows of the table. Training: accuracy on the "
        f"last training batches. Runs: {RUNS[units]}.",
    ]
    head = ["method", "by site", "training", GAIN, ADJUSTED, *FIGURES, "runs"]
    return Table("Accuracy on unseen experiments (batch split), %", head, cells, notes)


def spread_table(methods: Methods, rows: Sequence[Row]) -> Table:
    """How far the parts of a row's accuracy lie apart: folds, or worlds where there are several."""
    each = _units(rows).removesuffix("s")
    compared = gains(methods, rows)
    found: dict[str, dict[str, float]] = {}
    for row_name, (pairs, _) in compared.items():
        folds = {f"fold {fold}": x for (_, fold), x in by_fold(pairs).items()}
        found[row_name] = by_world(pairs) if each == "world" else folds
    units = sorted({unit for of in found.values() for unit in of})
    cells: list[list[Cell]] = []
    for row, name in _by_budget(rows, cells):
        of_units = (Value(100 * found[row.name].get(u, math.nan), signed=True) for u in units)
        cells.append([name, Value(100 * summarise(row.by_site).over_seeds), *of_units])
    notes = [
        "Over seeds: standard deviation between trainings on the same fold, pooled. Then the gain "
        f"over {methods.baseline} in each {each}, in points."
    ]
    return Table(f"The gain in each {each}", ["method", "over seeds", *units], cells, notes)


def headline(methods: Methods, rows: Sequence[Row]) -> str:
    """The result in a sentence: which rows differ from the baseline."""
    found = {name: one for name, (_, one) in gains(methods, rows).items()}
    return told_apart(found, methods.baseline, _units(rows))


def claims(methods: Methods, rows: Sequence[Row]) -> list[str]:
    """What the table can say and what it cannot, from its own figures."""
    found = {name: comparison for name, (_, comparison) in gains(methods, rows).items()}
    tested = [one for one in found.values() if not math.isnan(one.p)]
    lines = ["It cannot say how methods rank on real images."]
    if tested:
        clear = sum(one.p < SIGNIFICANT for one in tested)
        width = float(np.median([one.high - one.low for one in tested]))
        lines += [
            f"{clear} of {len(tested)} intervals exclude 0. If no method did anything,"
            f" {len(tested) / 20:.1f} would.",
            f"It cannot see a gain on other {_units(rows)} below about {50 * width:.0f} points,"
            " half of its median interval.",
        ]
    of = {row.name: summarise(row.by_site).mean for row in rows}
    if LDA12 in of and methods.baseline in of:
        trained = [row for row in rows if row.correction == NONE and row.trained != LDA12]
        below = sum(of[row.name] < of[LDA12] for row in trained)
        behind = found[LDA12].high < 0  # false without an interval
        lines.append(
            f"{LDA12}, which sees twelve intensities of a site and no image, is"
            f" {gain(found[LDA12])} points from {methods.baseline} and above {below} of"
            f" {len(trained)} trained rows."
            + ("" if behind else " So it cannot say that a network sees more than intensities.")
        )
    return lines


def _units(rows: Sequence[Row]) -> str:
    """What an interval is over."""
    return units_of(row.by_site for row in rows)


def _by_budget(rows: Sequence[Row], cells: list[list[Cell]]) -> Iterator[tuple[Row, Links]]:
    """Each row and its name, linked to what explains it; a heading first in `cells`."""
    for budget in BUDGETS:
        members = [row for row in rows if row.budget == budget]
        cells += [[f"{budget}: {SEEN[budget]}"]] if members else []
        for row in members:
            parts = [row.trained, *(["+", row.correction] if row.correction != NONE else [])]
            yield row, Links(tuple((x, f"#method-{x}" if x != "+" else "") for x in parts))


def gap_table(methods: Methods, outcomes: Sequence[Outcome]) -> Table | None:
    """Random against batch split, for the methods that were trained on both."""
    head = ["method", "batch", "random by site", "random by well"]
    head += ["by site - batch", "by site / batch", "by well - batch", "by well / batch"]
    rows: list[list[Cell]] = []
    shared = shared_of(o.run for o in outcomes if o.run)
    for name, found in gap_scores(methods, outcomes).items():
        line: list[Cell] = [name, *map(percent, found.values())]
        batch = found["batch"]
        for random in (found["random_site"], found["random_well"]):
            line += [gain(compare(random, batch, shared)), Value(ratio(random, batch), 2)]
        rows.append(line)
    notes = [
        "By site throughout. In the random split by site the other site of a test well may have "
        "been trained on; in that by well both sites are held out together. Differences in points, "
        "paired by fold and seed, with intervals as in the table above; ratios of means."
    ]
    caption = "The gap: random against batch split, %"
    return Table(caption, head, rows, notes) if rows else None


def diagnosis_table(methods: Methods, outcomes: Sequence[Outcome]) -> Table | None:
    """Batch and biology in the embeddings of each trained method."""
    rows: list[list[Cell]] = []
    chance: dict[str, float] = {}

    def cells(figures: Mapping[str, float]) -> list[Cell]:
        return [Value(figures.get(c, math.nan), diagnosis.digits(c)) for c in diagnosis.COLUMNS]

    for name in methods.trained:
        chosen = select(outcomes, name)
        found = diagnoses(chosen)
        if found:
            chance |= {column: pair[1] for column, pair in found.items()}
            measured = cells({column: pair[0] for column, pair in found.items()})
            rows.append([name, *measured, percent(by_site(chosen))])
    if not rows:
        return None
    rows.append(["chance", *cells(chance), ""])
    notes = [
        "Positive-control wells, which are no classes of the network, within cell types. Means over"
        " folds and seeds.",
        *(f"{name}: {about}." for name, about in diagnosis.COLUMNS.items()),
        diagnosis.CAUTION,
    ]
    head = ["trained", *diagnosis.COLUMNS, "accuracy by site, %"]
    return Table("Batch and biology in the embeddings, uncorrected", head, rows, notes)


def control_table(methods: Methods, outcomes: Sequence[Outcome]) -> Table | None:
    """What each control must show, beside what it showed."""
    head = ["control", "trained", "batch", "random by site", "must show", "showed", "verdict"]
    rows: list[list[Cell]] = []
    for control, (_, expected) in methods.controls.items():
        for name, claim in expected.items():
            runs = [select(outcomes, name, p, control) for p in ("batch", "random_site")]
            batch, random = map(by_site, runs)
            if not (batch or random):
                continue
            classes = next(o.run for o in runs[0] + runs[1] if o.run).screen.classes
            shared = shared_of(o.run for o in runs[0] + runs[1] if o.run)
            showed, held = verdict(claim, batch, random, 1 / classes, shared)
            said = {True: "holds", False: "DOES NOT HOLD", None: UNDECIDED}[held]
            rows.append(
                [control, name, percent(batch), percent(random), MUST[claim], showed, said]
            )
    notes = [
        f"That a difference is below {100 * MARGIN:.0f} points is shown by two one-sided t tests "
        f"(5 %), not by an interval that includes 0. {UNDECIDED}: the runs show neither."
    ]
    return Table("Controls: what must come out, and what did", head, rows, notes) if rows else None


def missing_list(outcomes: Sequence[Outcome]) -> list[str]:
    """Lines "runs: reason" of what is not in the tables."""
    reasons: dict[str, list[str]] = {}
    for o in outcomes:
        if o.run is None or o.why:
            reasons.setdefault(o.why, []).append(o.job.name)
    return [
        f"{', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}: {why}"
        for why, names in reasons.items()
    ]

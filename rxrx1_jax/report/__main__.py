"""Finished runs -> Table 1 of the paper, in its layout and beside its figures, and a page of plots.

    python -m rxrx1_jax.report RUNS... [--out report/]

RUNS are workdirs of rxrx1_jax.main: any mixture of protocols, folds, normalisations and cell types.
Runs on the same data with the same model share a table; all their other settings must agree.
"""

import argparse
import sys
from pathlib import Path

from rxrx1_jax.report.page import write_page
from rxrx1_jax.report.runs import ReportError, Run, Screen, load_runs
from rxrx1_jax.report.table1 import (
    COLUMNS,
    PAPER,
    PAPER_DATA,
    Line,
    beside_paper,
    describe,
    gap_note,
    gaps,
    has_separate_models,
    table,
)


def table_text(screen: Screen, runs: list[Run]) -> str:
    """Table 1 for the runs of one screen, by site and by well, as aligned text."""
    out = [
        "Table 1. Test accuracy in %, mean ± sd over folds (n - 1; a single fold has no ±);",
        "differences and ratios are over the folds that both rows have.",
    ]
    out += describe(screen, runs)
    kinds = []
    if any(run.cell_type == "all" for run in runs):
        kinds.append((False, "cell types: a break-down of one model trained on all of them"))
    if has_separate_models(runs):
        kinds.append((True, "cell types: separate models, each trained on that cell type alone"))
    blocks = {}
    notes = {}
    for separate, said in kinds:
        for unit, how in (("site", ""), ("well", " (mean log-probability over its sites)")):
            heading, lines = f"By {unit}{how}; {said}", table(runs, unit, separate)
            blocks[heading], notes[heading] = _block(lines, unit), gap_note(lines, unit)
    blocks[f"The paper ({PAPER_DATA})"] = _paper_block()
    # One set of widths, so that the blocks (the paper's too) stand under each other.
    every_row = [row for rows in blocks.values() for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*every_row, strict=True)]
    for heading, rows in blocks.items():
        out += ["", heading]
        for first, *rest in rows:
            cells = (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
            out.append("  ".join((first.ljust(widths[0]), *cells)).rstrip())
        if notes.get(heading):
            out.append(notes[heading])
    out += ["", "Here and in the paper"]
    for what, here, paper in beside_paper(screen, runs):
        out.append(f"{what}: {here}; the paper: {paper}")
    return "\n".join(out) + "\n"


def table_markdown(screen: Screen, runs: list[Run]) -> str:
    """The paper's Table 1 as Markdown: its two splits by site, each row above the paper's own.

    A cell without runs is a dash. The runs are of one normalisation.
    """
    broken_down = {line.row: line for line in table(runs, "site")}
    separate = {line.row: line for line in table(runs, "site", separate=True)}
    ours, parts = [], []
    for protocol in ("batch", "random_site"):
        row = (protocol, runs[0].row[1])
        nothing: list[dict[int, float]] = [{} for _ in COLUMNS]
        parts.append(broken_down.get(row, Line(row, nothing)))
        # `table` leaves out a row that has runs on all cell types alone.
        only_all = Line(row, parts[-1].cells[:1] + nothing[1:])
        ours.append(separate.get(row, only_all))
    head, *rows = _block(ours, "site")
    out = [head, ["---"] * len(head)]
    for row_of_ours, (label, *cells) in zip(rows, _paper_block()[1:], strict=True):
        out += [row_of_ours, [f"*the paper: {label}*", *cells]]
    for label, *cells in _block(parts, "site")[1:3]:
        out.append([f"{label}, model on all cell types", *cells])
    compared = [["", "here", "the paper"], ["---"] * 3, *map(list, beside_paper(screen, runs))]
    lines = [
        "Table 1. Test accuracy by site in %, mean ± sd over folds (n - 1; a single one has no ±).",
        "Cell types: separate models, each trained on that cell type alone; in the last two rows a",
        "break-down of the model trained on all.",
        "",
        *("| " + " | ".join(cells) + " |" for cells in out),
        "",
        *("| " + " | ".join(cells) + " |" for cells in compared),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m rxrx1_jax.report", description="Table 1 and a page of plots from runs."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help="workdirs of runs")
    parser.add_argument(
        "--out", type=Path, default=Path("report"), help="folder of the page (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    try:
        screens = load_runs(options.runs)
    except ReportError as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    for screen, runs in screens.items():
        print(table_text(screen, runs))
    try:
        page, remarks = write_page(screens, options.out)
    except OSError as error:
        print(f"report: cannot write the page to {options.out}: {error}", file=sys.stderr)
        return 2
    for remark in remarks:
        print(remark)
    print(f"Page: {page}")
    return 0


def _block(lines: list[Line], unit: str) -> list[list[str]]:
    rows = [["", "folds", *COLUMNS.values()]]
    rows += [line.texts() for line in lines]
    for label, points, ratios in gaps(lines, unit):
        rows.append([f"{label} - batch", "", *points])
        rows.append([f"{label} / batch", "", *ratios])
    return rows


def _paper_block() -> list[list[str]]:
    rows = [["", "", *COLUMNS.values()]]
    for label, cells in PAPER.items():
        rows.append([label, "", *(f"{mean:.1f} ± {sd:.1f}" for mean, sd in cells)])
    pairs = list(zip(PAPER["Random"], PAPER["Batch"], strict=True))
    rows.append(["Random - batch", "", *(f"{r[0] - b[0]:+.1f}" for r, b in pairs)])
    rows.append(["Random / batch", "", *(f"{r[0] / b[0]:.2f}" for r, b in pairs)])
    return rows


if __name__ == "__main__":
    sys.exit(main())

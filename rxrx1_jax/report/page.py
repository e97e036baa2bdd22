"""The page of a report: one folder with index.html and its pictures, to be opened or sent."""

import os
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from rxrx1_jax.data.records import DatasetError, Records, find_dataset
from rxrx1_jax.report import figures
from rxrx1_jax.report.runs import Run, Screen, row_label
from rxrx1_jax.report.table1 import (
    COLUMNS,
    PAPER,
    PAPER_DATA,
    beside_paper,
    describe,
    gap_note,
    gaps,
    has_separate_models,
    table,
)

DOTS_PER_INCH = 150

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 64rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums;
  margin: 1rem 0; }
caption { text-align: left; font-weight: 600; padding-bottom: .3rem; }
th, td { padding: .2rem .7rem; text-align: right; border-top: 1px solid #ddd; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { border-top: 0; border-bottom: 1px solid #222; }
tr.derived td { color: #666; } tr.paper td { background: #f5f5f2; }
.wide { overflow-x: auto; }
figure { margin: 1.5rem 0; } img { max-width: 100%; height: auto; }
figcaption, .note { font-size: .85rem; color: #555; }
"""


def write_page(screens: dict[Screen, list[Run]], out: Path) -> tuple[Path, list[str]]:
    """Writes OUT/index.html and PNG files. Returns the page and remarks on what was left out."""
    out.mkdir(parents=True, exist_ok=True)
    remarks: list[str] = []
    parts = ["<h1>RxRx1: accuracy on unseen experiments and on a random split</h1>"]
    for number, (screen, runs) in enumerate(screens.items(), start=1):
        parts += _section(screen, runs, out, f"{number}-", remarks)
    return write_html("RxRx1 report", parts, out), remarks


def write_html(title: str, parts: list[str], out: Path) -> Path:
    """Writes OUT/index.html of the parts of its body, whole or not at all."""
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )
    partial = out / "index.html.tmp"
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, out / "index.html")
    return out / "index.html"


def _section(
    screen: Screen, runs: list[Run], out: Path, prefix: str, remarks: list[str]
) -> list[str]:
    chance = 100 / screen.classes
    parts = [
        f"<h2>{escape(screen.name)} {escape(screen.version)}, {escape(screen.model)}</h2>",
        f"<p>{escape(' '.join(describe(screen, runs)))}</p>",
        '<p class="note">Batch: whole experiments are held out. Random (by site): sites are held '
        "out, so the other site of a test well may have been trained on. Random, by well: both "
        "sites of a well are held out together. Accuracy in %, mean ± sd over folds (n - 1); a "
        "single fold has no ±. Differences (points) and ratios are over the folds that both rows "
        "have.</p>",
    ]
    blocks = []
    if any(run.cell_type == "all" for run in runs):
        blocks.append((False, "cell types are a break-down of one model"))
    if has_separate_models(runs):
        blocks.append((True, "cell types are separate models, each trained on that one alone"))
    for separate, said in blocks:
        for unit, how in (("site", ""), ("well", " (mean log-probability over its sites)")):
            caption = f"Table 1. Test accuracy (%) by {unit}{how}; {said}"
            parts.append(_table1(runs, unit, separate, caption))

    compared = [("", list(row)) for row in beside_paper(screen, runs)]
    parts.append(html_table("Here and in the paper", ["", "here", "the paper"], compared))

    def picture(name: str, figure: Figure, caption: str) -> None:
        parts.append(save_picture(figure, out / f"{prefix}{name}.png", caption))

    picture(
        "cell-types",
        figures.cell_type_bars(runs, chance),
        "Test accuracy by site. Bars: mean over folds; whiskers: ± 1 sd; points: folds. Right: "
        "the paper's figures, measured on other data, so not to be compared in height; its random "
        "split has the colour of the random split by site.",
    )
    picture(
        "curves",
        figures.learning_curves(runs),
        "Learning curves, one line a fold. Training values are of the batches as "
        "trained on (with augmentation and label smoothing where set), test values of the held-out "
        "sites.",
    )
    picture(
        "experiments",
        figures.experiment_dots(runs, chance),
        "Test accuracy by site of each experiment. Large points: mean over the folds that test it; "
        "small points: folds. The batch split tests an experiment in one fold at most.",
    )
    try:
        data = runs[0].config["data"]
        name = data["name"].partition(":")[0]
        records = Records(find_dataset(data["dir"], f"{name}:{screen.version}"))
        chosen = figures.choose_sites(records)
        if not chosen:
            raise DatasetError(f"{records.path} has no labelled treatment of the four cell types")
        picture(
            "channels",
            figures.channel_montage(chosen),
            f"One site of each cell type, {screen.image_size} x {screen.image_size} px, in the "
            f"paper's faux colours. {figures.CONTRAST}",
        )
        picture(
            "batch-effect",
            figures.experiment_montage(chosen),
            "The same siRNA in several experiments of a cell type: what differs along a row is "
            "batch effect (and well to well variation). Contrast and colours as above.",
        )
    except DatasetError as error:
        remarks.append(f"No pictures of cells for {screen.name}: {error}")
        parts.append(f'<p class="note">{escape(remarks[-1])}</p>')
    return parts + [_settings(runs)]


def _table1(runs: list[Run], unit: str, separate: bool, caption: str) -> str:
    lines = table(runs, unit, separate)
    rows: list[tuple[str, list[str]]] = []
    rows += [("", line.texts()) for line in lines]
    for label, points, ratios in gaps(lines, unit):
        rows.append(("derived", [f"{label} - batch, points", "", *points]))
        rows.append(("derived", [f"{label} / batch, ratio", "", *ratios]))
    notes = [gap_note(lines, unit)]
    if unit == "site":  # the paper tells of no accuracy by well
        for label, cells in PAPER.items():
            figures_of_paper = [f"{mean:.1f} ± {sd:.1f}" for mean, sd in cells]
            rows.append(("paper", [f"The paper: {label}", "", *figures_of_paper]))
        notes.append(f"The paper: {PAPER_DATA}.")
    said = "".join(f'<p class="note">{escape(note)}</p>' for note in notes if note)
    return html_table(caption, ["", "folds", *COLUMNS.values()], rows) + said


def _settings(runs: list[Run]) -> str:
    head = ["run", "split", "cell type", "fold", "seed", "train sites", "test sites", "epochs"]
    head += [
        "batch size",
        "learning rate",
        "site %",
        "well %",
        "top-5 %",
        "lowest experiment",
        "loss",
    ]
    rows = []
    for run in sorted(runs, key=lambda run: (row_label(run.row), run.cell_type, run.fold)):
        data, optim = run.results["data"], run.config.get("optim", {})
        experiments = run.accuracy["site"]["experiment"]
        lowest = min(experiments, key=experiments.__getitem__)
        cells = [run.path.resolve().name, row_label(run.row), run.cell_type, run.fold]
        cells += [
            run.results["seed"],
            f"{data['train_sites']:,}",
            f"{data['test_sites']:,}",
        ]
        cells += [
            run.results["epochs"],
            optim.get("batch_size", ""),
            optim.get("learning_rate", ""),
        ]
        cells += [f"{100 * run.accuracy[unit]['all']:.1f}" for unit in ("site", "well")]
        cells += [f"{100 * run.accuracy['top5']:.1f}", f"{lowest} {100 * experiments[lowest]:.1f}"]
        cells += [f"{run.results['loss']:.3f}"]
        rows.append(("", [str(cell) for cell in cells]))
    return html_table("Data and settings of each run", head, rows)


def html_table(caption: str, head: list[str], rows: list[tuple[str, list[str]]]) -> str:
    """rows: (class of the row, its cells); a row of a single cell spans the table."""
    header = "".join(f"<th>{escape(cell)}</th>" for cell in head)

    def line(cells: list[str]) -> str:
        if len(cells) == 1:
            return f'<td colspan="{len(head)}">{escape(cells[0])}</td>'
        return "".join(f"<td>{escape(cell)}</td>" for cell in cells)

    body = "\n".join(f'<tr class="{kind}">{line(cells)}</tr>' for kind, cells in rows)
    return (
        f'<div class="wide"><table><caption>{escape(caption)}</caption><thead><tr>{header}</tr>'
        f"</thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def save_picture(figure: Figure, path: Path, caption: str) -> str:
    """Writes the PNG; returns the HTML that shows it on a page beside it."""
    partial = path.with_suffix(".tmp")
    figure.savefig(partial, dpi=DOTS_PER_INCH, format="png", facecolor="white")
    os.replace(partial, path)
    return (
        f'<figure><img src="{path.name}" alt="{escape(caption, quote=True)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )

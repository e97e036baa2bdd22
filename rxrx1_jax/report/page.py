"""A page: one folder with index.html, its pictures and its tables, to be opened or sent."""

import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import matplotlib
from matplotlib.figure import Figure

from rxrx1_jax.data.files import replacing, write_text
from rxrx1_jax.data.records import DatasetError, Records, open_images
from rxrx1_jax.methods.statistics import worst_experiment
from rxrx1_jax.report import comparison, figures, sirnas, table1, tables
from rxrx1_jax.report.runs import FinishedRun, Group, Screen, group
from rxrx1_jax.report.tables import Cell, Links, Table, Value

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 80rem; margin: 2rem auto;
  padding: 0 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
p, ul, figcaption { max-width: 50rem; }
p.result { font-size: 1.15rem; font-weight: 600; }
a { color: #0b5394; }
figure { display: inline-block; vertical-align: top; width: 36rem; max-width: 100%;
  margin: 1.5rem 1rem 1rem 0; }
img { width: 100%; height: auto; }
dt { font-weight: 600; margin-top: .5rem; } dd { margin-left: 1rem; max-width: 50rem; }
figcaption, .note { font-size: .85rem; color: #555; margin: .2rem 0; }
@page { size: A4; margin: 12mm; }
@media print {
  body { max-width: none; margin: 0; font-size: 11pt; } h2, caption { break-after: avoid; }
  figure { break-inside: avoid; width: 47%; } img { max-height: 150mm; object-fit: contain; }
  figure.tall { width: 80%; } .tall img { max-height: 215mm; object-position: left; }
  a { color: inherit; text-decoration: none; } .files { display: none; }
}
"""
SVG: Any = {"svg.fonttype": "none", "svg.hashsalt": "rxrx1_jax", "font.family": "sans-serif"}


class Page:
    """The parts of a page, in order. Pictures and tables are written when they are added."""

    def __init__(self, title: str, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.title, self.out, self.parts = title, out, [f"<h1>{escape(title)}</h1>"]

    def heading(self, text: str, anchor: str = "") -> None:
        named = f' id="{escape(anchor, quote=True)}"' if anchor else ""
        self.parts.append(f"<h2{named}>{escape(text)}</h2>")

    def paragraph(self, text: str, kind: str = "") -> None:
        """kind: "note" is small, "result" large."""
        named = f' class="{kind}"' if kind else ""
        self.parts.append(f"<p{named}>{escape(text)}</p>")

    def items(self, texts: Sequence[str]) -> None:
        self.parts.append("<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>")

    def glossary(self, entries: Mapping[str, tuple[str, Path | None]]) -> None:
        """{name: (what it is, its source)}; #method-NAME leads there."""
        for name, (text, source) in entries.items():
            self.parts.append(f'<dt id="method-{escape(name, quote=True)}">{escape(name)}</dt>')
            link = ""
            if source is not None:
                address = quote(os.path.relpath(source, self.out))
                link = f' <a href="{address}">{escape("/".join(source.parts[-3:]))}</a>'
            self.parts.append(f"<dd>{escape(text)}.{link}</dd>")

    def table(self, name: str, table: Table) -> None:
        """Writes OUT/NAME.csv and OUT/NAME.json too."""
        table.write(self.out, name)
        files = (f'<a href="{name}.{kind}">{kind.upper()}</a>' for kind in ("csv", "json"))
        said = f'<p class="note files">This table as {" or ".join(files)}</p>'
        self.parts += [table.html(self.out), said]

    def picture(self, name: str, figure: Figure, alt: str, caption: str) -> None:
        """Writes OUT/NAME.svg. alt: what it shows; caption: how to read it."""
        with matplotlib.rc_context(SVG), replacing(self.out / f"{name}.svg") as partial:
            metadata = {"Date": None}
            figure.savefig(partial, format="svg", dpi=200, facecolor="white", metadata=metadata)
        width, height = figure.get_size_inches()
        kind = ' class="tall"' if height > 2.2 * width else ""
        self.parts.append(
            f'<figure{kind}><a href="{name}.svg"><img src="{name}.svg" '
            f'alt="{escape(alt, quote=True)}"></a>'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )

    def write(self) -> Path:
        """Writes OUT/index.html, whole or not at all."""
        head = (
            f'<meta charset="utf-8"><title>{escape(self.title)}</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<style>{STYLE}{tables.STYLE}</style>"
        )
        body = "\n".join(["<body>", *self.parts, "</body></html>", ""])
        page = f'<!doctype html>\n<html lang="en"><head>{head}</head>\n{body}'
        write_text(self.out / "index.html", page)
        return self.out / "index.html"


class ToldPage(Page):
    """A page whose results are also Markdown, in `texts`."""

    def __init__(self, title: str, out: Path) -> None:
        super().__init__(title, out)
        self.texts = list[str]()

    def say(self, text: str, kind: str = "") -> None:
        self.paragraph(text, kind)
        self.texts.append(text + "\n")

    def say_items(self, texts: Sequence[str]) -> None:
        self.items(texts)
        self.texts.append(markdown_list(texts))

    def show(self, name: str, table: Table | None, heading: str = "") -> None:
        """Nothing for None, which has no heading either."""
        if table is not None:
            if heading:
                self.heading(heading)
            self.table(name, table)
            self.texts.append(table.markdown())


def markdown_list(texts: Sequence[str]) -> str:
    """A list in Markdown."""
    return "".join(f"- {text}\n" for text in texts)


# screen: its result in a sentence, the rows of its tables, the tables
Results = dict[Screen, tuple[str, list[Group], dict[str, Table]]]


def results_of(
    screens: Mapping[Screen, Sequence[FinishedRun]], baseline: Path | None = None
) -> Results:
    """Raises ReportError: two runs are the same, or the baseline is on other data."""
    found: Results = {}
    for screen, runs in screens.items():
        one_world = len({run.unit.world for run in runs}) == 1
        groups = group(runs, as_table1=baseline is None and one_world)
        if groups[0].of_table1:
            found[screen] = table1.headline(groups), groups, table1.tables(screen, groups)
        else:
            base = comparison.baseline_of(groups, baseline)
            made = comparison.tables(groups, base)
            found[screen] = comparison.headline(groups, base), groups, made
    return found


def write_page(
    results: Results, out: Path, data_dir: Path | None = None
) -> tuple[Path, list[str]]:
    """Writes OUT/index.html, its pictures and tables. Returns it and what was left out."""
    page = Page("RxRx1: accuracy on test sites", out)
    remarks: list[str] = []
    for number, (screen, (result, groups, made)) in enumerate(results.items(), start=1):
        prefix = f"{number}-" if len(results) > 1 else ""
        runs = [run for of in groups for run in of.runs]
        page.paragraph(result, "result")
        page.heading(table1.names_of(runs))
        page.paragraph(table1.describe(screen, runs))
        page.paragraph(
            "Batch: whole experiments are held out. Random (by site): sites are held out, so the "
            "other site of a test well may have been trained on. Random, by well: both sites of a "
            "well are held out together.",
            "note",
        )
        for name, table in made.items():
            page.table(f"{prefix}{name}", table)
        _plots(page, groups, 100 / screen.classes, prefix)
        sirnas.of_row(page, groups[0], prefix)
        try:
            _cells(page, screen, runs[0], prefix, data_dir)
        except DatasetError as error:
            remarks.append(f"No pictures of cells for {screen.name}: {error}")
            page.paragraph(remarks[-1], "note")
        page.table(f"{prefix}runs", runs_table(groups))
        page.table(f"{prefix}made-with", made_with(runs))
    return page.write(), remarks


def runs_table(groups: Sequence[Group]) -> Table:
    """The results of each run."""
    head = [
        *("run", "row", "cell type", "fold", "seed", "site %", "well %", "top-5 %"),
        *("lowest experiment, %", "loss"),
    ]
    rows: list[list[Cell]] = []
    for of in groups:
        for run in sorted(of.runs, key=lambda run: (run.cell_type, run.unit)):
            lowest, value = worst_experiment(run.accuracy["site"]["experiment"])
            scores = [run.accuracy[unit]["all"] for unit in ("site", "well")]
            rows.append([
                Links(((run.path.resolve().name, run.path),)), of.label, run.cell_type,
                *(Value(number, 0) for number in run.unit[1:]),
                *(Value(100 * score) for score in (*scores, run.accuracy["top5"])),
                f"{lowest} {100 * value:.1f}", Value(run.results["loss"], 3),
            ])  # fmt: skip
    return Table("Each run", head, rows)


def made_with(runs: Sequence[FinishedRun]) -> Table:
    """What wrote the page, and what made the runs."""
    made = [run.environment for run in runs]
    found: dict[str, list[Any]] = {
        "commit": [of.get("commit") for of in made],
        "devices": [", ".join(map(str, of.get("devices", []))) for of in made],
        "Python": [of.get("python") for of in made],
        "packages": [
            ", ".join(f"{name} {version}" for name, version in of.get("packages", {}).items())
            for of in made
        ],
        "runs in": [os.path.commonpath([run.path.resolve().parent for run in runs])],
    }
    rows: list[list[Cell]] = [
        [what, "; ".join(dict.fromkeys(str(value) for value in values if value)) or "not recorded"]
        for what, values in found.items()
    ]
    rows += written_by()
    return Table("Made with", ["what", "value"], rows)


def written_by() -> list[list[Cell]]:
    """Rows of such a table: the day, and the command that runs."""
    program = Path(sys.argv[0])
    module = ".".join(program.with_suffix("").parts[-2:]).removesuffix(".__main__")
    command = shlex.join(["python", "-m", f"rxrx1_jax.{module.split('.')[-1]}", *sys.argv[1:]])
    return [["page of", time.strftime("%Y-%m-%d")], ["command", command]]


def _plots(page: Page, groups: Sequence[Group], chance: float, prefix: str) -> None:
    series = figures.by_cell_type(groups, groups[0].of_table1)
    ends = [f"{one.label} {mark.mean:.0f} %" for one in series for mark in [*one.of.values()][:1]]
    page.picture(
        f"{prefix}cell-types",
        figures.dots(list(table1.COLUMNS.values()), series, chance),
        f"Test accuracy by site and cell type. {'; '.join(ends)}.",
        "Large marks: mean over folds, with ± 1 sd; small ones: runs."
        + " Hollow: the paper's figures, of other data, so compare the pattern, not the height."
        * groups[0].of_table1,
    )
    of = {g.label: [r.accuracy for r in g.runs if r.cell_type == "all" or not g.of_table1]
          or [r.accuracy for r in g.runs] for g in groups}  # fmt: skip
    series = figures.by_experiment(of)
    names = figures.experiments_of(series)
    lowest = min((m.mean, n) for one in series for n, m in one.of.items())
    page.picture(
        f"{prefix}experiments",
        figures.dots(names, series, chance),
        f"Test accuracy by site of {len(names)} experiments, lowest {lowest[0]:.0f} % "
        f"({lowest[1]}).",
        "Large marks: mean over the runs that test the experiment; small ones: runs. The batch "
        "split tests an experiment in one fold at most.",
    )
    ends_of = figures.last_accuracies(groups)
    page.picture(
        f"{prefix}curves",
        figures.learning_curves(groups),
        f"Learning curves. At the end: {ends_of or 'not recorded'}.",
        "A line for each run. Training values are of the batches as trained on (with augmentation "
        "and label smoothing where set). Training far above test is what a network has learnt by "
        f"heart. At the end: {ends_of or 'not recorded'}.",
    )


def _cells(
    page: Page, screen: Screen, run: FinishedRun, prefix: str, data_dir: Path | None
) -> None:
    """Pictures of cells. Raises DatasetError where there is no dataset, or none to show in it."""
    folder = data_dir or run.config["data.dir"]
    images = open_images(folder, f"{screen.name}:{screen.version}")
    chosen = figures.choose_sites(images)
    if not chosen:
        raise DatasetError(f"{screen.name} has no labelled treatment of the four cell types")
    page.picture(
        f"{prefix}channels",
        figures.channel_montage(chosen),
        f"The six channels and the composite of one site of {', '.join(chosen)}.",
        f"One site of each cell type, {screen.image_size} x {screen.image_size} px, in the "
        f"paper's faux colours. {figures.CONTRAST}",
    )
    page.picture(
        f"{prefix}batch-effect",
        figures.experiment_montage(chosen),
        "One siRNA of each cell type in several experiments, whose brightness and colours differ.",
        "The same siRNA in several experiments of a cell type. What differs down a column is batch "
        "effect and variation between wells. Contrast and colours as in the other figure."
        + (f" Plates, and other siRNAs: python -m tfds_builder.rxrx1 show {images.path}"
           if isinstance(images, Records) else ""),
    )

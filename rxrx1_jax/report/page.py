"""A page: one folder with index.html and its pictures, to be opened or sent."""

from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from rxrx1_jax.data.files import replacing, write_text
from rxrx1_jax.data.records import DatasetError, open_images
from rxrx1_jax.report import figures, table1, tables
from rxrx1_jax.report.runs import FinishedRun, Screen

DOTS_PER_INCH = 150

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 76rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
p, ul, figcaption { max-width: 50rem; }
figure { margin: 1.5rem 0; } img { max-width: 100%; height: auto; }
figcaption, .note { font-size: .85rem; color: #555; }
@page { size: A4 landscape; margin: 12mm; }
@media print {
  body { max-width: none; margin: 0; } h2, caption { break-after: avoid; }
  figure { break-inside: avoid; } img { max-height: 150mm; }
}
"""


class Page:
    """The parts of a page, in order. A picture is written when it is added, the page at the end."""

    def __init__(self, title: str, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.title, self.out, self.parts = title, out, [f"<h1>{escape(title)}</h1>"]

    def heading(self, text: str) -> None:
        self.parts.append(f"<h2>{escape(text)}</h2>")

    def paragraph(self, text: str, note: bool = False) -> None:
        kind = ' class="note"' if note else ""
        self.parts.append(f"<p{kind}>{escape(text)}</p>")

    def items(self, texts: list[str]) -> None:
        self.parts.append("<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>")

    def table(self, table: tables.Table) -> None:
        self.parts.append(table.html())

    def picture(self, name: str, figure: Figure, caption: str) -> None:
        """Writes OUT/NAME.png; its alternative text is the first sentence of `caption`."""
        with replacing(self.out / f"{name}.png") as partial:
            figure.savefig(partial, dpi=DOTS_PER_INCH, format="png", facecolor="white")
        said = escape(caption.partition(". ")[0], quote=True)
        self.parts.append(
            f'<figure><img src="{escape(name, quote=True)}.png" alt="{said}">'
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


def write_page(screens: dict[Screen, list[FinishedRun]], out: Path) -> tuple[Path, list[str]]:
    """Writes OUT/index.html and PNG files. Returns the page and remarks on what was left out."""
    page = Page("RxRx1: accuracy on unseen experiments and on a random split", out)
    remarks: list[str] = []
    for number, (screen, runs) in enumerate(screens.items(), start=1):
        page.heading(f"{screen.name} {screen.version}, {screen.model}")
        page.paragraph(table1.describe(screen, runs))
        page.paragraph(
            "Batch: whole experiments are held out. Random (by site): sites are held out, so the "
            "other site of a test well may have been trained on. Random, by well: both sites of a "
            "well are held out together.",
            note=True,
        )
        for table in table1.tables(screen, runs):
            page.table(table)
        _plots(page, runs, 100 / screen.classes, f"{number}-")
        try:
            _cells(page, screen, runs[0], f"{number}-")
        except DatasetError as error:
            remarks.append(f"No pictures of cells for {screen.name}: {error}")
            page.paragraph(remarks[-1], note=True)
        page.table(table1.settings_table(runs))
    return page.write(), remarks


def _plots(page: Page, runs: list[FinishedRun], chance: float, prefix: str) -> None:
    page.picture(
        f"{prefix}cell-types",
        figures.cell_type_bars(runs, chance),
        "Test accuracy by site. Bars: mean over folds; whiskers: ± 1 sd; points: folds. Right: "
        "the paper's figures, measured on other data, so their heights are not to be compared with "
        "ours. The paper's random split has the colour of the random split by site.",
    )
    page.picture(
        f"{prefix}curves",
        figures.learning_curves(runs),
        "Learning curves, one line per fold. Training values are of the batches as trained on "
        "(with augmentation and label smoothing where set), test values of the held-out sites.",
    )
    page.picture(
        f"{prefix}experiments",
        figures.experiment_dots(figures.series_of(runs), chance),
        f"Test accuracy by site of each experiment. {figures.DOTS} The batch split tests an "
        "experiment in one fold at most.",
    )


def _cells(page: Page, screen: Screen, run: FinishedRun, prefix: str) -> None:
    """Pictures of cells. Raises DatasetError where there is no dataset, or none to show in it."""
    data = run.config["data"]
    name = data["name"].partition(":")[0]
    images = open_images(data["dir"], f"{name}:{screen.version}")
    chosen = figures.choose_sites(images)
    if not chosen:
        raise DatasetError(f"{name} has no labelled treatment of the four cell types")
    page.picture(
        f"{prefix}channels",
        figures.channel_montage(chosen),
        f"One site of each cell type, {screen.image_size} x {screen.image_size} px, in the "
        f"paper's faux colours. {figures.CONTRAST}",
    )
    page.picture(
        f"{prefix}batch-effect",
        figures.experiment_montage(chosen),
        "The same siRNA in several experiments of a cell type. What differs along a row is batch "
        "effect and variation between wells. Contrast and colours as above.",
    )

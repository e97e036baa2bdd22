"""Finished runs -> the figures in README and docs, all of one version, and docs/results.json.

    make demo && make control
    python -m benchmarks.figures runs/demo --control=runs/control --demo_minutes=7 --test_minutes=4
    make dose tune
    python -m benchmarks.figures --worlds=runs/worlds --search=runs/worlds/search
    python -m rxrx1_jax.leaderboard --config=demo --methods=recipes --seeds=0 --workdir=runs/recipes
    python -m benchmarks.figures --recipes=runs/recipes

docs/results.json holds the Markdown of each block: what a page has between
`<!-- figures: NAME -->` and `<!-- end -->`. With RUNS the picture in README is drawn again, too,
with --worlds that of the doses. With nothing only the blocks are written again.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from benchmarks import acceptance, dose
from rxrx1_jax.data.files import write_text
from rxrx1_jax.report import files, table1
from rxrx1_jax.report.runs import FinishedRun, Screen, group, load_runs, shared_of
from rxrx1_jax.report.tables import NOTHING, Cell, Table, Value

ROOT = Path(__file__).parents[1]
RESULTS = "docs/results.json"
PICTURE, COLOURS = "docs/images/one_sirna.png", 256
DOSES = "docs/images/dose.png"
PAGES = ("README.md", "docs/*.md")
BEGIN, END = "<!-- figures: ", "<!-- end -->"
BATCH = ("batch", "plate_control")
RANDOM = ("random_site", "plate_control"), ("random_well", "plate_control")
ROWS = {BATCH, *RANDOM}  # of Table 1
COMMANDS = """```console
$ make demo    # {:g} minutes: data, 9 trainings, table, page
$ make test    # {:g} minutes: the tests, but for the long ones
```"""


BOARD, DRAWN = "Accuracy", "Drawn, chosen and gained"  # how the captions of tables begin
SHOWN = 5  # columns of the leaderboard that its page has: up to the p-value


class FiguresError(ValueError):
    """Runs or pages that figures cannot be made of; the message is one line."""


class Measured(NamedTuple):
    """The runs of `make demo` or `make control`, and their lines of Table 1."""

    screen: Screen
    runs: list[FinishedRun]
    lines: list[table1.Line]

    def of(self, row: tuple[str, str]) -> list[FinishedRun]:
        return [run for run in self.runs if run.row == row]


def measure(folder: Path) -> Measured:
    """Raises ReportError or FiguresError for runs that are missing, unfinished or do not fit."""
    screens = load_runs([path.parent for path in sorted(folder.glob("*/config.json"))])
    if len(screens) != 1:
        raise FiguresError(f"{folder}: runs on {len(screens)} screens, expected those of make demo")
    ((screen, runs),) = screens.items()
    lines = table1.lines_of(group(runs), "site")
    if missing := ROWS - {line.row for line in lines}:
        raise FiguresError(f"{folder}: no run of {missing}, expected those of make demo")
    return Measured(screen, runs, lines)


def blocks(demo: Measured, control: Measured | None) -> dict[str, str]:
    """{name: Markdown} of the blocks that are made from the runs' own files."""
    table: list[list[Cell]] = [[label, *values] for label, _, *values in
                               (line.cells() for line in demo.lines)]  # fmt: skip
    for label, cells in table1.PAPER.items():
        paper = (Value(mean, sd=sd) for mean, sd in cells)
        table.append([f"*The paper, real data: {label}*", *paper])
    (random, _), (batch, _) = (table1.PAPER[label][0] for label in ("Random", "Batch"))
    papers = [Value(random - batch, signed=True), NOTHING]
    ours = [[row[2] for row in table1.gaps(found.lines) if str(row[0]).endswith("- batch")]
            if found else [NOTHING, NOTHING] for found in (demo, control)]  # fmt: skip
    names = [line.label for row in RANDOM for line in demo.lines if line.row == row]
    gaps: list[list[Cell]] = [
        [f"{name} above batch", *of] for name, *of in zip(names, *ours, papers, strict=True)
    ]
    head = ["test accuracy by site, points", "demo", "no batch effects", "the paper"]
    shares = map(_twins, demo.of(RANDOM[0]))
    machine = _machine(run.environment for run in demo.runs)
    return {
        "about": f"{machine} {table1.describe(demo.screen, demo.runs)}",
        "table1": _only_table(Table("", ["", *table1.COLUMNS.values()], table).markdown()),
        "gaps": _only_table(Table("", head, gaps).markdown()),
        "twins": f"The demo leaves {statistics.fmean(shares):.0f} % of them such a twin.",
    }


def worlds(folder: Path, picture: Path) -> dict[str, str]:
    """The blocks of docs/leaderboard.md, from the workdirs of finished leaderboards, one per dose.

    Raises FiguresError for one that is not finished, and for runs of several versions.
    """
    doses = {float(at.name): at for at in folder.iterdir() if re.fullmatch(r"[\d.]+", at.name)}
    if not {0.0, 1.0} <= doses.keys():
        raise FiguresError(f"{folder}: no folders 0 and 1, expected those of make screening")
    found = {dose: acceptance.finished(doses[dose]) for dose in sorted(doses)}
    measured, effects = acceptance.measured(found[1.0], found[0.0]), found[1.0]
    shared = shared_of(o.run for o in effects if o.run)
    first = next(o.run.path for o in effects if o.run and o.job.protocol == "batch")
    curves = dose.curves(found)
    dose.save(curves, picture)
    said, table = _report(doses[1.0])
    return {
        "board": f"{_made(doses.values())} {said}",
        "board_table": table,
        "acceptance": _only_table(acceptance.acceptance(measured, shared).markdown()),
        "planning": _only_table(acceptance.planning(measured).markdown()),
        "dose": _only_table(dose.table_of(curves).markdown()),
        "variance": _only_table(_run("rxrx1_jax.variance", first / "embeddings.parquet")),
    }


def recipes(folder: Path) -> dict[str, str]:
    """The blocks of docs/recipes.md, from a finished leaderboard of configs/recipes.py."""
    said, table = _report(folder)
    return {"recipes": f"{_made([folder])} {said}", "recipes_table": table}


def search(folder: Path) -> dict[str, str]:
    """The blocks of what `make tune` drew, chose and, once its leaderboard is done, gained."""
    text = (folder / "report" / "search.md").read_text(encoding="utf-8")
    table = text.partition(DRAWN)[2].partition("\n\n")[2].partition("\n\n")[0]
    if not table:
        raise FiguresError(f"{folder}: no table {DRAWN!r}, expected what make tune wrote")
    return {"search": _made([folder]), "search_table": _only_table(table)}


def _report(folder: Path) -> tuple[str, str]:
    """What a finished leaderboard says, and the first columns of its table of accuracy."""
    report = folder / "report" / "leaderboard.md"
    text = report.read_text(encoding="utf-8")
    if "Not in the tables" in text:
        raise FiguresError(f"{report}: runs are missing, expected a finished leaderboard")
    said, *tables = re.split(r"\n(?=[^|\n]+:\n\n\|)", text)  # before their captions
    found = [table for table in tables if table.startswith(BOARD)]
    if not found:
        raise FiguresError(f"{report}: no table {BOARD}, expected that of a leaderboard")
    rows = [line.split("|")[1 : SHOWN + 1] for line in found[0].splitlines() if line[:1] == "|"]
    return said.strip(), "\n".join(f"|{'|'.join(row)}|" for row in rows)


def _made(folders: Iterable[Path]) -> str:
    return _machine(files.read_environment(path) for at in folders
                    for path in at.rglob("environment.json"))  # fmt: skip


def fill(text: str, made: Mapping[str, str]) -> str:
    """The page with its blocks written again. Raises FiguresError for a block of another name."""
    parts = text.split(BEGIN)
    for i, part in enumerate(parts[1:], 1):
        name = part.partition(" -->")[0]
        if name not in made or END not in part:
            raise FiguresError(f"block {name!r}: expected one of {sorted(made)}, and {END} below")
        parts[i] = f"{name} -->\n{made[name]}\n{END}{part.partition(END)[2]}"
    return BEGIN.join(parts)


def _machine(environments: Iterable[Mapping[str, Any]]) -> str:
    """With what runs were made: one commit on one machine, or one version where no clone was."""
    found = set()
    for made in environments:
        packages, commit = made["packages"], made["commit"]
        code = f"Commit {commit}" if commit else f"Version {packages.get('rxrx1_jax')}"
        found.add(
            f"{code} on {made['cpus']} cores of an {made['machine']} machine,"
            f" {made['devices'][0].partition(':')[0]}, Python {made['python']},"
            f" JAX {packages['jax']}."
        )
    if len(found) > 1:
        raise FiguresError(f"runs of several versions or machines: {' '.join(sorted(found))}")
    return found.pop()


def _twins(run: FinishedRun) -> float:
    """Share in % of the test sites whose well has its other site in training."""
    rows = [line.rsplit(",", 1) for line in (run.path / "split.csv").read_text().splitlines()]
    wells = {site.rpartition("_")[0] for site, role in rows if role == "train"}
    return 100 * statistics.fmean(
        site.rpartition("_")[0] in wells for site, role in rows if role == "test"
    )


def _only_table(markdown: str) -> str:
    return "\n".join(line for line in markdown.splitlines() if line.startswith("|"))


def _draw(run: FinishedRun, picture: Path) -> None:
    """One siRNA across experiments of the run's dataset, in few colours: a third of the bytes."""
    dataset = Path(run.config["data.dir"]) / run.config["data.name"]
    with tempfile.TemporaryDirectory() as out:
        chosen = ("--cell_type=HUVEC", "--sirna_id=0", f"--out={out}")
        _run("tfds_builder.rxrx1", "show", dataset, *chosen)
        (path,) = Path(out).glob("*_sirna_0_*_HUVEC.png")
        with Image.open(path) as drawn:
            drawn.convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE).save(
                picture, optimize=True
            )


def _run(module: str, *arguments: object) -> str:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise FiguresError(f"{module}: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.figures", description=__doc__)
    parser.add_argument("runs", nargs="?", type=Path, metavar="RUNS", help="folder of `make demo`")
    parser.add_argument("--control", type=Path, help="folder of `make control`")
    parser.add_argument("--worlds", type=Path, help="folder of `make screening` and `make dose`")
    parser.add_argument("--recipes", type=Path, help="workdir of a leaderboard of the recipes")
    parser.add_argument("--search", type=Path, help="what `make tune` wrote: runs/worlds/search")
    parser.add_argument("--demo_minutes", type=float, help="what `make demo` took")
    parser.add_argument("--test_minutes", type=float, help="what `make test` took")
    options = parser.parse_args(arguments)
    try:
        made = json.loads((ROOT / RESULTS).read_text())
        if options.worlds:
            made |= worlds(options.worlds, ROOT / DOSES)
        if options.recipes:
            made |= recipes(options.recipes)
        if options.search:
            made |= search(options.search)
        if options.runs:
            if options.demo_minutes is None or options.test_minutes is None:
                raise FiguresError("expected --demo_minutes and --test_minutes beside RUNS")
            demo = measure(options.runs)
            batch = demo.of(BATCH)
            made |= blocks(demo, measure(options.control) if options.control else None) | {
                "commands": COMMANDS.format(options.demo_minutes, options.test_minutes),
                "corrections": _only_table(_run("rxrx1_jax.correct", *(r.path for r in batch))),
                "diagnosis": _only_table(_run("rxrx1_jax.diagnose", batch[0].path)),
            }
            _draw(batch[0], ROOT / PICTURE)
        write_text(ROOT / RESULTS, json.dumps(made, indent=1) + "\n")
        for page in (path for pattern in PAGES for path in sorted(ROOT.glob(pattern))):
            text = page.read_text()
            if (filled := fill(text, made)) != text:
                write_text(page, filled)
                print(page.relative_to(ROOT))
        return 0
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

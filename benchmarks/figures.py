"""Finished runs -> the figures in README and docs, all of one version, and docs/results.json.

    make demo && make control
    python -m benchmarks.figures runs/demo --control=runs/control --demo_minutes=7 --test_minutes=5

docs/results.json keeps the figures with version, machine, data and settings. Each block of a page
between `<!-- figures: NAME -->` and `<!-- end -->` is written from that file. The picture in README
is drawn again, too. Without RUNS only the blocks are written again.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from rxrx1_jax.report.table1 import PAPER

ROOT = Path(__file__).parents[1]
RESULTS = "docs/results.json"
PICTURE, COLOURS = "docs/images/one_sirna.png", 256
PAGES = ("README.md", "docs/*.md")
BEGIN, END = "<!-- figures: ", "<!-- end -->"
BATCH, NOT_NORMALISED = "batch-plate_control", "batch-none"
RANDOM_SITE, RANDOM_WELL = "random_site-plate_control", "random_well-plate_control"
ROWS = {
    BATCH: "Batch",
    RANDOM_SITE: "Random, by site",
    RANDOM_WELL: "Random, by well (strict)",
    NOT_NORMALISED: "Batch, no normalisation",
}
COLUMNS = {"all": "All", "HUVEC": "HUVEC", "RPE": "RPE", "HEPG2": "HepG2", "U2OS": "U2OS"}
Folds = Mapping[str, float]  # fold -> accuracy in %


class FiguresError(ValueError):
    """Runs or pages that figures cannot be made of; the message is one line."""


def measure(folder: Path) -> dict[str, Any]:
    """The figures of the runs in `folder`, which `make demo` or `make control` made.

    Raises FiguresError for an unfinished run, and for runs of several versions, data or settings.
    """
    found: dict[str, Any] = {"accuracy": {name: {} for name in ROWS}}
    if not folder.is_dir():
        raise FiguresError(f"{folder}: no such folder; expected the runs of `make demo`")
    for path in sorted(folder.iterdir()):
        name, _, fold = path.name.rpartition("-")
        if name not in ROWS:
            continue
        results, made_with, config = (
            _read(path / f"{file}.json") for file in ("results", "environment", "config")
        )
        if not made_with["packages"].get("rxrx1_jax"):
            raise FiguresError(f"{path}: rxrx1_jax has no version; expected it to be installed")
        about = {
            "version": made_with["packages"]["rxrx1_jax"],
            "commit": made_with.get("commit", ""),
            "machine": [made_with["cpus"], made_with["machine"], *made_with["devices"]],
            "python": made_with["python"],
            "jax": made_with["packages"]["jax"],
            "data": {key: results["data"][key] for key in ("name", "version", "classes")},
            "image_size": results["data"]["image_size"],
            "sites": [results["data"]["train_sites"], results["data"]["test_sites"]],
            "settings": {key: results[key] for key in ("model", "epochs", "seed")}
            | {key: config["optim"][key] for key in ("name", "learning_rate", "batch_size")},
        }
        for key, value in about.items():
            if found.setdefault(key, value) != value:
                raise FiguresError(f"{path}: {key} is {value}, expected {found[key]} as before it")
        accuracy = results["accuracy"]["site"]
        cells = {"all": accuracy["all"], **accuracy["cell_type"]}
        found["accuracy"][name][fold] = {key: 100 * value for key, value in cells.items()}
        if name == RANDOM_SITE:
            found.setdefault("twins", []).append(_twins(path / "split.csv"))
    if not all(found["accuracy"].values()):
        missing = [name for name, folds in found["accuracy"].items() if not folds]
        raise FiguresError(f"{folder}: no run {missing[0]}-0; expected the runs of `make demo`")
    return found


def blocks(results: Mapping[str, Any]) -> dict[str, str]:
    """{name: Markdown} of each block that a page may hold."""
    demo = results["demo"]
    cores, machine, device = demo["machine"][:3]
    data, settings = demo["data"], demo["settings"]
    folds = len(demo["accuracy"][BATCH])
    about = (
        f"Measured with version {demo['version']} on {cores} cores of an {machine} machine"
        f" ({device.partition(':')[0]}), Python {demo['python']}, JAX {demo['jax']}. Data:"
        f" {data['name']} {data['version']}, {data['classes']} siRNAs (chance"
        f" {100 / data['classes']:.1f} %), {demo['image_size']} px, {demo['sites'][0]:,} training"
        f" and {demo['sites'][1]:,} test sites per run. {settings['model']}, {settings['epochs']}"
        f" epochs, {folds} folds, seed {settings['seed']}."
    )
    table = [["", *COLUMNS.values()]]
    for name, label in ROWS.items():
        table.append([label, *(spread(_column(demo, name, key)) for key in COLUMNS)])
    for label, cells in PAPER.items():
        cell = (f"*{mean:.1f} ± {sd:.1f}*" for mean, sd in cells)
        table.append([f"*the paper, real data: {label}*", *cell])
    (random, _), (batch, _) = PAPER["Random"][0], PAPER["Batch"][0]
    gaps = [["test accuracy by site, points", "demo", "no batch effects", "the paper"]]
    control = results.get("control")
    for name, paper in ((RANDOM_SITE, f"{random - batch:+.1f}"), (RANDOM_WELL, "–")):
        without = gap(control, name) if control else "–"
        gaps.append([f"{ROWS[name].lower()}, above batch", gap(demo, name), without, paper])
    return {
        "commands": _console(
            ("make demo", f"{results['demo_minutes']:g} minutes: data, 12 trainings, table, page"),
            ("make test", f"{results['test_minutes']:g} minutes: the tests, but for the long ones"),
        ),
        "about": about,
        "table1": _markdown(table),
        "gaps": _markdown(gaps),
        "twins": f"The demo leaves {statistics.fmean(demo['twins']):.0f} % of them such a twin.",
        "corrections": _markdown(results["corrections"]),
        "diagnosis": _markdown(results["diagnosis"]),
    }


def fill(text: str, made: Mapping[str, str]) -> str:
    """The page with its blocks written again. Raises FiguresError for a block of another name."""
    parts = text.split(BEGIN)
    for i, part in enumerate(parts[1:], 1):
        name = part.partition(" -->")[0]
        if name not in made or END not in part:
            raise FiguresError(f"block {name!r}: expected one of {sorted(made)}, and {END} below")
        parts[i] = f"{name} -->\n{made[name]}\n{END}{part.partition(END)[2]}"
    return BEGIN.join(parts)


def pages(root: Path = ROOT) -> list[Path]:
    return [path for pattern in PAGES for path in sorted(root.glob(pattern))]


def spread(folds: Folds, sign: str = "") -> str:
    """Mean ± sample standard deviation over folds; a single fold has no ±, none a dash."""
    values = list(folds.values())
    if not values:
        return "–"
    mean = f"{statistics.fmean(values):{sign}.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


def gap(demo: Mapping[str, Any], name: str) -> str:
    """Accuracy of a random split minus that of the batch split of the same fold, in points."""
    batch, other = _column(demo, BATCH, "all"), _column(demo, name, "all")
    return spread({fold: other[fold] - batch[fold] for fold in batch if fold in other}, "+")


def _column(demo: Mapping[str, Any], name: str, key: str) -> Folds:
    return {fold: cells[key] for fold, cells in demo["accuracy"][name].items() if key in cells}


def _twins(split: Path) -> float:
    """Share in % of the test sites whose well has its other site in training."""
    rows = [line.rsplit(",", 1) for line in split.read_text().splitlines()[1:]]
    wells = {site.rpartition("_")[0] for site, role in rows if role == "train"}
    test = [site.rpartition("_")[0] for site, role in rows if role == "test"]
    return 100 * statistics.fmean(well in wells for well in test)


def _table_of(module: str, runs: Sequence[Path]) -> list[list[str]]:
    """The cells of the Markdown table that `python -m MODULE RUNS` prints, without its rule."""
    lines = [line for line in _run(module, *map(str, runs)).splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line[1:].rstrip("|").split("|")] for line in lines]
    return [cells[0], *cells[2:]]


def _draw(run: Path, picture: Path) -> None:
    """One siRNA across experiments of the run's dataset, in few colours: a third of the bytes."""
    data = _read(run / "config.json")["data"]
    with tempfile.TemporaryDirectory() as out:
        chosen = ("--cell_type=HUVEC", "--sirna_id=0", f"--out={out}")
        _run("tfds_builder.rxrx1", "show", os.path.join(data["dir"], data["name"]), *chosen)
        (path,) = Path(out).glob("*_sirna_0_*_HUVEC.png")
        with Image.open(path) as drawn:
            drawn.convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE).save(
                picture, optimize=True
            )


def _run(module: str, *arguments: str) -> str:
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise FiguresError(f"{module}: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    padded = [head, ["---"] * len(head), *([*row, *[""] * (len(head) - len(row))] for row in body)]
    return "\n".join(f"| {' | '.join(row)} |" for row in padded)


def _console(*commands: tuple[str, str]) -> str:
    return "\n".join(["```console", *(f"$ {name}    # {said}" for name, said in commands), "```"])


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise FiguresError(f"{path}: {error}; expected a finished run of `make demo`") from error


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.figures", description=__doc__)
    parser.add_argument("runs", nargs="?", type=Path, metavar="RUNS", help="folder of `make demo`")
    parser.add_argument("--control", type=Path, help="folder of `make control`")
    parser.add_argument("--demo_minutes", type=float, help="what `make demo` took")
    parser.add_argument("--test_minutes", type=float, help="what `make test` took")
    options = parser.parse_args(arguments)
    try:
        if options.runs:
            if options.demo_minutes is None or options.test_minutes is None:
                raise FiguresError("expected --demo_minutes and --test_minutes beside RUNS")
            demo = measure(options.runs)
            batch = [options.runs / f"{BATCH}-{fold}" for fold in demo["accuracy"][BATCH]]
            results = {
                "demo_minutes": options.demo_minutes,
                "test_minutes": options.test_minutes,
                "demo": demo,
                "control": measure(options.control) if options.control else None,
                "corrections": _table_of("rxrx1_jax.correct", batch),
                "diagnosis": _table_of("rxrx1_jax.diagnose", batch[:1]),
            }
            _draw(batch[0], ROOT / PICTURE)
            _write(ROOT / RESULTS, json.dumps(results, indent=1) + "\n")
        made = blocks(_read(ROOT / RESULTS))
        for page in pages():
            text = page.read_text()
            if (filled := fill(text, made)) != text:
                _write(page, filled)
                print(page.relative_to(ROOT))
        return 0
    except FiguresError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

"""What README and docs name exists, and their figures are those of docs/results.json."""

import importlib
import importlib.util
import json
import re
import shlex
import shutil
import statistics
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from finished_runs import edited, make_run

from benchmarks import cost_model, figures
from rxrx1_jax import config

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PATTERNS = ("*.md", "docs/*.md", "launch/**/*.md", "benchmarks/*.md", "tfds_builder/**/*.md")
PAGES = [path for pattern in PATTERNS for path in sorted(ROOT.glob(pattern))]
FOLDERS = "configs|docs|launch|benchmarks|examples|rxrx1_jax|tfds_builder|tests"
MODULE = re.compile(r"\b(?:rxrx1_jax|tfds_builder|benchmarks)(?:\.\w+)+")
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: Path) -> list[list[str]]:
    """The words of each command in a page's console blocks."""
    found = []
    for block in re.findall(r"^```console\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                found.append(shlex.split(line[2:], comments=True))
    return found


def source_of(module: str) -> str:
    """The text of the files in which a command may define its flags."""
    top = ROOT / module.partition(".")[0]
    return "".join(path.read_text() for path in sorted(top.rglob("*.py")))


def resolve(name: str) -> object:
    """`package.module.attribute`, imported. Raises ImportError or AttributeError."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        path = ".".join(parts[:end])
        try:
            found = importlib.util.find_spec(path)
        except ModuleNotFoundError:  # a part of it is no package
            found = None
        if found:
            value = importlib.import_module(path)
            for attribute in parts[end:]:
                value = getattr(value, attribute)
            return value
    raise ImportError(name)


def test_readme_is_a_front_door():
    text = README.read_text()
    assert len(text.encode()) < 9_000
    glossary = re.findall(r"^\| \*\*(\w+)\*\* \|", text, re.MULTILINE)
    assert glossary == ["site", "well", "plate", "experiment", "control", "siRNA"]


@each_page
def test_links_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), f"{page}: {target}"
        assert not anchor or anchor in slugs(linked), f"{page}: {target}"


@each_page
def test_files_and_modules_exist(page):
    text = page.read_text()
    for path in re.findall(rf"(?<![\w/.-])(?:{FOLDERS})/[\w/.-]*\w", text):
        assert (ROOT / path).exists(), f"{page}: {path}"
    for name in sorted(set(MODULE.findall(text))):
        if importlib.util.find_spec(name.split(".")[0] + "." + name.split(".")[1]) is None:
            resolve(name)  # an attribute of the package
        elif name.count(".") > 1:
            resolve(name)


@each_page
def test_commands_parse(page):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for words in commands(page):
        if words[0] == "make":
            assert words[1] in targets, words
        if words[:2] == ["python", "-m"] and words[2].startswith(("rxrx1_jax", "tfds_builder")):
            assert importlib.util.find_spec(words[2]), words
            if words[3:4] == ["build"]:  # its flags are those of `tfds build`
                continue
        elif words[0].startswith("launch/"):
            assert (ROOT / words[0]).exists(), words
        else:
            continue
        source = source_of(words[2] if words[0] == "python" else "rxrx1_jax.main")
        for flag in (word.partition("=")[0] for word in words[1:] if word.startswith("--")):
            if flag.startswith("--config."):
                assert flag.removeprefix("--config.") in config.FIELDS, words
            else:
                assert re.search(rf'"(--)?{flag.removeprefix("--")}"', source), words


def test_the_map_of_the_code_is_right():
    rows = re.findall(r"^\| `([\w/]+)/` \| .* \| (.*) \|$", (ROOT / "CONTRIBUTING.md").read_text(),
                      re.MULTILINE)  # fmt: skip
    assert {folder for folder, _ in rows} == {"tfds_builder/rxrx1"} | {
        f"rxrx1_jax/{path.parent.name}" for path in (ROOT / "rxrx1_jax").glob("*/__init__.py")
    }
    for folder, files in rows:
        for name in re.findall(r"`([\w/]+(?:\.py|/))`", files):
            assert (ROOT / folder / name).exists(), name


def test_the_config_of_the_training_page_is_one(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/train.md").read_text(), re.DOTALL)
    (program,) = (block for block in blocks if "def get_config" in block)
    (tmp_path / "mine.py").write_text(program)
    read = config.read(f"{tmp_path}/mine.py:fold=2")
    assert (read.data.name, read.data.fold, read.model.name) == ("rxrx1/px128", 2, "resnet18")


@pytest.mark.parametrize("script", sorted((ROOT / "launch").glob("*.sh")), ids=lambda s: s.name)
def test_scripts_print_their_help(script):
    done = subprocess.run([script, "--help"], capture_output=True, text=True, check=True)
    assert f"launch/{script.name}" in done.stdout and "PYTHON" in done.stdout
    assert not done.stdout.startswith(("#", "!"))


def test_tests_named_by_trust_exist():
    there = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    named = set(re.findall(r"\btest_\w+", (ROOT / "docs/trust.md").read_text()))
    assert named and named <= there, named - there


def test_every_figure_is_of_one_file():
    made = json.loads((ROOT / figures.RESULTS).read_text())
    used = []
    for page in PAGES:
        text = page.read_text()
        assert figures.fill(text, made) == text, f"{page}: run python -m benchmarks.figures"
        used += re.findall(rf"{figures.BEGIN}(\w+) -->", text)
    assert set(used) == set(made)


def test_cost_table_is_the_programs():
    text = (ROOT / "docs/scaling.md").read_text()
    for machine in cost_model.MACHINES:
        row = cost_model.cost(machine, decode_ms=4.0, cpu_step=0.55)
        assert f"| {' | '.join(row.values())} |" in text


MADE_WITH = {
    "python": "3.11", "packages": {"rxrx1_jax": "1.0", "jax": "0.10"}, "cpus": 2,
    "machine": "x86_64", "devices": ["cpu:cpu"], "commit": "abc1234",
}  # fmt: skip
RIGHT = {  # of 20 sites: in each fold
    ("batch", "plate_control"): [5, 10], ("random_site", "plate_control"): [10, 12],
    ("random_well", "plate_control"): [5, 5], ("batch", "none"): [2, 5],
}  # fmt: skip


@pytest.fixture
def demo(tmp_path) -> Path:
    """Runs of `make demo`, two folds of each."""
    for (protocol, normalisation), folds in RIGHT.items():
        for fold, right in enumerate(folds):
            run = tmp_path / f"{protocol}-{normalisation}-{fold}"
            make_run(run, {"RPE": (right, 5)}, protocol=protocol, normalisation=normalisation,
                     fold=fold)  # fmt: skip
            (run / "environment.json").write_text(json.dumps(MADE_WITH))
            (run / "split.csv").write_text(
                "site_id,role\nA_1_B02_1,train\nA_1_B02_2,test\nA_1_B03_1,test\n")
    return tmp_path


def test_figures_are_means_over_folds(demo):
    measured = figures.measure(demo)
    made = figures.blocks(measured, control=measured)
    table1, gaps = (re.sub(" +", " ", made[name]) for name in ("table1", "gaps"))
    batch = f"| Batch | 37.5 ± {statistics.stdev([25, 50]):.1f} | – | 37.5 ± 17.7 | – | – |"
    assert batch in table1.splitlines()
    gap = f"+17.5 ± {statistics.stdev([25, 10]):.1f}"  # of the pairs by fold
    assert f"| Random (by site) above batch | {gap} | {gap} | +8.7 |" in gaps
    assert "| – " in figures.blocks(measured, control=None)["gaps"].splitlines()[-2]
    assert "50 %" in made["twins"]  # one of the two test sites shares its well with training
    assert "rxrx1/synthetic 1.0.0" in made["about"] and "Version 1.0 (commit abc" in made["about"]
    page = "before\n<!-- figures: twins -->\nold\n<!-- end -->\nafter\n"
    filled = figures.fill(page, made)
    assert filled.splitlines() == [
        "before", "<!-- figures: twins -->", made["twins"], "<!-- end -->", "after",
    ]  # fmt: skip
    assert figures.fill(filled, made) == filled


def test_figures_refuse_two_versions_and_missing_runs(demo):
    with edited(demo / "batch-none-1" / "environment.json") as made:
        made["packages"]["rxrx1_jax"] = "1.1"
    with pytest.raises(figures.FiguresError, match="versions"):
        figures.blocks(figures.measure(demo), None)
    for fold in range(2):
        shutil.rmtree(demo / f"batch-none-{fold}")
    with pytest.raises(figures.FiguresError, match="no run of .*none"):
        figures.measure(demo)
    with pytest.raises(figures.FiguresError, match="block"):
        figures.fill("<!-- figures: nothing -->\n<!-- end -->", {})


REPORT = """1 of 2 rows.

- It cannot say.

Accuracy on unseen (x), %:

| method | by site | training | gain | p (Holm) | by well |
|--------|--------:|---------:|-----:|---------:|--------:|
| **inductive** | | | | | |
| base | 46.4 | 91.1 | – | – | 53.4 |
| cutmix | 46.3 | 43.9 | -0.1 (-7.3 to +7.1) | 1.000 | 49.3 |

A note.

The gap: x, %:

| method | batch |
|--------|------:|
| base | 46.4 |

Controls: x:

| control | verdict |
|---------|---------|
| zero | holds |
"""


@pytest.fixture
def board(tmp_path) -> Path:
    """A leaderboard of two runs."""
    for name in ("base", "cutmix/rxrx1/b"):
        run = tmp_path / name / "batch-0-0"
        run.mkdir(parents=True)
        (run / "environment.json").write_text(json.dumps(MADE_WITH))
    (tmp_path / "report").mkdir()
    (tmp_path / "report/leaderboard.md").write_text(REPORT)
    return tmp_path


def test_the_page_of_the_leaderboard_is_its_report(board):
    made = figures.board(board)
    assert made["board"].startswith("Version 1.0 (commit abc1234) on 2 cores")
    assert made["board"].endswith("- It cannot say.")
    gain = "-0.1 (-7.3 to +7.1)"
    assert made["board_table"].splitlines()[-1] == f"| cutmix | 46.3 | 43.9 | {gain} | 1.000 |"
    (line,) = made["board_record"].splitlines()[2:]  # of the rows that this leaderboard has
    assert re.match(rf"\| cutmix +\| {re.escape(gain)} +\|", line)
    assert made["board_gap"].splitlines()[-1] == "| base | 46.4 |"
    assert made["board_controls"].splitlines()[-1] == "| zero | holds |"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("| zero | holds |", "| zero | holds |\n\nNot in the tables:\n\n- base: killed", "missing"),
        ("The gap", "A gap", "The gap"),
        ("abc1234", "abc9999", "versions"),
    ],
)
def test_a_leaderboard_that_makes_no_page(board, old, new, said):
    file = board / ("report/leaderboard.md" if old in REPORT else "base/batch-0-0/environment.json")
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(figures.FiguresError, match=said):
        figures.board(board)


def test_citation_and_package_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    assert [author["name"] for author in citation["authors"]] == [
        author["name"] for author in project["authors"]
    ]
    paper = citation["references"][0]
    assert (paper["year"], len(paper["authors"])) == (2019, 5)
    for package in ("rxrx1_jax", "tfds_builder"):
        assert (ROOT / package / "py.typed").exists()

"""What README and docs name exists, and their figures are those of docs/results.json."""

import importlib
import importlib.util
import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

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

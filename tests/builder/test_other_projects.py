"""The examples of loading, run as they are in clean virtual environments.

Each environment holds what the header of the example asks for (PEP 723) with what that requires in
turn, as pip would install it, linked from the environment that runs the tests: no download, and
nothing that is not declared. `rxrx1_jax` is in none of them.
"""

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra `build`")
from packaging.requirements import Requirement  # noqa: E402

from tfds_builder.rxrx1 import Builder  # noqa: E402

pytestmark = pytest.mark.long
ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SCREEN = {
    "huvec": 2, "rpe": 1, "hepg2": 0, "u2os": 2, "plates": 1, "treatments": 4,
    "positive_controls": 3,
}  # fmt: skip
PARTITIONS = {"train": ["HUVEC-01", "U2OS-01"], "test": ["HUVEC-02", "RPE-01", "U2OS-02"]}
SITES = 16  # of an experiment: 8 wells, 2 sites each


class Built(NamedTuple):
    data_dir: Path
    dataset: Path
    release: Path


def build(tmp_path_factory, file_format: str) -> Built:
    """A small screen under the name of a config that our builder knows."""
    folder = tmp_path_factory.mktemp(file_format)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Builder.builder_configs["synthetic"], "screen", SCREEN)
        builder = Builder(config="synthetic", data_dir=folder)
        builder.download_and_prepare(file_format=file_format)
    return Built(folder, Path(builder.data_path), folder / "downloads" / "rxrx1_synthetic")


@pytest.fixture(scope="module")
def tfrecord(tmp_path_factory) -> Built:
    return build(tmp_path_factory, "tfrecord")


@pytest.fixture(scope="module")
def array_record(tmp_path_factory) -> Built:
    return build(tmp_path_factory, "array_record")


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> Path:
    """A folder with tfds_builder and without rxrx1_jax."""
    folder = tmp_path_factory.mktemp("ours")
    (folder / "tfds_builder").symlink_to(ROOT / "tfds_builder")
    return folder


def required(names: list[str]) -> dict[str, importlib.metadata.Distribution]:
    """The distributions that installing `names` would bring, by name."""
    found: dict[str, importlib.metadata.Distribution] = {}
    wanted, seen = [Requirement(name) for name in names], set()
    while wanted:
        requirement = wanted.pop()
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        distribution = importlib.metadata.distribution(requirement.name)
        found[re.sub(r"[-_.]+", "-", requirement.name).lower()] = distribution
        for further in map(Requirement, distribution.requires or []):
            extras = {"", *requirement.extras}
            if not further.marker or any(further.marker.evaluate({"extra": e}) for e in extras):
                wanted.append(further)
    return found


def clean_environment(folder: Path, names: list[str]) -> Path:
    """The interpreter of a new virtual environment that holds `names` and what they require."""
    venv.create(folder, symlinks=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    for distribution in required(names).values():
        for file in distribution.files or []:
            source, link = Path(str(distribution.locate_file(file))), site_packages / file
            if ".." in file.parts or not source.exists() or link.exists():
                continue  # commands in bin/
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(source)
    return folder / "bin" / "python"


def run(tmp_path: Path, name: str, arguments: list[object], path: Path | None = None) -> list[str]:
    """The lines that an example prints in an environment of its own."""
    script = EXAMPLES / name
    header = re.search(r"^# /// script\n(.*?)^# ///$", script.read_text(), re.M | re.S)
    assert header, f"{name} does not say what it needs"
    names = tomllib.loads(re.sub("^# ?", "", header[1], flags=re.M))["dependencies"]
    python = clean_environment(tmp_path / "venv", names)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "JAX", "VIRTUAL"))}
    environment = kept | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(path or "")}
    absent = ["rxrx1_jax", "jax", *([] if path else ["tfds_builder"])]
    absent += [] if "tensorflow" in names else ["tensorflow"]
    probe = f"import importlib.util as u; print([n for n in {absent} if u.find_spec(n)])"
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    found = subprocess.run([python, "-c", probe], check=True, **options).stdout
    assert found.strip() == "[]"
    command = [str(python), str(script), *map(str, arguments)]
    result = subprocess.run(command, timeout=240, **options)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.splitlines()


def sites_of(release: Path) -> dict[str, np.ndarray]:
    """{site_id: uint8 [6, 64, 64]}, read from the PNG files of the screen."""
    rows = [line.split(",") for line in (release / "metadata.csv").read_text().splitlines()[1:]]
    found = {}
    for site_id, _, _, _, experiment, plate, well, site, *_ in rows:
        folder = release / "images" / experiment / f"Plate{plate}"
        names = [folder / f"{well}_s{site}_w{c}.png" for c in range(1, 7)]
        found[site_id] = np.stack([np.asarray(Image.open(name)) for name in names])
    return found


def normalised_mean(release: Path, experiments: list[str]) -> float:
    """Mean of all sites of the experiments, each by the pooled controls of its plate."""
    text = (release / "metadata.csv").read_text()
    controls = {line.split(",")[0] for line in text.splitlines() if "_control," in line}
    sites, means = sites_of(release), []
    for experiment in experiments:
        members = {k: v for k, v in sites.items() if k.startswith(experiment)}
        assert len(members) == SITES
        pixels = np.stack([v for k, v in members.items() if k in controls]).astype(float)
        mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3))
        images = np.stack(list(members.values()))
        means.append(((images - mean[:, None, None]) / std[:, None, None]).mean())
    return float(np.mean(means))


def expected(release: Path, split: str, experiments: list[str], shown: str) -> str:
    count = SITES * len(experiments)
    shape = shown.replace("COUNT", str(count))
    mean = normalised_mean(release, experiments)
    return f"{split}: {count} sites, {shape}, mean {mean:.4f}, {count // 2} of treatments"


SPLITS = {**PARTITIONS, "HUVEC-01": ["HUVEC-01"], "HUVEC-01+HUVEC-02": ["HUVEC-01", "HUVEC-02"]}


def test_tfds_load_after_one_import(tfrecord, ours, tmp_path):
    lines = run(tmp_path, "load_with_tfds.py", [tfrecord.data_dir, "rxrx1/synthetic"], ours)
    assert lines == [
        expected(tfrecord.release, split, experiments, "8 siRNAs")
        for split, experiments in SPLITS.items()
    ]


def test_builder_from_directory_with_nothing_of_ours(tfrecord, tmp_path):
    lines = run(tmp_path, "load_without_our_code.py", [tfrecord.dataset])
    assert lines == [
        expected(tfrecord.release, "+".join(experiments), experiments, "all (COUNT, 6, 64, 64)")
        for experiments in SPLITS.values()
    ]


@pytest.mark.parametrize("name", ["load_with_pytorch.py", "load_with_grain.py"])
def test_random_access(name, array_record, tmp_path):
    (line,) = run(tmp_path, name, [array_record.dataset])
    summary, seen, first = line.rsplit(", ", 2)
    assert summary == expected(
        array_record.release, "train", PARTITIONS["train"], "last batch (8, 6, 64, 64)"
    )
    assert seen == "32 seen"
    stored = tfds.builder_from_directory(array_record.dataset).as_data_source("HUVEC-01")
    assert first != f"first {stored[0]['site_id'].decode()}"  # shuffled


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("load_*.py")), ids=lambda s: s.name)
def test_usage_is_one_line(script):
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=env)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and f"python examples/{script.name} " in last

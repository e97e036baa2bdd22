"""The project installed, away from its clone: packages, commands, configs by name and of one's own.

Two environments: one with the built wheel, one with an editable install of a copy of the clone.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from embedding_tables import FEATURES, IDS, D, N, metadata_file, text

pytestmark = pytest.mark.long
ROOT = Path(__file__).parents[1]
OWN = """from rxrx1_jax import config
from rxrx1_jax.configs import demo

def get_config(arg=None):
    c = demo.get_config()
    c.optim.learning_rate = 1
    assert config.read("demo").data == c.data
    return config.parse(arg, c)
"""


def run(python: Path, folder: Path, *arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of the environment's Python, with no way back to the clone."""
    env = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, *arguments], cwd=folder, env=env | {"JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr.strip()


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of what is installed: building writes into its folder."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("rxrx1_jax", "tfds_builder", "configs"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    command = [sys.executable, "-m", "pip", "wheel", *options, f"--wheel-dir={folder}", source]
    subprocess.run(command, check=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module", params=["wheel", "editable"])
def python(request, source, tmp_path_factory) -> Path:
    """The interpreter of an environment with the project and this one's other packages."""
    folder = tmp_path_factory.mktemp(request.param)
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    what = ["--editable", source] if request.param == "editable" else []
    what = what or [request.getfixturevalue("wheel")]
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    # --ignore-installed: of an environment that has the project already (`make test`).
    command = ["-m", "pip", "--python", folder / "bin/python", "install", "--ignore-installed"]
    subprocess.run([sys.executable, *command, *options, *what], check=True)
    return folder / "bin" / "python"


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path


def test_every_package_and_file_is_in_the_wheel(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for package in ("rxrx1_jax", "tfds_builder"):
        files = [p for p in (ROOT / package).rglob("*") if p.is_file() and p.suffix != ".pyc"]
        found = {path.relative_to(ROOT).as_posix() for path in files}
        assert found - {"tfds_builder/requirements.txt"} <= names  # that one is for a clone
    shipped = {f"rxrx1_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    assert shipped <= names and not any(name.startswith(("configs/", "tests/")) for name in names)


def test_commands_find_configs_by_name_and_by_path(python, folder):
    code, out, err = run(python, folder, "-m", "rxrx1_jax.main", "--help")
    assert code == 0 and "--config=demo" in out, err
    code, out, err = run(python, folder, "-c", "import rxrx1_jax; print(rxrx1_jax.__file__)")
    assert code == 0 and not out.startswith(str(ROOT))
    nowhere = ["--config.data.dir=nowhere", "--workdir=run"]
    for command, configs in {
        "main": ["--config=demo:protocol=batch,fold=0", "--config=own.py:fold=1"],
        "table1": ["--config=batch_split"],
        "leaderboard": ["--config=demo --methods=leaderboard"],
    }.items():
        for config in configs:
            given = ["-m", f"rxrx1_jax.{command}", *config.split(), *nowhere]
            code, _, err = run(python, folder, *given)
            # The config was found; the dataset is not there.
            assert code == 1 and err.startswith("error: dataset rxrx1/"), err
            assert "tfds_builder.rxrx1 build" in err and "\n" not in err


def test_tables_of_embeddings_need_no_tensorflow(python, folder):
    (folder / "e.csv").write_bytes(text(IDS | FEATURES))
    metadata_file(folder)
    program = (
        "import sys, rxrx1_jax as rx\n"
        "print(rx.read_embeddings('e.csv', 'meta/metadata.csv').x.shape)\n"
        "print(sorted({'tensorflow', 'tensorflow_datasets'} & sys.modules.keys()))\n"
    )
    code, out, err = run(python, folder, "-c", program)
    assert code == 0 and out.split("\n")[:2] == [str((N, D)), "[]"], err


def test_the_smoke_run_needs_no_dataset(python, folder):
    code, _, err = run(python, folder, "-m", "rxrx1_jax.main", "--config=smoke", "--workdir=run")
    assert code == 0, err
    assert json.loads((folder / "run/results.json").read_text())["step"] > 0


def test_a_run_from_the_build_of_its_data_to_its_report(python, folder):
    pytest.importorskip("tensorflow_datasets", reason="needs the extra `build`")
    screen = {"huvec": 2, "rpe": 0, "hepg2": 0, "u2os": 0, "treatments": 4, "plates": 1,
              "positive_controls": 2}  # fmt: skip
    config = json.dumps({"name": "few", "size": 16, "screen": screen})
    tfds = ["-m", "tensorflow_datasets.scripts.cli.main", "build"]
    code, out, err = run(
        python, folder, *tfds, "--imports=tfds_builder.rxrx1", "rxrx1", f"--config={config}",
        "--data_dir=data",
    )  # fmt: skip
    assert code == 0, err
    code, out, err = run(
        python, folder, "-m", "rxrx1_jax.main", "--config=own.py:fold=1", "--workdir=run",
        "--config.data.name=rxrx1/few", "--config.model.width=8", "--config.optim.epochs=2",
        "--config.optim.batch_size=4", "--config.eval.batch_size=4", "--config.data.augment=false",
        "--config.optim.warmup_epochs=0", "--config.data.augmentation=None",
        "--config.optim.loss=coral(weight=0.5)", "--config.data.sampler=experiments(count=1)",
    )  # fmt: skip
    assert code == 0, err
    code, out, err = run(python, folder, "-m", "rxrx1_jax.report", "run")
    assert code == 0, err
    code, out, err = run(python, folder, "-m", "rxrx1_jax.main", "--workdir=run", "--mode=embed")
    assert code == 0 and out.strip().endswith("embeddings.parquet"), err

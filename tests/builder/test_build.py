"""`tfds build`, `python -m tfds_builder.rxrx1 build` and `tfds.load` as users give them."""

import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from absl import flags

tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra `build`")

from tfds_builder.rxrx1 import Builder  # noqa: E402
from tfds_builder.rxrx1.__main__ import main  # noqa: E402
from tfds_builder.rxrx1.release.metadata import ReleaseError  # noqa: E402

VERSION = str(Builder.VERSION)
ROOT = Path(__file__).parents[2]
SCREEN = {
    "huvec": 2, "rpe": 0, "hepg2": 0, "u2os": 1, "plates": 1, "treatments": 2,
    "positive_controls": 2,
}  # fmt: skip
SMALL = json.dumps({"name": "small", "size": 32, "screen": SCREEN})
TFDS = [str(Path(sys.executable).with_name("tfds")), "build", "tfds_builder/rxrx1"]
OURS = [sys.executable, "-m", "tfds_builder.rxrx1", "build"]


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess:
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "TF_CPP_MIN_LOG_LEVEL")}
    return subprocess.run(
        command, cwd=ROOT, env=kept | environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.long
def test_both_commands_build_the_same(tmp_path):
    """From a clone, nothing installed; the release is generated on the way; no shell expands ~."""
    theirs = run([*TFDS, f"--config={SMALL}", f"--data_dir={tmp_path / 'theirs'}"])
    assert theirs.returncode == 0, theirs.stderr[-3000:]
    ours = run([*OURS, f"--config={SMALL}", "--data_dir=~/ours"], HOME=str(tmp_path))
    assert ours.returncode == 0, ours.stderr[-3000:]
    for word in ("oneDNN", "cuda", "absl", "AVX", "WARNING", "INFO", "DatasetInfo"):
        assert word not in ours.stdout + ours.stderr
    folders = [tmp_path / name / "rxrx1" / "small" / VERSION for name in ("theirs", "ours")]
    assert f"show {folders[1]} --out=" in ours.stdout.splitlines()[-1]
    first, second = ({p.name: p.read_bytes() for p in f.iterdir()} for f in folders)
    infos = [json.loads(files.pop("dataset_info.json")) for files in (first, second)]
    assert first == second and infos[0]["splits"] == infos[1]["splits"]
    lengths = {s["name"]: sum(map(int, s["shardLengths"])) for s in infos[0]["splits"]}
    downloads = tmp_path / "ours" / "downloads" / "rxrx1_small"
    lines = (downloads / "metadata.csv").read_text().splitlines()
    experiments = [line.split(",")[4] for line in lines[1:]]
    assert lengths == {"HUVEC-01": 10, "HUVEC-02": 10, "U2OS-01": 10}
    assert lengths == {e: experiments.count(e) for e in experiments}
    features = json.loads(first["features.json"])["featuresDict"]["features"]
    assert all(f["pythonClassName"].startswith("tensorflow_datasets.") for f in features.values())
    assert features["image"]["tensor"]["encoding"] == "zlib"
    metadata = json.loads(first["metadata.json"])
    assert metadata["source"] == "synthetic"
    assert metadata["sirnas"] == json.loads((downloads / "truth.json").read_text())["sirnas"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--config=nativ"], "'native'"),
        (['--config={"name": "p", "experiment": []}'], "'experiments'"),
        (["--config=native", "--manual_dir=/nowhere"], "/nowhere"),
    ],
)
def test_tfds_build_ends_in_our_line(tmp_path, arguments, word):
    done = run([*TFDS, f"--data_dir={tmp_path}", *arguments])
    last = done.stderr.splitlines()[-1]
    assert done.returncode and "ReleaseError: " in last and word in last


@pytest.fixture
def command(monkeypatch, capsys):
    """command(arguments) -> (exit status, stderr) of ours, in this process."""
    monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())  # TFDS's parser takes all over

    def run(*arguments: str) -> tuple[int, str]:
        code = main(arguments)
        return code, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--config", "synthetic", "native"]),
        (["--config="], ["--config", "synthetic", "native"]),
        (["--config=nativ"], ["'native'"]),
        (["--config=native", "--nope=1"], ["--nope=1"]),
        (["--config=native", "--file_format=zip"], ["'zip'"]),
        (["--config_idx=9"], ["9"]),
        (['--config={"name": "p", "experiment": ["HUVEC-01"]}'], ["'experiments'"]),
        (['--config={"experiments": ["HUVEC-01"]}'], ["Rxrx1Config.name"]),
        (['--config={"name": "p"'], ["--config", "JSON"]),
        (['--config={"name": "native", "size": 64}'], ["Rxrx1Config.name", "'native'"]),
        (["--config=native", "--manual_dir=/nowhere"], ["/nowhere"]),
        (["--config=native", "--manual_dir", "~nobody_here/x"], ["~nobody_here/x", "home"]),
        (["--config=native", "--manual_dir=s3://a/b"], ["s3://a/b", "gs://"]),
        (["--config=native", "--download_dir=gs://a/b"], ["gs://a/b", "bucket"]),
        (["--config=synthetic", "--download_dir=gs://a/b"], ["gs://a/b", "bucket"]),
        (["--config=native", "--max_examples_per_split=3"], ["max_examples_per_split", "pilot"]),
    ],
)
def test_an_error_is_one_line(tmp_path, command, arguments, words):
    code, err = command("build", f"--data_dir={tmp_path / 'data'}", *arguments)
    assert code == 1 and err.startswith("error: ") and err.count("\n") == 1
    assert all(word in err for word in words)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("arguments", ["nope", "verify", "show x", "show x --out=o --plate=two"])
def test_wrong_usage_is_one_line(command, capsys, arguments):
    with pytest.raises(SystemExit, match="2"):
        command(*arguments.split())
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and "--help" in err


def test_no_home_folder(tiny, tmp_path, command, monkeypatch):
    """As for a user of a container that no file of its names."""

    def nobody(_uid):
        raise KeyError

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", nobody)
    assert command("verify", str(tiny.dataset))[0] == 0
    assert command("show", str(tiny.dataset), f"--out={tmp_path / 'look'}")[0] == 0
    code, err = command("build", "--config=native", "--data_dir=~/data")
    assert code == 1 and "~/data" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rxrx1", ["rxrx1/native", "synthetic is not RxRx1"]),
        (f"rxrx1:{VERSION}", ["rxrx1/native"]),
        ("rxrx1/native", ["49.0 GB", "71.1 GB", "build --config=native", "download_config"]),
        ("rxrx1/monai", ["0.5 GB", "build --config=monai"]),
        ("rxrx1/nativ", ["'native'"]),
        ("rxrx1/timy", ["'tiny'"]),
    ],
)
def test_load_takes_nothing_for_something_else(tiny, tmp_path, name, words):
    """Nor does it download, or write anything, unasked."""
    data_dir = tiny.dataset.parents[2] if "timy" in name else tmp_path
    with pytest.raises(ReleaseError) as error:
        tfds.load(name, data_dir=data_dir)
    assert all(word in str(error.value) for word in words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", ["gs://a/b", "s3://a/b", "~nobody_here/b", "file[1]"])
@pytest.mark.parametrize("command", ["verify {}", "table {}", "show {} --out=x", "show . --out={}"])
def test_a_folder_that_cannot_be_used(command, folder, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("file[1]").touch()
    assert main(command.format(folder).replace(" . ", f" {tiny.dataset} ").split()) == 1
    err = capsys.readouterr().err
    assert folder in err and err.count("\n") == 1 and os.listdir() == ["file[1]"]


ENDS = {  # of a program, and its status: a crash; a child that lives as long as its parent
    "os.abort()": -signal.SIGABRT, "child = subprocess.Popen(['cat'], stdin=-1)": 0,
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_noise_is_left_out_and_last_words_are_kept(end):
    noise = [
        "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
        "I0000 00:00:1795873468.096824   24845 port.cc:153] oneDNN custom operations are on.",
        "E0000 00:00:1795873470.972363   24845 cuda_platform.cc:52] failed call to cuInit",
    ]
    real = ["E0000 00:00:1795873470.972363   24845 env.cc:9] disk failure", "WARNING: mine", "end"]
    program = (
        "import os, subprocess; from quiet import quiet\n"
        f"with quiet(): os.write(2, {chr(10).join(noise + real)!r}.encode()); {end}"
    )
    folder = ROOT / "tfds_builder" / "rxrx1"
    done = run([sys.executable, "-c", program], PYTHONPATH=str(folder))
    assert done.returncode == ENDS[end] and done.stderr.splitlines() == real


def test_requirements_without_jax():
    """They are pyproject.toml's, all of the extra, and cover what the code imports."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = project["optional-dependencies"]["build"]
    lines = (ROOT / "tfds_builder" / "requirements.txt").read_text().splitlines()
    listed = {line for line in lines if not line.startswith("#")}
    assert set(extra) <= listed <= {*extra, *project["dependencies"]}
    names = {re.split(r"[\[>=]", line)[0].lower().replace("_", "-") for line in listed}
    brought = importlib.metadata.packages_distributions()
    imported = {
        top
        for path in (ROOT / "tfds_builder").rglob("*.py")
        for top in re.findall(r"^ *(?:import|from) (\w+)", path.read_text(), re.MULTILINE)
    } & brought.keys() - {"tfds_builder", "rxrx1_jax"}
    assert {"cv2", "deflate", "pyarrow", "tqdm", "tensorflow"} <= imported
    # What TensorFlow and TFDS bring along themselves.
    theirs = {"absl-py", "array-record", "dm-tree", "tensorflow-metadata", "setuptools"}
    for top in imported:
        found = {name.lower().replace("_", "-") for name in brought[top]}
        assert found & (names | theirs), top

"""Modes on a trained run: what they need, what they write, and what of a run is refused."""

import shutil

import pyarrow.parquet as pq
import pytest
from commands import run_command
from finished_runs import change_settings, edited

from rxrx1_jax.training.run import Run

WRITTEN = {
    "evaluate": ["predictions.parquet", "results.json"],
    "predict": ["predictions_all.parquet"],
    "embed": ["embeddings.parquet"],
}


@pytest.fixture(scope="session")
def smoke(once):
    """A finished run of --config=smoke, read only; its last checkpoint is of step 8."""

    def make(folder):
        done = run_command("main", "--config=smoke", "--config.optim.epochs=1",
                           f"--workdir={folder / 'run'}")  # fmt: skip
        assert done.code == 0, done.err

    return once("smoke", make) / "run"


@pytest.fixture
def own(smoke, tmp_path):
    return shutil.copytree(smoke, tmp_path / "runs" / "own")


def main(run, *options, mode="evaluate"):
    """(exit code, its only line of stderr)"""
    done = run_command("main", f"--workdir={run}", f"--mode={mode}", *options)
    if done.code == 0:
        assert not done.err, "what reads like damage"
    else:
        assert done.err.count("\n") == 1 and done.last.startswith("error: "), done.err
    return done.code, done.last


def stamps(run):
    return sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*"))


@pytest.mark.parametrize("mode", WRITTEN)
def test_a_run_is_enough_and_stays_as_it_is(smoke, tmp_path, mode):
    """Also what a training there is writing."""
    run = shutil.copytree(smoke, tmp_path / "run")
    shutil.copytree(run / "checkpoints" / "8", run / "checkpoints" / "9.orbax-checkpoint-tmp")
    before = stamps(run)
    code, last = main(run, f"--out={tmp_path}/new/out", "--config.eval.batch_size=7", mode=mode)
    assert code == 0 and str(tmp_path / "new" / "out") in last
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == WRITTEN[mode]
    assert stamps(run) == before
    if mode == "evaluate":
        tables = [pq.read_table(x / "predictions.parquet") for x in (run, tmp_path / "new" / "out")]
        assert tables[0]["prediction"].equals(tables[1]["prediction"])


@pytest.mark.parametrize(
    "options, said",
    [
        (["--config.data.fold=1"], "data.fold=0"),
        (["--config=demo"], "holds a run with"),
        (["--config.eval.batch_size=0"], "eval.batch_size=0"),
        (["--config.eval.batch_size=4000000000000"], "eval.batch_size"),
        (["--data_dir=gs://bucket/data"], "gs://"),
        (["--out=/dev/null/out"], "--out"),
        (["--workdir=gs://bucket/run"], "gs://"),
        (["--workdir=a\\b", "--config=smoke", "--mode=train"], "backslash"),
    ],
)
def test_what_a_mode_cannot_do_is_told_before_work(smoke, options, said):
    code, last = main(smoke, *options)
    assert code in (1, 2) and said in last, last  # 2: of the command line itself


def test_another_folder_than_the_runs(smoke):
    for folder in (smoke.parent, smoke / "checkpoints"):
        for mode in ("evaluate", "train"):
            code, last = main(folder, mode=mode)
            assert code == 1 and f"expected {smoke}" in last


def test_nothing_is_asked_of_training(own):
    change_settings(
        own, data__sampler="gone.order", optim__loss="gone.loss", optim__batch_size=10**6,
        data__augmentation="gone.blur", optim__name="gone.sgd",
    )  # fmt: skip
    code, last = main(own)
    assert code == 0, last


@pytest.mark.parametrize(
    "file, content, said",
    [
        ("config.json", b"[]", "config.json"),
        ("config.json", b'{"data": {}}', "config.json"),
        ("config.json", b"\xff\0", "config.json"),
        ("config.json", b"[" * 10**5, "config.json"),
        ("checkpoints/8/about", None, "about"),
        ("checkpoints/8/about/metadata", b"[]", "about/metadata"),
        ("checkpoints/8/about/metadata", b"[" * 10**5, "about/metadata"),
        ("checkpoints/8/about/metadata", b'{"vocabulary": 3}', "about/metadata"),
        ("checkpoints/8/_CHECKPOINT_METADATA", b"5", "checkpoints/8"),
        ("checkpoints/8/state", None, "checkpoints/8"),
        ("checkpoints/8/state/_METADATA", None, "checkpoints/8"),
        ("checkpoints/8/state/_METADATA", b"5", "checkpoints/8"),
        ("checkpoints/8/state/array_metadatas/process_0", b"[]", "checkpoints/8"),
        ("checkpoints/8/state/manifest.ocdbt", None, "checkpoints/8"),
        ("checkpoints/8/state/d", None, "checkpoints/8"),
        ("checkpoints/8", None, "no checkpoint"),
    ],
)
def test_a_run_with_parts_missing_or_of_another_form(own, file, content, said):
    path = own / file
    if content is not None:
        path.write_bytes(content)
    else:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    code, last = main(own)
    assert code == 1 and said in last, last


@pytest.mark.parametrize(
    "content", ["[]", "{}", "{", "[" * 10**5, '{"step": "8", "total_steps": 8}', "\0"]
)
def test_results_of_another_form(own, content):
    (own / "results.json").write_text(content)
    code, last = main(own, mode="train")
    assert code == 1 and "results.json" in last
    assert main(own)[0] == 0  # evaluated again


@pytest.mark.parametrize(
    "part, name, said",
    [("settings", "data.fold", "data.fold=4711"), ("fingerprint", "split", "dataset.split=4711"),
     ("fingerprint", "data", "dataset.data=4711")],
)  # fmt: skip
def test_a_checkpoint_of_another_run(own, part, name, said):
    """Its own folder says so, in evaluation and in training."""
    with edited(own / "checkpoints" / "8" / "about" / "metadata") as about:
        about[part][name] = 4711
    code, last = main(own)
    assert code == 1 and said in last and "checkpoints/8" in last
    (own / "results.json").unlink()
    assert main(own, mode="train") == (1, last)


def test_any_name_of_a_folder(smoke, tmp_path):
    """What is a pattern to those who look for files."""
    path = tmp_path / "a [b]*? {c}" / "run"
    done = run_command("main", "--config=smoke", "--config.optim.epochs=1", f"--workdir={path}")
    assert done.code == 0, done.err
    expected, found = (Run.open(run).source for run in (smoke, path))
    assert found == expected
    assert main(path, f"--out={tmp_path}")[0] == 0


def test_a_run_without_a_checkpoint_is_begun_again(tmp_path):
    options = ["--config=smoke", "--config.optim.epochs=1", f"--workdir={tmp_path / 'run'}"]
    done = run_command("main", *options, "--config.model.width=200000")
    assert done.code == 1 and "model.width" in done.last and done.err.count("\n") == 1
    assert run_command("main", *options).code == 0

"""The example of a search with Optuna: two processes, one file of trials."""

import subprocess
import sys

import pytest
from children import ROOT, environment

from rxrx1_jax.training.run_dir import read_results, read_settings

optuna = pytest.importorskip("optuna", reason="needs the extra `dev`")


@pytest.mark.long
def test_two_processes_share_the_trials(tmp_path):
    script, words = ROOT / "examples/search_with_optuna.py", [tmp_path / "found", 4]
    small = "smoke:val_experiments=1,optim.epochs=1,model.width=4"
    started = [
        subprocess.Popen([sys.executable, *map(str, (script, small, *words))], text=True,
                         env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]  # fmt: skip
    ended = [child.communicate(timeout=600) for child in started]
    assert [child.returncode for child in started] == [0, 0], ended
    journal = optuna.storages.journal.JournalFileBackend(str(tmp_path / "found/journal.log"))
    study = optuna.load_study(
        study_name="search", storage=optuna.storages.JournalStorage(journal)
    )
    trials = study.trials
    assert 4 <= len(trials) <= 5 and {t.state for t in trials} == {optuna.trial.TrialState.COMPLETE}
    runs = [tmp_path / "found" / f"trial-{trial.number}" for trial in trials]
    assert len({*runs}) == len(list((tmp_path / "found").glob("trial-*")))
    for trial, run in zip(trials, runs, strict=True):
        found = read_results(run)["other_sets"]["val"]["accuracy"]["site"]["all"]
        assert trial.value == found
        assert read_settings(run).optim.learning_rate == trial.params["learning_rate"]
    assert any(f"trial {study.best_trial.number} of" in out for out, _ in ended)


def test_without_arguments_it_says_its_usage():
    done = subprocess.run([sys.executable, ROOT / "examples/search_with_optuna.py"], check=False,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 1 and "FOLDER TRIALS" in done.stderr

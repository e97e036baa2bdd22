"""The search as a command, with trainings that are made up: its runs, its choice, its page."""

import functools
import json
import re

import numpy as np
import pytest
from commands import run_command
from finished_runs import edited, make_predictions, make_run

from rxrx1_jax import config as config_lib
from rxrx1_jax.data import smoke
from rxrx1_jax.leaderboard import work
from rxrx1_jax.report.comparison import GAIN
from rxrx1_jax.search import page, trials
from rxrx1_jax.search.trials import Draw
from rxrx1_jax.training import run_dir, sweep
from rxrx1_jax.training.predictions import accuracies
from rxrx1_jax.training.workers import DONE, FAILED, Ending, LastWords, Worker

METHODS = """
SPACE = {"optim.learning_rate": (0.01, 1.0, "log"), "optim.nesterov": [False, True]}
TRAINED = {"base": {}, "raw": {"data.normalisation": "none"}}
CORRECTIONS = {"base": ["none", "centroids"]}
GAP, BUDGETS = ["base"], {"raw": "test controls"}
CONTROLS = {"shuffled": ({"data.shuffled_labels": True}, {"base": "chance"})}
SEARCH = {name: SPACE for name in TRAINED}
"""
DRAWS = 4
SCREEN = functools.cache(smoke.screen)  # drawn once
OTHER = "rxrx1_jax.data.smoke.screen(seed={})"


class Trained:
    """In place of training: runs end at once, better if the rate is near 0.1 (raw: 0.01)."""

    def __init__(self):
        self.plans, self.assessed, self.diverges, self.fails = [], [], set(), set()

    def train(self, plan, arguments, worker, log=None):
        name = plan.path.parts[len(self.root.parts)]
        self.plans.append(name if "tuning" in plan.path.parts else plan.path.name)
        if name in self.fails:
            return Ending(FAILED, "no room")
        if name in self.diverges and "tuning" in plan.path.parts:
            run_dir.write_json((plan.path.mkdir(parents=True) or plan.path) / run_dir.DIVERGED, {})
            return Ending(FAILED, "loss is nan")
        config = config_lib.read(arguments[0].removeprefix("--config="))
        given = dict(word.removeprefix("--config.").split("=", 1) for word in arguments
                     if word.startswith("--config."))  # fmt: skip
        config_lib.change(config, given | plan.overrides)
        found = self.right(config, "val")
        changes = {f.replace(".", "__"): value for f, value in config_lib.flat(config).items()}
        make_run(plan.path, {"HUVEC": (self.right(config, "test"), 5)}, **changes)
        with edited(plan.path / "config.json") as saved:
            saved["dataset"] = {"version": "1.0.0"}
        if config.data.val_experiments:
            with edited(plan.path / "results.json") as results:
                accuracy = accuracies(make_predictions({"HUVEC": (found, 5)}))
                results["other_sets"] = {"val": {"accuracy": accuracy}}
        return Ending(DONE)

    @staticmethod
    def right(config, role):
        """Sites of 20 that are right."""
        best = -2 if config.data.normalisation == "none" else -1
        far = abs(np.log10(config.optim.learning_rate) - best)
        return round(15 - 7 * far) + (config.data.fold if role == "test" else 3)


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A function that calls the command; `.trained` has what was trained."""
    (tmp_path / "board.py").write_text(METHODS)
    trained = Trained()
    trained.root = tmp_path / "runs"
    monkeypatch.setattr(smoke, "screen", SCREEN)
    monkeypatch.setattr(sweep, "train_one", trained.train)
    monkeypatch.setattr(
        Worker, "run", lambda self, words, log: trained.assessed.append(words) or (0, LastWords())
    )

    def call(*words, draws=DRAWS, config="smoke:val_experiments=1"):
        return run_command(
            "search", tmp_path / "board.py", f"--draws={draws}", f"--config={config}",
            f"--workdir={trained.root}", "--folds=0,1", "--seeds=0", "--workers=1", *words,
        )  # fmt: skip

    call.trained = trained
    return call


@pytest.fixture
def no_board(monkeypatch):
    """The page of the leaderboard takes seconds, and has tests of its own."""
    monkeypatch.setattr(work.page, "write", lambda methods, found, out, data: ("", out, []))


def settings(path):
    return run_dir.read_settings(path)


def best(folder, method, draws=DRAWS):
    """The number of the draw that is nearest to 0.1, by what its run was given."""
    names = [f"{method}-draw{i}" if i else method for i in range(draws)]
    rates = [settings(next(folder.glob(f"{name}/tuning/**/config.json")).parent) for name in names]
    right = [Trained.right(one, "val") for one in rates]
    return right.index(max(right))


def rows(folder, name):
    found = json.loads((folder / "report" / f"{name}.json").read_text())["rows"]
    return {(row["method"], row.get("draw")): row for row in found}


def test_equal_draws_then_the_leaderboard_of_the_best(made):
    done = made()
    folder, trained = made.trained.root, made.trained
    assert done.code == 0, done.err
    # The draws, each of them once and on validation experiments.
    ends = ("", "-draw1", "-draw2", "-draw3")
    assert trained.plans[: 2 * DRAWS] == [f"{n}{end}" for end in ends for n in ("base", "raw")]
    choice = {name: best(folder, name) for name in ("base", "raw")}
    assert 0 in choice.values() and any(choice.values())  # base's own rate is 0.1
    tuned = settings(folder / f"raw-draw{choice['raw']}" / "tuning" / "batch-0-0")
    assert tuned.data.val_experiments == 1 and tuned.data.normalisation == "none"
    # The ordinary runs: the chosen settings in place of the method's own, and those.
    for fold in (0, 1):
        run = settings(folder / f"raw-draw{choice['raw']}" / f"batch-{fold}-0")
        assert run.data.val_experiments == 0 and run.data.fold == fold
        assert run.optim.learning_rate == tuned.optim.learning_rate
        assert settings(folder / "raw" / f"batch-{fold}-0").optim.learning_rate == 0.1
    assert (folder / "base" / "random_well-1-0" / "results.json").exists()
    assert (folder / "controls/shuffled/base/batch-0-0/results.json").exists()
    assert any("centroids" in words for words in trained.assessed)
    # The tables.
    table = rows(folder, "search")
    for name, draw in choice.items():
        row = table[name, None]
        assert row["chosen"] == (str(draw) if draw else "own") and row["draws"] == str(DRAWS)
        here = folder / (f"{name}-draw{draw}" if draw else name)
        found = {
            "validation: chosen": 5 * Trained.right(settings(here / "tuning/batch-0-0"), "val"),
            "test: chosen": 5 * Trained.right(settings(here / "batch-0-0"), "test") + 2.5,
            "test: own": 5 * Trained.right(settings(folder / name / "batch-0-0"), "test") + 2.5,
        }
        assert {column: row[column] for column in found} == pytest.approx(found)
        gain = found["test: chosen"] - found["test: own"]
        assert row[GAIN] == (pytest.approx(gain) if draw else None)
    every = rows(folder, "draws")
    assert len(every) == 2 * DRAWS
    for (name, draw), row in every.items():
        run = settings(folder / (f"{name}-draw{draw:.0f}" if draw else name) / "tuning/batch-0-0")
        assert row["optim.learning_rate"] == str(run.optim.learning_rate)
        assert row["validation"] == pytest.approx(5 * Trained.right(run, "val"))
    html = (folder / "report" / "index.html").read_text()
    assert 'src="draws.svg"' in html and "leaderboard/index.html" in html
    board = (folder / "report" / "leaderboard" / "leaderboard.md").read_text()
    assert re.search(rf"\| raw-draw{choice['raw']} ", board) and "Baseline: base." in board
    assert (folder / "report" / "search.md").read_text() in done.out
    # Again: nothing is trained. More draws: only those that are new, and what they change.
    before = len(trained.plans)
    assert made().code == 0 and len(trained.plans) == before
    assert made(draws=DRAWS + 2).code == 0
    new = trained.plans[before:]
    assert sorted(new[:4]) == ["base-draw4", "base-draw5", "raw-draw4", "raw-draw5"]
    # Another space would make other draws under the same names.
    file = folder.parent / "board.py"
    file.write_text(METHODS.replace("0.01, 1.0", "0.02, 1.0"))
    done = made()
    assert done.code == 1 and "optim.learning_rate" in done.last and "--workdir" in done.last


def test_what_diverges_is_a_draw_and_what_fails_is_not(made, no_board):
    trained = made.trained
    trained.diverges, trained.fails = {"base", "base-draw1", "base-draw2"}, {"raw-draw1"}
    done = made()
    assert done.code == 1 and "raw-draw1/tuning/batch-0-0: no room" in done.out
    assert not list(trained.root.glob("*/batch-*")) and (trained.root / "report/search.md").exists()
    assert rows(trained.root, "search")["base", None]["draws"] == "4, 3 diverged"
    assert "not done: 1" in done.out
    assert rows(trained.root, "draws")["raw", 1]["not judged"] == "no room"
    asked = len(trained.plans)
    trained.fails.clear()
    done = made()
    assert trained.plans[asked] == "raw-draw1" and "base" not in trained.plans[asked:]
    assert done.code == 0, done.err
    assert rows(trained.root, "search")["base", None]["chosen"] == "3"
    assert rows(trained.root, "draws")["base", 1]["not judged"] == trials.DIVERGED


def test_tasks_are_the_draws_then_the_runs_of_the_leaderboard(made):
    listed = made("--tasks")
    draws, board = 2 * DRAWS, 2 * (2 * 2 + 2 + 2)  # of each fold: methods twice, gap, control
    assert (listed.code, listed.out) == (0, f"{draws + board}\n") and not made.trained.plans
    assert made("--task=1").code == 0 and made.trained.plans == ["raw"]
    done = made(f"--task={draws}")  # finds the other draws undone
    assert done.code == 0 and len(made.trained.plans) == draws + 1
    assert made.trained.plans[-1] == "batch-0-0" and done.out.endswith("batch-0-0: complete\n")
    last = made(f"--task={draws + board - 1}")
    assert last.code == 0 and "nothing to do" in last.out  # base has its own settings
    assert not (made.trained.root / "report").exists()
    assert made("--collect").code == 1 and len(made.trained.plans) == draws + 1
    assert "not started" in (made.trained.root / "report/leaderboard/leaderboard.md").read_text()
    beyond = made(f"--task={draws + board}")
    assert beyond.code == 1 and f"0 to {draws + board - 1}" in beyond.last


def test_worlds_that_are_not_scored_choose(made, no_board):
    worlds = [OTHER.format(1), OTHER.format(2)]
    done = made(f"--tuning_worlds={','.join(worlds)}", config="smoke")
    assert done.code == 0, done.err
    folder = made.trained.root
    for world in worlds:
        run = settings(folder / "raw-draw1" / "tuning" / world / "batch-0-0")
        assert (run.data.name, run.data.val_experiments, run.data.fold) == (world, 0, 0)
    row = rows(folder, "draws")["raw", 1]
    assert row["validation"] == pytest.approx(5 * Trained.right(run, "test"))
    assert row["runs"] == "0 1" and all(world in done.out for world in worlds)
    scored = settings(folder / "base" / "batch-0-0").data.name
    assert scored == config_lib.read("smoke").data.name
    assert not (folder / "base" / worlds[0] / "batch-0-0").exists()


@pytest.mark.parametrize(
    ("words", "config", "code", "said"),
    [
        (["--draws=0"], "smoke:val_experiments=1", 2, "--draws.*'0'.* 1 or more"),
        ([], "smoke", 1, "data.val_experiments=1 .*--tuning_worlds"),
        (["--folds=0,1,2"], "smoke:val_experiments=1", 1, "fold 2 .*tests .*-0.*--folds"),
        (["--tuning_worlds=rxrx1_jax.data.smoke.screen()"], "smoke", 1, "is scored"),
        (["--tuning_worlds=rxrx1_jax.data.smoke.screen(seed=0)"], "smoke", 1, "same images"),
        (["--tuning_worlds="], "smoke", 1, "--tuning_worlds=.*NAME,NAME"),
        (["--tuning_worlds=rxrx1_jax.data.smoke.screen(24)"], "smoke", 1, "tuning_w.*24, 24"),
        (["--folds=3"], "smoke:val_experiments=1", 1, "--folds has 3"),
        (["--task=99"], "smoke:val_experiments=1", 1, "--task=99"),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_told_before_work(made, words, config, code, said):
    done = made(*words, config=config)
    assert done.code == code and re.search(said, done.last), done.last
    assert done.err.count("\n") == 1 and not made.trained.plans and not made.trained.root.exists()


def test_a_draw_that_cannot_be_trained_is_told_before_work(made, tmp_path):
    file = tmp_path / "board.py"
    file.write_text(METHODS.replace('"optim.nesterov": [False, True]', '"optim.momentum": [2.0]'))
    done = made()
    assert done.code == 1 and re.search("base-draw1.*optim.momentum=2.0", done.last)
    file.write_text(METHODS.replace("optim.nesterov", "optim.nesterof"))
    done = made()
    assert done.code == 1 and "optim.nesterov" in done.last and not made.trained.plans


def test_the_best_so_far():
    values = [np.nan, 0.2, 0.1, 0.4, np.nan]
    draws = {"a": [Draw(i, {}, (), value, "") for i, value in enumerate(values)]}
    np.testing.assert_allclose(page.best_so_far(draws["a"]), [np.nan, 20, 20, 40, 40])
    (panel, *others) = page.figure(draws).axes
    assert panel.get_title(loc="left") == "a" and not any(axis.get_visible() for axis in others)
    dots, line, _ = panel.lines
    np.testing.assert_allclose(dots.get_ydata(), 100 * np.array(values))
    np.testing.assert_allclose(line.get_xydata()[1:, 1], [20, 20, 40, 40])
    assert trials.choose(draws) == {"a": 3}
    assert trials.choose({"a": [draws["a"][0]] * 2}) == {"a": 0}  # all diverged

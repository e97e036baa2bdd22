"""The methods file: what it holds, its faults, and the runs that it asks for."""

from pathlib import Path

import pytest

from configs import demo
from rxrx1_jax import config as config_lib
from rxrx1_jax.data import records
from rxrx1_jax.leaderboard import jobs as jobs_lib
from rxrx1_jax.leaderboard import methods as methods_lib
from rxrx1_jax.methods.catalogue import METHODS
from rxrx1_jax.training import sweep

ROOT = Path(__file__).parents[2]


def load(tmp_path, text):
    path = tmp_path / "methods.py"
    path.write_text(text)
    return methods_lib.load(str(path), demo.get_config())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("TRAINED = {}", "TRAINED"),
        ("import sys\nsys.exit(3)", "methods.py:2: SystemExit: 3"),
        ("TRAINED = {'a': {'data.normalization': 'none'}}", r"\['a'\]: .*data.normalisation"),
        ("TRAINED = {'a': {'optim.epochs': 'x'}}", "optim.epochs='x'"),
        ("TRAINED = {'a': {'data.fold': 1}}", "data.fold: .*--folds"),
        ("TRAINED = {'a/b': {}}", "'a/b'"),
        ("TRAINED = {'controls': {}}", "'controls'"),
        ("TRAINED = {'a_': {}}; GAP = ['b']", "GAP has 'b': expected .*a_"),
        ("TRAINED = {'a': {}}; PROTOCOLS = ['batch']", "PROTOCOLS has 'batch': .*random_well"),
        ("TRAINED = {'a': {}}; CORRECTIONS = {'a': ['adabn']}", "'adabn': expected .*adabn_"),
        ("TRAINED = {'a': {}}; BUDGETS = {'a': 'controls'}", "expected test controls"),
        ("TRAINED = {'a': {}}; CONTROLS = {'c': ({'x.y': 1}, {})}", r"CONTROLS\['c'\]: x.y"),
        ("TRAINED = {'a': {}}; CONTROLS = {'c': ({}, {'b': 'gap'})}", "has 'b'.* a$"),
        ("TRAINED = {'a': {}}; CONTROLS = {'c': ({}, {'a': 'nogap'})}", "'nogap': .*no gap or gap"),
    ],
)
def test_faults_of_the_methods_file_are_named(tmp_path, text, said):
    with pytest.raises((methods_lib.MethodsError, config_lib.ConfigError), match=said) as error:
        load(tmp_path, text)
    assert "\n" not in str(error.value)


def test_a_value_that_cannot_be_is_told_before_work(tmp_path):
    """With its field; the other methods and seeds are not held up."""
    methods = load(tmp_path, "TRAINED = {'a': {}, 'b': {'optim.momentum': 2}}")
    config = config_lib.read("smoke:data.dir=nowhere")
    plan = sweep.Planner(config, records.open_images("", config.data.name))
    for overrides, said in ((methods.trained["b"], "momentum=2.0"), ({"train.seed": -1}, "seed=-1"),
                            (methods.trained["a"], "")):  # fmt: skip
        obstacle = plan(tmp_path, overrides).obstacle
        assert said in obstacle and bool(said) == bool(obstacle)


@pytest.mark.parametrize(("name", "runs"), [("screening", 7), ("dose", 2)])
def test_the_files_of_the_tiers(name, runs):
    methods = methods_lib.load(name, demo.get_config())
    jobs = jobs_lib.make_jobs(methods, ["rxrx1/a", "rxrx1/b"], [0], [0], "rxrx1/a")
    assert len(jobs) == 2 * runs
    gap = [job for job in jobs if job.protocol != "batch"]
    assert {(job.trained, job.protocol) for job in gap} == {("baseline", "random_well")}


def test_the_file_of_the_project():
    methods = methods_lib.load(str(ROOT / "configs" / "leaderboard.py"), demo.get_config())
    assert methods.baseline == "baseline" and not methods.trained["baseline"]
    assert set(methods.corrections["baseline"]) == METHODS.keys() - {"none"}
    for overrides in methods.trained.values():
        for field, text in overrides.items():
            if field in config_lib.POINTS and field != "data.normalisation":
                config_lib.load_all(field, text)  # refuses what is no plug-in of the project
    jobs = jobs_lib.make_jobs(methods, ["rxrx1/synthetic"], [0, 1, 2], [0, 1])
    assert len(jobs) == len({job.path(Path()) for job in jobs})
    batch = [job for job in jobs if job.protocol == "batch" and not job.control]
    assert len(batch) == 6 * len(methods.trained)
    first = [job.trained for job in jobs[: len(methods.trained)]]
    assert first == list(methods.trained)  # every method before a second seed or fold of any
    worlds = {job.control: job.unit.world for job in jobs}
    assert worlds[""] == "rxrx1/synthetic" and worlds["gain_only"] == "rxrx1/gain_only"
    assert {job.assessed == () for job in jobs if job.control or job.protocol != "batch"} == {True}

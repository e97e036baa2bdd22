"""The command line of training: help, what is missing, what is wrong; each fault is a line."""

import pytest
from commands import run_command

from rxrx1_jax import main


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_modes_fields_and_an_example(flag):
    code, _, said, _ = run_command("main", flag)
    assert code == 0
    assert "--config=demo" in said and "--workdir=runs/mine" in said
    for name in (*main.MODES, "optim.learning_rate=0.1", "resnet18", "train.parent"):
        assert name in said


def test_help_has_the_values_of_the_config_and_no_argument_the_usage():
    told = run_command("main", "--config=demo:fold=2", "--help")
    assert told.code == 0 and "data.fold=2" in told.out and "model.name=resnet_demo" in told.out
    told = run_command("main")
    assert told.code and "usage:" in told.out and "--config=demo" in told.out


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "--workdir=runs/mine"),
        (["--config=demo"], "--workdir"),
        (["--workdir=nowhere"], "--config"),
        (["--workdir=nowhere", "--mode=embed"], "config.json"),
        (["--config=demo", "--config.optim.lr=1"], "optim.learning_rate"),
        (["--config", "demo", "--config.optim.lr", "1"], "optim.learning_rate"),
        (["--config=demo", "--config.optim.epochs"], "=VALUE"),
        (["--config=demo:fold=two"], "data.fold='two'"),
        (["--config=configs/nope.py"], "configs/nope.py"),
        (["--config=nope"], "demo"),
        (["--config=demo", "--mode=test"], "evaluate"),
        (["--config=demo", "--learning_rate=1"], "--learning_rate=1"),
        (["--conf=demo"], "--conf=demo"),
        (["demo"], "demo"),
        (["--config=demo", "--config.model.name=resnet7"], "resnet18"),
        (["--config=demo", "--config.data.dir=nowhere"], "rxrx1 build"),
    ],
)  # fmt: skip
def test_errors_are_one_line(tmp_path, monkeypatch, arguments, said):
    if "--workdir=nowhere" not in arguments and len(arguments) > 0 and said != "--workdir":
        arguments = [*arguments, f"--workdir={tmp_path}/run"]
    code, message, _, err = run_command("main", *arguments)
    assert message.startswith("error: ") and err.count("\n") == 1 and said in message
    assert code == (2 if "--help" in message else 1)  # 2: the command line itself is wrong
    assert not (tmp_path / "run").exists()


def test_what_a_child_is_told():
    parser = main.Parser("table1", "")
    words = ["--config=demo:seed=1", "--config.data.dir=/a b"]
    words += ["--config.optim.loss", "irm(weight=2)"]
    options = parser.parse([*words, "--workdir=~/runs"])
    assert options.workdir.is_absolute() and options.workdir.name == "runs"
    told = ["--config=demo:seed=1", "--config.data.dir=/a b", "--config.optim.loss=irm(weight=2)"]
    assert main.arguments_of_config(options) == told
    config = main.read_config(options)
    assert (config.data.seed, config.data.dir, config.optim.loss) == (1, "/a b", "irm(weight=2)")

"""Settings: defaults, what a command line and a config file may say, plug-ins, upgrades."""

import importlib
import json
import pwd
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from rxrx1_jax import config as config_lib
from rxrx1_jax.config import ConfigError

SHIPPED = ("batch_split", "demo", "gpu_screen", "random_split", "wilds")


def make(**changes) -> ConfigDict:
    config = config_lib.default()
    config_lib.change(config, {name.replace("__", "."): value for name, value in changes.items()})
    return config


def refusal(function, *arguments) -> str:
    """The message of the ConfigError that the call raises: one line."""
    with pytest.raises(ConfigError) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_needs_no_jax():
    code = (
        "import sys; from rxrx1_jax import config\n"
        "for name in ('demo', 'wilds:fold=0'): config.check(config.read(name), 8)\n"
        "try: config.check(config.complete({'optim': {'loss': 'nope'}}))\n"
        "except ValueError: print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"jax", "tensorflow", "flax"} & set(done.stdout.split()) and done.stdout


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_configs_are_valid(name):
    config_lib.check(config_lib.read(name), 8)
    one = config_lib.read(f"{name}:seed=1,optim.epochs=3")
    assert (one.data.seed, one.optim.epochs) == (1, 3)
    assert one.model == importlib.import_module(f"configs.{name}").get_config().model


@pytest.mark.parametrize(
    "field, text, value",
    [
        ("data.augment", "false", False), ("data.augment", "True", True),
        ("data.shuffled_labels", "1", True), ("train.bn_sync", "no", False),
        ("optim.epochs", "3", 3), ("data.seed", "7", 7),
        ("optim.learning_rate", "1", 1.0), ("optim.weight_decay", "1e-5", 1e-5),
        ("data.augmentation", "None", ""), ("train.parent", "", ""),
        ("data.augmentation", "cutmix(alpha=1.0), mixup", "cutmix(alpha=1.0), mixup"),
        ("optim.loss", "my.loss(names=['a=1', \"b,c\"])", "my.loss(names=['a=1', \"b,c\"])"),
        ("data.dir", "/a b/=c", "/a b/=c"), ("data.dir", "1", str(Path("1").absolute())),
        ("data.dir", "~/a[1]", str(Path.home() / "a[1]")), ("train.parent", "~", str(Path.home())),
        ("data.name", "true", "true"), ("data.augment", "no", False),
        ("train.profile", "(10, 15)", (10, 15)), ("train.profile", "1,2", (1, 2)),
    ],
)  # fmt: skip
def test_text_of_a_command_line_becomes_a_value_of_the_fields_type(field, text, value):
    config = config_lib.default()
    config_lib.change(config, {field: text})
    found = config_lib.flat(config)[field]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "field, given, said",
    [
        ("optim.lr", "1", "optim.learning_rate"), ("model.nam", "x", "model.name"),
        ("fold", "1", "data.fold"), ("optim.epoch", "1", "optim.epochs"), ("", "1", "data.dir"),
        ("optim.epochs", "many", "whole number"), ("optim.epochs", "1.5", "whole number"),
        ("optim.epochs", 1.5, "whole number"), ("optim.epochs", True, "whole number"),
        ("optim.epochs", None, "whole number"), ("optim.clip_norm", "None", "number"),
        ("data.augment", "maybe", "true or false"), ("data.augment", 1, "true or false"),
        ("model.name", None, "text"), ("model.name", 18, "text"),
        ("optim.learning_rate", [0.1], "number"), ("optim.epochs", "1e2", "100"),
        ("optim.clip_norm", 10**400, "too large"), ("data.name", "a\nb", "one line"),
        ("data.dir", "gs://b/d", "mount"), ("data.dir", "", "path"),
        ("train.parent", "s3://b", "mount"), ("train.profile", "3", "(10, 15)"),
        ("train.profile", "10-15", "(10, 15)"), ("train.profile", (1, 2.5), "(10, 15)"),
    ],
)  # fmt: skip
def test_a_wrong_key_or_type_is_a_line_with_what_is_valid(field, given, said):
    message = refusal(config_lib.change, config_lib.default(), {field: given})
    assert field in message and said in message


@pytest.mark.parametrize(
    "field, value, said",
    [
        ("data.protocol", "by_plate", "random_site"), ("data.normalisation", "zscore", "none"),
        ("model.name", "resnet_50", "resnet50"), ("model.dtype", "float16", "bfloat16"),
        ("train.parallelism", "tmap", "pmap"), ("optim.loss", "corall", "coral"),
        ("optim.batch_size", 257, "8 devices"), ("optim.accumulation", 64, "64 micro-batches"),
        ("optim.epochs", 0, "1"), ("optim.learning_rate", float("nan"), "0"),
        ("optim.learning_rate", float("inf"), "0"), ("optim.momentum", 1.0, "[0, 1)"),
        ("optim.clip_norm", -1.0, "0"), ("data.fold", -1, "0"), ("eval.batch_size", 12, "8"),
        ("train.bn_sync", False, "pmap"), ("data.crop", -1, "0"), ("train.steps_per_call", -1, "0"),
        ("data.seed", -1, "0"), ("train.seed", 2**32, str(2**32)), ("data.seed", 2**63, str(2**32)),
        ("optim.epochs", 10**9, "100001"), ("train.keep", 2**31, str(2**31)),
        ("data.threads", 10**8, "1025"), ("eval.batch_size", 2**20, "65537"),
        ("data.cache", "tape", "device"), ("train.profile", (5, 4), "(0, 0)"),
    ],
)  # fmt: skip
def test_impossible_values_are_refused_with_the_valid_ones(field, value, said):
    message = refusal(config_lib.check, make(**{field: value}), 8)
    assert field in message and said in message


def test_what_a_user_sets_in_python_is_checked():
    config = config_lib.default()
    config.optim.lr = 0.1
    assert "optim.learning_rate" in refusal(config_lib.check, config)
    config = config_lib.default()
    config.optim.epochs, config.optim.learning_rate = np.int64(3), 1
    config_lib.check(config)
    config.optim = 3
    assert "optim=3" in refusal(config_lib.check, config)


@pytest.mark.parametrize(
    "field, value, said",
    [
        ("optim.batch_size", "32", "whole number"), ("data.crop", "x", "whole number"),
        ("optim.epochs", 32.0, "whole number"), ("data.normalisation", None, "text"),
        ("data.augment", "no", "true or false"), ("optim.momentum", "0.9", "number"),
        ("train.profile", "(1, 2)", "(10, 15)"),
        ("optim.momentum", float("nan"), "[0, 1)"), ("data.crop", np.ones(2), "whole number"),
    ],
)
def test_what_python_sets_is_of_the_type_of_its_field(field, value, said):
    """Text is no number there, nor in a JSON file."""
    section, _, name = field.partition(".")
    message = refusal(config_lib.check, {section: {name: value}})
    assert message.startswith(field) and said in message


def test_losses_of_a_whole_batch_are_refused_under_pmap():
    config = make(optim__loss="coral", train__parallelism="pmap")
    config_lib.check(config, 1)
    assert "optim.loss" in refusal(config_lib.check, config, 2)


def test_arguments_of_a_config():
    text = "fold=2,cell_type=HUVEC,sampler=experiments(count=1),augmentation=a.b(c=[1,2],d=3)"
    data = config_lib.parse(text, config_lib.default()).data
    assert (data.fold, data.cell_type, data.sampler) == (2, "HUVEC", "experiments(count=1)")
    assert data.augmentation == "a.b(c=[1,2],d=3)"
    assert config_lib.parse(None, make(data__fold=1)).data.fold == 1
    for text, said in (("fold=two", "data.fold"), ("folds=1", "data.fold"), ("fold", "fold=0")):
        assert said in refusal(config_lib.parse, text, config_lib.default())


def test_a_config_file_of_the_users_own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        "from rxrx1_jax import config\n"
        "def get_config(arg=None):\n"
        "    c = config.read('demo')\n"
        "    c.optim.learning_rate = 1\n"
        "    return config.parse(arg, c)\n"
    )
    config = config_lib.read(f"{path}:fold=1")
    assert (config.model.name, config.data.fold) == ("resnet_demo", 1)
    assert config.optim.learning_rate == 1.0
    # A plain dictionary does, too; what it lacks has its default.
    path.write_text("def get_config():\n    return {'optim': {'epochs': 3}}\n")
    assert config_lib.read(str(path)) == make(optim__epochs=3)


@pytest.mark.parametrize(
    "content, said",
    [
        ("x = 1", "get_config"), ("def get_config(): pass", "None"), ("def get_config(:", "line 1"),
        ("import nothing_of_that_name", "own.py:1: ModuleNotFoundError"),
        ("def get_config():\n    return {'optim': {'lr': 1}}", "optim.learning_rate"),
        ("def get_config():\n    return {'optim': 1}", "optim=1"),
        ("def get_config():\n    raise OSError('a\\nb')", "own.py:2: OSError: a"),
        ("import sys\nsys.exit(3)", "own.py:2: SystemExit: 3"),
    ],
)
def test_a_config_file_at_fault_is_a_line(tmp_path, content, said):
    path = tmp_path / "own.py"
    path.write_text(content + "\n")
    message = refusal(config_lib.read, str(path))
    assert said in message and "own.py" in message


@pytest.mark.parametrize(
    "given, said",
    [
        ("~/a [1]", "/home/me/a [1]"), ("a/~", "a/~"), ("a:b/c", "a:b/c"),
        ("~root/a", f"{pwd.getpwnam('root').pw_dir}/a"),
        (Path("~"), "/home/me"), ("gs://b/d", "mount"), (Path("s3://b/d"), "mount"),
        ("http://h/d", "URL"), ("file:///d", "URL"), ("", "path"), ("a\0b", "path"),
        ("~nobody-of-that-name/a", "~nobody-of-that-name"),
    ],
)  # fmt: skip
def test_a_path_is_expanded_or_refused(monkeypatch, given, said):
    monkeypatch.setenv("HOME", "/home/me")
    try:
        assert config_lib.user_path(given) == Path(said)
    except config_lib.PathError as error:
        assert said in str(error) and str(given) in str(error) or "\0" in given


def test_a_config_file_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("dem", "configs/demo.py", "leaderboard"):
        message = refusal(config_lib.read, name)
        assert name in message and "demo" in message
    assert "URL" in refusal(config_lib.read, "gs://b/own.py:fold=1")
    assert config_lib.find_file("leaderboard", "--methods", "TRAINED = ").is_file()


@pytest.mark.parametrize(
    "content, said",
    [
        ("[]", "JSON object"), ("{", "line 1"), ("{}", "section"),
        (lambda c: c["made_with"].update(settings=99), "9.9"),
        (lambda c: c["optim"].update(betas=1), "optim.betas"),
        (lambda c: c.update(sweep={"size": 1}), "sweep.size"),
        (lambda c: c.update(made_with=1), "JSON object"), (lambda c: c.pop("optim"), "optim"),
        (lambda c: c["optim"].update(epochs="3"), "optim.epochs"),
        (lambda c: c.update(optim=[1]), "optim"),
    ],
)
def test_a_saved_config_is_a_config(tmp_path, content, said):
    saved = config_lib.read("demo:fold=1").to_dict() | {
        "dataset": {}, "made_with": {"settings": 2, "rxrx1_jax": "9.9"},
    }  # fmt: skip
    path = tmp_path / "a:b" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(saved))
    assert config_lib.read(str(path)) == config_lib.read("demo:fold=1")
    other = path.rename(tmp_path / "config.json")
    assert config_lib.read(f"{other}:optim.epochs=3").optim.epochs == 3
    assert f"--config={other}" in refusal(config_lib.read, str(tmp_path))  # its folder
    if not isinstance(content, str):
        content(saved)
        content = json.dumps(saved)
    path.write_text(content)
    message = refusal(config_lib.read, str(path))
    assert said in message and str(path) in message


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """Makes `own_plug_ins` importable; returns the function that writes it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_plug_ins", raising=False)
    return (tmp_path / "own_plug_ins.py").write_text


@pytest.mark.parametrize("field", sorted(config_lib.POINTS))
def test_every_listed_factory_loads_with_its_defaults(field):
    for name in config_lib.FIELDS[field].valid:
        assert config_lib.load(field, name)


def test_arguments_reach_the_factory(own_module):
    own_module("def made(*args, **kwargs):\n    return args, kwargs\n")
    text = "own_plug_ins.made(1, [2.5, 'a'], b=-3, c=None)"
    assert config_lib.load("optim.loss", text) == ((1, [2.5, "a"]), {"b": -3, "c": None})
    found = config_lib.load_all("data.augmentation", "own_plug_ins.made, own_plug_ins.made(1)")
    assert found == [((), {}), ((1,), {})]
    assert config_lib.load_all("data.augmentation", "") == []


@pytest.mark.parametrize(
    "text, said",
    [
        ("corall", "coral"), ("coral(wait=1)", "weight: float = 1.0"), ("coral(weight=-1)", "-1"),
        ("coral(weight=open('x'))", "name"), ("coral(", "name"), ("coral, irm", "2"), ("", "0"),
        ("1] + [2", "name"), ("no_such_module.loss", "no_such_module"),
        ("math.no_such_loss", "no_such_loss"), ("(lambda: 1)()", "name"),
        ("own_plug_ins.bad", "KeyError: 'nothing'"), ("math.pi", "float"),
    ],
)  # fmt: skip
def test_what_is_no_plug_in_is_refused_by_a_line(own_module, text, said):
    own_module("def bad():\n    return {}['nothing']\n")
    message = refusal(config_lib.load, "optim.loss", text)
    assert message.startswith("optim.loss=") and said in message


def test_a_saved_run_that_lacks_a_field_means_what_was_done_before_it():
    saved = config_lib.read("demo").to_dict() | {"dataset": {"version": "1.1.0"}}
    for field in ("schedule", "clip_norm"):
        del saved["optim"][field]
    assert config_lib.upgrade(saved) == config_lib.read("demo")

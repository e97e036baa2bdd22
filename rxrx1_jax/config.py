"""The settings of a run (`FIELDS`): read, changed, checked, and the plug-ins that they name.

A plug-in is a function and its arguments, ours or anybody's (docs/extend.md):

    optim.loss = "coral(weight=0.5)"            a factory in rxrx1_jax.model.losses
    optim.loss = "my_methods.focal(gamma=2.0)"  one in any module that Python can import

Needs no JAX until a plug-in is loaded. `python -m rxrx1_jax.main --help` lists the fields.
"""

import ast
import contextlib
import difflib
import importlib
import inspect
import json
import math
import numbers
import os
import re
import runpy
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rxrx1_jax.fields import FIELDS, PATHS, POINTS, VERSION, ConfigError, PathError
from rxrx1_jax.fields import FREE as FREE

KINDS = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text",
    tuple: "two whole numbers, as (10, 15)",
}  # fmt: skip
WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def user_path(given: str | os.PathLike) -> Path:
    """A path as a user gives it: `~` and `~user` are expanded here and nowhere else.

    Every option of a command that is a path has this type; functions call it first.

    Raises PathError: a URL, an empty text, a home that is not known.
    """
    text = os.fspath(given)
    if re.match(r"[a-zA-Z][\w+.-]*:/", text):  # Path has made one slash of two
        raise PathError(f"{text}: a URL; expected a path here: mount the bucket or copy the files")
    if not text or "\0" in text:
        raise PathError(f"{text!r}: expected a path")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        user = text.partition("/")[0]
        raise PathError(f"{text}: no home directory of {user}; expected a path from /") from None


def default() -> ConfigDict:
    """Every setting, with the paper's task on the real release as defaults."""
    sections: dict[str, dict[str, Any]] = {}
    for field, about in FIELDS.items():
        section, name = field.split(".")
        sections.setdefault(section, {})[name] = _value(field, about.default)
    return ConfigDict(sections, type_safe=False)  # `check` finds all faults and says what is valid


def parse(arg: str | None, config: ConfigDict) -> ConfigDict:
    """Applies a config file's argument: `fold=0,cell_type=HUVEC` (of `data`), `optim.epochs=3`."""
    for item in filter(None, re.split(r",(?![^([]*[)\]])", arg or "")):  # not in brackets
        field, equals, text = item.partition("=")
        if not equals:
            raise ConfigError(f"config argument {item!r}: expected field=value, as in fold=0")
        change(config, {field if "." in field else f"data.{field}": text})
    return config


def change(config: ConfigDict, values: Mapping[str, Any]) -> None:
    """Sets fields to values, or to what the text of a command line says. Raises ConfigError."""
    for field, value in values.items():
        if field not in FIELDS:
            raise ConfigError(f"{field}: no such field; expected {nearest(field, FIELDS)}")
        section, _, name = field.partition(".")
        config[section][name] = _value(field, value, as_text=True)


def read(text: str) -> ConfigDict:
    """The config of a file and its argument: "demo:fold=1", "my/own.py", "RUN/config.json".

    Raises ConfigError.
    """
    whole = user_path(text).is_file()  # a folder's name may have a colon, too
    name, colon, arg = (text, "", "") if whole else text.partition(":")
    path = find_file(name)
    try:
        if path.suffix == ".json":
            return parse(arg, upgrade(json.loads(path.read_text("utf-8"))))
        made = runpy.run_path(str(path))["get_config"](*([arg] if colon else []))
        if not isinstance(made, Mapping | ConfigDict):
            raise ConfigError(f"get_config() returned {made!r}; expected a ConfigDict")
        return complete(made)
    except ConfigError as error:
        raise ConfigError(f"--config={text}: {error}") from error
    except (Exception, SystemExit) as error:
        raise fault_of(path, error) from error


def fault_of(path: Path, error: BaseException) -> ConfigError:
    """What to say of an error of the program in a file, anybody's."""
    trace = traceback.extract_tb(error.__traceback__)
    lines = [f":{frame.lineno}" for frame in trace if frame.filename == str(path)]
    return ConfigError(f"{path}{''.join(lines[-1:])}: {described(error)}")


def described(error: BaseException) -> str:
    """An error of anybody's program as one line, with its kind where its text may be a bare key."""
    text = next(iter(str(error).strip().splitlines()), "")
    told = text and isinstance(error, TypeError | ValueError)
    return text if told else f"{type(error).__name__}: {text}"


def find_file(name: str, flag: str = "--config", has: str = "def get_config") -> Path:
    """A config or methods file: one that ships with us by its bare name, any by its path."""
    parents = Path(__file__).parents  # of a wheel, of a clone
    folder = next(path / "configs" for path in parents if (path / "configs").is_dir())
    ours = [path.stem for path in sorted(folder.glob("*.py")) if has in path.read_text()]
    path = folder / f"{name}.py" if name in ours else user_path(name)
    if path.is_dir():
        file = path / ("config.json" if (path / "config.json").is_file() else "NAME.py")
        raise ConfigError(f"{flag}={name}: a folder; expected a file, as {flag}={file}")
    if not path.is_file():
        near = nearest(Path(name).stem, ours)
        raise ConfigError(f"{flag}={name}: no such file; expected a path, or ours: {near}")
    return path


def upgrade(saved: Mapping[str, Any]) -> ConfigDict:
    """The settings in a run's config.json; a field that it lacks means what was done before it."""
    if not isinstance(saved, Mapping) or not isinstance(saved.get("made_with", {}), Mapping):
        raise ConfigError("expected the JSON object that a run wrote")
    made_with, sections = saved.get("made_with", {}), default().keys()
    settings = {name: part for name, part in saved.items() if name not in ("dataset", "made_with")}
    if lacking := sections - settings.keys():
        raise ConfigError(f"no section {min(lacking)}; expected {', '.join(sections)}")
    unknown = sorted(flat(settings).keys() - FIELDS.keys())
    if made_with.get("settings", 1) not in range(1, VERSION + 1) or unknown:
        raise ConfigError(
            f"a run of a newer version of this program, {made_with.get('rxrx1_jax', 'unnamed')}"
            f"{' with '.join(['', *unknown[:1]])}; use that version (environment.json names it)"
        )
    settings["model"] = {"dtype": "float32", **settings.get("model", {})}  # there was no "auto"
    return complete(settings)


def complete(settings: Mapping[str, Any]) -> ConfigDict:
    """All fields: those given and the defaults of the others. Raises ConfigError."""
    given = flat(settings)
    change(config := default(), dict.fromkeys(given.keys() - FIELDS.keys()))  # refuses them
    for field, value in given.items():
        section, _, name = field.partition(".")
        config[section][name] = _value(field, value)
    return config


def check(settings: Mapping[str, Any], devices: int = 1) -> None:
    """Raises ConfigError for the first impossible setting, with the valid ones."""
    config = complete(settings)
    for field, value in flat(config).items():
        _, _, valid, least, below = FIELDS[field]
        below = 2**31 if isinstance(value, int) and below == math.inf else below
        if isinstance(value, float | int) and not (least <= value < below):
            expected = f"{least} or more" if below == math.inf else f"a value in [{least}, {below})"
            raise ConfigError(f"{field}={value}: expected {expected}")
        if field in POINTS and value not in (*valid, FIELDS[field].default):
            load_all(field, value)
        elif valid and field not in POINTS and value not in valid:
            raise ConfigError(f"{field}={value!r}: expected one of {', '.join(valid)}")
    optim, size, parts = config.optim, config.optim.batch_size, config.optim.accumulation
    pmap, several = config.train.parallelism == "pmap", devices > 1
    profile = config.train.profile
    for what, fault in {
        f"optim.batch_size={size}: expected a multiple of {devices} devices x {parts} micro-batches"
        " (optim.accumulation)": size % (devices * parts),
        f"eval.batch_size={config.eval.batch_size}: expected a multiple of {devices} devices":
            config.eval.batch_size % devices,
        f"optim.loss={optim.loss!r}: expected train.parallelism=jit, it needs the whole batch":
            pmap and several and optim.loss != "cross_entropy",
        f"train.profile={profile}: expected steps, first and last, or (0, 0)":
            profile != (0, 0) and not 1 <= profile[0] <= profile[1],
        "train.bn_sync=False: expected train.parallelism=pmap, as jit takes whole batches":
            several and not pmap and not config.train.bn_sync,
    }.items():  # fmt: skip
        if fault:
            raise ConfigError(what)


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """{"section": {"name": value}} -> {"section.name": value}."""
    for section, fields in settings.items():
        if not isinstance(fields, Mapping | ConfigDict):
            raise ConfigError(f"{section}={fields!r}: expected a section of fields")
    return {f"{s}.{name}": value for s, part in settings.items() for name, value in part.items()}


def load(field: str, text: str) -> Any:
    """The plug-in that a setting of POINTS names. Raises ConfigError."""
    if len(found := load_all(field, text)) != 1:
        raise ConfigError(f"{field}={text!r}: expected one name, found {len(found)}")
    return found[0]


def load_all(field: str, text: str) -> list[Any]:
    """The plug-ins of a setting that may name several, separated by commas, or none (""). Each
    name is of a factory, which takes the arguments (literals) and returns the plug-in: a function
    of the form that its module describes. Raises ConfigError."""
    try:
        tree = ast.parse(f"[{text}]", mode="eval").body
        calls = [_call(node) for node in getattr(tree, "elts", [None])]
    except (AttributeError, SyntaxError, ValueError):
        expected = "expected a name or name(argument=value, ...) with plain values"
        raise ConfigError(f"{field}={text!r}: {expected}") from None
    plug_ins = []
    for name, positional, named in calls:
        factory = _factory(field, name)
        try:
            inspect.signature(factory).bind(*positional, **named)
            plug_ins.append(factory(*positional, **named))
        except Exception as error:  # it is anybody's
            form = name + str(inspect.signature(factory)).partition(" -> ")[0].replace("'", "")
            raise ConfigError(f"{field}={text!r}: {described(error)}; expected {form}") from error
    return plug_ins


def _call(node: ast.expr) -> tuple[str, list[Any], dict[str, Any]]:
    """name(1, b=2) -> ("name", [1], {"b": 2}). Raises ValueError for anything else."""
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    name = ast.unparse(call.func)
    if not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(name)
    named = {keyword.arg or "**": ast.literal_eval(keyword.value) for keyword in call.keywords}
    return name, [ast.literal_eval(value) for value in call.args], named


def _factory(field: str, name: str) -> Callable[..., Any]:
    module, _, attribute = name.rpartition(".")
    if not module and name not in FIELDS[field].valid:
        expected = nearest(name, FIELDS[field].valid)
        raise ConfigError(f"{field}={name!r}: expected {expected}, or your own as module.name")
    try:
        found = getattr(importlib.import_module(module or POINTS[field]), attribute)
        if not callable(found):
            raise AttributeError(f"it is {type(found).__name__}")
        return found
    except (ImportError, AttributeError, SystemExit) as error:
        expected = "expected a function in a module that Python can import from here"
        raise ConfigError(f"{field}={name!r}: {error}; {expected}") from error


def nearest(name: str, valid: Iterable[str]) -> str:
    """The valid names that `name` may mean, by its letters or its initials (lr); else all."""
    initials = {v: "".join(word[:1] for word in v.rpartition(".")[2].split("_")) for v in valid}
    near = [v for v in valid if initials[v] == name.rpartition(".")[2]]
    near += difflib.get_close_matches(name, list(valid), n=3, cutoff=0.6)
    return " or ".join(dict.fromkeys(near)) or f"one of {', '.join(valid)}"


def _value(field: str, given: Any, as_text: bool = False) -> Any:
    """A value of the field's type, a path absolute; `as_text`: text may say it, as on a command
    line. Raises ConfigError."""
    default = FIELDS[field].default
    kind: Any = type(default)
    expected = KINDS[kind]
    text = given if isinstance(given, str) else ""
    value = "" if default == "" and (given is None or text == "None") else given
    if as_text and text and kind is not str:
        with contextlib.suppress(KeyError, SyntaxError, ValueError):
            said = {bool: lambda text: WORDS[text.lower()], tuple: ast.literal_eval}
            value = said.get(kind, kind)(text)
    with contextlib.suppress(OverflowError, ValueError):  # 1e2 is no whole number, but near to one
        expected += f", as {int(float(text))}" if kind is int and "." not in text else ""
    wanted: Any = {int: numbers.Integral, float: numbers.Real, tuple: tuple | list}.get(kind, kind)
    fits = isinstance(value, wanted) and isinstance(value, bool) == (kind is bool)
    if not fits or (kind is tuple and [type(x) for x in value] != [int, int]):
        raise ConfigError(f"{field}={given!r}: expected {expected}")
    try:
        value = kind(value)
        if kind is str and not value.isprintable():
            raise ValueError("expected one line of text")
        return str(user_path(value).absolute()) if field in PATHS and (value or default) else value
    except (OverflowError, ValueError) as error:
        raise ConfigError(f"{field}={given!r}: {error}") from None

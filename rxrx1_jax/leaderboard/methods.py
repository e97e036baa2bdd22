"""What a leaderboard compares: the methods file (configs/leaderboard.py) -> checked settings."""

import difflib
import runpy
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from rxrx1_jax.config import find_file, flat
from rxrx1_jax.methods.catalogue import METHODS, find
from rxrx1_jax.methods.evidence import BUDGETS

SET_BY_COMMAND = ("data.protocol", "data.fold", "train.seed")
EXPECTED = ("no gap", "gap", "chance")
CONTROLS_FOLDER = "controls"


class MethodsError(ValueError):
    """A methods file that cannot be worked with; one line."""


class Control(NamedTuple):
    overrides: dict[str, Any]  # field of the config -> value: what makes it a control
    expected: dict[str, str]  # trained method -> what it must show, one of EXPECTED


class Methods(NamedTuple):
    """The content of a methods file; the first trained method is the baseline."""

    trained: dict[str, dict[str, Any]]  # name -> field of the config -> value
    corrections: dict[str, tuple[str, ...]]  # name -> names for catalogue.find, without "none"
    gap: tuple[str, ...]  # names that are also trained on the random splits
    budgets: dict[str, str]  # name -> one of BUDGETS
    controls: dict[str, Control]

    @property
    def baseline(self) -> str:
        return next(iter(self.trained))


def load(path: str, config: ConfigDict) -> Methods:
    """Reads a methods file and checks it against the fields of `config`.

    The file holds TRAINED, and may hold CORRECTIONS, GAP, BUDGETS and CONTROLS, as
    configs/leaderboard.py explains them.

    Raises MethodsError naming the entry at fault.
    """
    names = runpy.run_path(str(find_file(path, "--methods", "TRAINED = ")))
    trained = names.get("TRAINED")
    if not isinstance(trained, dict) or not trained:
        raise MethodsError(f"{path}: expected TRAINED = {{name: {{field: value}}}}, not empty")
    for name, overrides in trained.items():
        _check_name(path, name)
        _check_overrides(f"{path}: TRAINED[{name!r}]", overrides, config)
    corrections = {name: ("none",) for name in trained} | names.get("CORRECTIONS", {})
    gap, budgets = tuple(names.get("GAP", ())), names.get("BUDGETS", {})
    for part, chosen in (("CORRECTIONS", corrections), ("GAP", gap), ("BUDGETS", budgets)):
        for name in chosen:
            if name not in trained:
                raise MethodsError(f"{path}: {part} has {name!r}: {_expected(name, trained)}")
    for name, chosen in corrections.items():
        for method in chosen:
            try:
                find(method)
            except ValueError as error:
                why = str(error) if "." in method else _expected(method, METHODS)
                raise MethodsError(
                    f"{path}: CORRECTIONS[{name!r}] has {method!r}: {why}"
                ) from error
    for name, budget in budgets.items():
        if budget not in BUDGETS:
            raise MethodsError(
                f"{path}: BUDGETS[{name!r}]={budget!r}: {_expected(budget, BUDGETS)}"
            )
    controls = {}
    for name, (overrides, expected) in names.get("CONTROLS", {}).items():
        _check_name(path, name)
        where = f"{path}: CONTROLS[{name!r}]"
        _check_overrides(where, overrides, config)
        for method, claim in expected.items():
            if method not in trained:
                raise MethodsError(f"{where} has {method!r}: {_expected(method, trained)}")
            if claim not in EXPECTED:
                raise MethodsError(f"{where}[{method!r}]={claim!r}: {_expected(claim, EXPECTED)}")
        controls[name] = Control(dict(overrides), dict(expected))
    return Methods(
        {name: dict(overrides) for name, overrides in trained.items()},
        {name: tuple(m for m in chosen if m != "none") for name, chosen in corrections.items()},
        gap,
        {name: budgets.get(name, BUDGETS[0]) for name in trained},
        controls,
    )


def _check_name(path: str, name: str) -> None:
    plain = name.replace("_", "").replace("-", "").replace(".", "")
    if not (plain.isalnum() and plain.isascii()) or name in (CONTROLS_FOLDER, "report"):
        raise MethodsError(
            f"{path}: method {name!r}: expected letters, digits, '_', '-', '.', for it becomes a "
            f"folder beside {CONTROLS_FOLDER} and report"
        )


def _check_overrides(where: str, overrides: Mapping[str, Any], config: ConfigDict) -> None:
    fields = flat(config.to_dict())
    for field, value in overrides.items():
        if field in SET_BY_COMMAND:
            raise MethodsError(f"{where} sets {field}: the command does; use --folds or --seeds")
        if field not in fields:
            raise MethodsError(f"{where} sets {field}: no such field; {_expected(field, fields)}")
        old = fields[field]
        fits = type(value) is type(old) or (isinstance(old, float) and type(value) is int)
        if not fits:
            raise MethodsError(
                f"{where} sets {field}={value!r}: expected {type(old).__name__}, like {old!r}"
            )


def _expected(name: str, valid: Any) -> str:
    near = difflib.get_close_matches(str(name), list(valid), n=3, cutoff=0.4)
    return f"expected {' or '.join(near or valid)}"

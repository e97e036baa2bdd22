"""What a leaderboard compares: the methods file (configs/leaderboard.py) -> checked settings."""

import runpy
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from rxrx1_jax.config import ConfigError, change, fault_of, find_file, nearest
from rxrx1_jax.methods.catalogue import find
from rxrx1_jax.methods.evidence import BUDGETS

SET_BY_COMMAND = ("data.protocol", "data.fold", "train.seed")
EXPECTED = ("no gap", "gap", "chance")
PROTOCOLS = ("random_site", "random_well")  # that the gap is of, beside batch
CONTROLS_FOLDER = "controls"
LDA12 = "LDA-12"  # a row that every leaderboard has; not trained


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
    search: Mapping[str, Any] = {}  # name -> field -> what rxrx1_jax.search draws it from
    protocols: tuple[str, ...] = PROTOCOLS

    @property
    def baseline(self) -> str:
        return next(iter(self.trained))


def load(path: str, config: ConfigDict) -> Methods:
    """Reads a methods file and checks it against the fields of `config`.

    The file holds TRAINED, and may hold CORRECTIONS, GAP, PROTOCOLS, BUDGETS, CONTROLS and SEARCH,
    as configs/leaderboard.py explains them. `rxrx1_jax.search` checks SEARCH.

    Raises MethodsError naming the entry at fault; ConfigError: the line.
    """
    file = find_file(path, "--methods", "TRAINED = ")
    try:
        names = runpy.run_path(str(file))
    except (Exception, SystemExit) as error:
        raise fault_of(file, error) from error
    trained = names.get("TRAINED")
    if not isinstance(trained, dict) or not trained:
        raise MethodsError(f"{path}: expected TRAINED = {{name: {{field: value}}}}, not empty")
    corrections = {name: ("none",) for name in trained} | names.get("CORRECTIONS", {})
    gap, budgets = tuple(names.get("GAP", ())), names.get("BUDGETS", {})
    protocols = tuple(names.get("PROTOCOLS", PROTOCOLS))
    controls = {n: Control(fields, must) for n, (fields, must) in names.get("CONTROLS", {}).items()}
    of_controls = {name: control.overrides for name, control in controls.items()}
    for part, entries in (("TRAINED", trained), ("CONTROLS", of_controls)):
        for name, overrides in entries.items():
            _check_entry(f"{path}: {part}[{name!r}]", name, overrides, config)
    parts = {"CORRECTIONS": corrections, "GAP": gap, "BUDGETS": budgets}
    named: list[tuple[str, str, Collection[str]]]
    named = [(part, name, trained) for part, chosen in parts.items() for name in chosen]
    named += [("PROTOCOLS", name, PROTOCOLS) for name in protocols]
    named += [(f"BUDGETS[{name!r}]", budget, BUDGETS) for name, budget in budgets.items()]
    for name, (_, expected) in controls.items():
        for method, claim in expected.items():
            named += [(f"CONTROLS[{name!r}]", method, trained)]
            named += [(f"CONTROLS[{name!r}][{method!r}]", claim, EXPECTED)]
    for where, name, valid in named:
        if name not in valid:
            raise MethodsError(f"{path}: {where} has {name!r}: expected {nearest(name, valid)}")
    for name, chosen in corrections.items():
        for method in chosen:
            try:
                find(method)
            except ValueError as error:
                raise MethodsError(f"{path}: CORRECTIONS[{name!r}]: {error}") from error
    return Methods(
        trained,
        {name: tuple(m for m in chosen if m != "none") for name, chosen in corrections.items()},
        gap,
        {name: budgets.get(name, BUDGETS[0]) for name in trained},
        controls,
        names.get("SEARCH", {}),
        protocols,
    )


def _check_entry(where: str, name: str, overrides: Mapping[str, Any], config: ConfigDict) -> None:
    """Raises MethodsError: a name that cannot be a folder, or fields that cannot be set so."""
    plain = name.replace("_", "").replace("-", "").replace(".", "")
    if not (plain.isalnum() and plain.isascii()) or name in (CONTROLS_FOLDER, "report", LDA12):
        raise MethodsError(
            f"{where}: expected letters, digits, '_', '-', '.', for it becomes a folder beside"
            f" {CONTROLS_FOLDER} and report; and another name than {LDA12}"
        )
    for field in SET_BY_COMMAND:
        if field in overrides:
            raise MethodsError(f"{where} sets {field}: the command does; use --folds or --seeds")
    try:
        change(config.copy_and_resolve_references(), overrides)
    except ConfigError as error:
        raise MethodsError(f"{where}: {error}") from error

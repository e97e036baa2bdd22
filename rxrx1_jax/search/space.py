"""The settings that a search draws: SEARCH of a methods file -> the draws of each method.

    SEARCH = {"baseline": {"optim.learning_rate": (0.02, 0.8, "log"), "optim.epochs": [20, 40]}}

A list has choices. A range (low, high) is drawn evenly, (low, high, "log") evenly in its logarithm.
A draw is a rank of a hash of method, field and number: no generator, no state, the same anywhere.
Draw 0 is the method's own settings.
"""

from numbers import Real
from typing import Any

from ml_collections import ConfigDict

from rxrx1_jax.config import FIELDS, ConfigError, change, nearest
from rxrx1_jax.data.splits import SETTINGS, rank
from rxrx1_jax.leaderboard.methods import SET_BY_COMMAND, Methods, MethodsError

# What a draw must not set: a choice between them would be one of data or luck.
FIXED = {*SET_BY_COMMAND, "data.name", "data.dir", *(f"data.{name}" for name in SETTINGS)}
DIGITS = 4  # of a number that is drawn
RANGE = 'a list of choices, (low, high) or (low, high, "log")'


def name_of(method: str, draw: int) -> str:
    """What a method is called with the settings of a draw."""
    return f"{method}-draw{draw}" if draw else method


def drawn(methods: Methods, method: str, draw: int) -> dict[str, Any]:
    """{field: value} of a draw, for the fields of the method's space; of draw 0 nothing is."""
    space = methods.search[method] if draw else {}
    whole = {field: isinstance(FIELDS[field].default, int) for field in space}
    return {
        field: _value(of, rank(f"{method}:{field}:{draw}"), whole[field])
        for field, of in space.items()
    }


def all_draws(methods: Methods, draws: int) -> Methods:
    """Each draw as a method, draw by draw, without anything but its training."""
    trained = {
        name_of(method, draw): changed | drawn(methods, method, draw)
        for draw in range(draws)
        for method, changed in methods.trained.items()
    }
    return Methods(trained, dict.fromkeys(trained, ()), (), {}, {})


def check(path: str, methods: Methods, config: ConfigDict) -> None:
    """Raises MethodsError: a method without a space, or a space that nothing can be drawn from.

    path: the methods file, for the message.
    """
    search = methods.search
    if not isinstance(search, dict) or not all(isinstance(of, dict) for of in search.values()):
        raise MethodsError(f"{path}: SEARCH={search!r}: expected {{method: {{field: choices}}}}")
    for name in search:
        if name not in methods.trained:
            expected = nearest(str(name), methods.trained)
            raise MethodsError(f"{path}: SEARCH has {name!r}: expected {expected}")
    for name in methods.trained:
        if not search.get(name):
            raise MethodsError(
                f"{path}: SEARCH has no fields for {name!r}: expected some for every method of"
                " TRAINED, as each gets the same number of draws"
            )
        for field, of in search[name].items():
            where = f"{path}: SEARCH[{name!r}][{field!r}]"
            if field in FIXED:
                raise MethodsError(f"{where}: the data and the repetitions are not searched")
            if not isinstance(of, tuple):
                values = of if isinstance(of, list) else []
            else:
                values = _ends(where, field, of)
            if not values:
                raise MethodsError(f"{where} is {of!r}: expected {RANGE}")
            try:
                for value in values:
                    change(config.copy_and_resolve_references(), {field: value})
            except ConfigError as error:
                raise MethodsError(f"{where}: {error}") from error


def _ends(where: str, field: str, of: tuple[Any, ...]) -> list[Any]:
    """The ends of a range; none where it is not one."""
    number = type(FIELDS[field].default) if field in FIELDS else float
    if number not in (int, float):
        raise MethodsError(f"{where} is the range {of!r} of a field that is no number: {RANGE}")
    if len(of) not in (2, 3) or of[2:] not in ((), ("log",)):
        return []
    if not all(isinstance(end, Real) and not isinstance(end, bool) for end in of[:2]):
        return []
    if not of[0] < of[1] < float("inf"):
        raise MethodsError(f"{where} is {of!r}: expected low < high")
    if of[2:] and of[0] <= 0:
        raise MethodsError(f"{where} is {of!r}: expected low > 0 for a logarithm")
    return list(of[:2])


def _value(of: Any, ranked: int, whole: bool) -> Any:
    """The value at a rank of 64 bits."""
    if isinstance(of, list):
        return of[ranked * len(of) >> 64]
    part = (ranked >> 11) / 2**53  # below 1, as the rank / 2**64 need not be
    low, high = of[0], of[1] + whole  # of whole numbers each is as likely, the last one, too
    value = low * (high / low) ** part if of[2:] else low + (high - low) * part
    return int(value) if whole else float(f"{value:.{DIGITS}g}")

"""Plug-ins: a setting names a function and its arguments, ours or anybody's.

    optim.loss = "coral(weight=0.5)"            a factory in rxrx1_jax.model.losses
    optim.loss = "my_methods.focal(gamma=2.0)"  one in any module that Python can import

A factory takes the arguments, which are literals, and returns the plug-in itself, a function whose
form its module describes. docs/methods.md adds one of each kind.
"""

import ast
import importlib
import inspect
from collections.abc import Callable
from typing import Any

# Setting -> module of our factories, and the name of the tuple there that lists them.
POINTS = {
    "data.normalisation": ("rxrx1_jax.data.normalisation", "NORMALISATIONS"),
    "data.augmentation": ("rxrx1_jax.data.augmentations", "AUGMENTATIONS"),
    "data.sampler": ("rxrx1_jax.data.samplers", "SAMPLERS"),
    "model.head": ("rxrx1_jax.model.heads", "HEADS"),
    "optim.loss": ("rxrx1_jax.model.losses", "LOSSES"),
}


class PlugInError(ValueError):
    """A setting that names no plug-in, or gives it impossible arguments; one line."""


def load(field: str, text: str) -> Any:
    """The plug-in that a setting of POINTS names. Raises PlugInError."""
    found = load_all(field, text)
    if len(found) != 1:
        raise PlugInError(f"{field}={text!r}: expected one name, found {len(found)}")
    return found[0]


def load_all(field: str, text: str) -> list[Any]:
    """The plug-ins of a setting that may name several, separated by commas, or none (""), in order.

    Raises PlugInError.
    """
    try:
        tree = ast.parse(f"[{text}]", mode="eval").body
        calls = [_parse(node) for node in tree.elts] if isinstance(tree, ast.List) else None
    except (SyntaxError, ValueError):
        calls = None
    if calls is None:
        raise PlugInError(
            f"{field}={text!r}: expected a name or name(argument=value, ...) with plain values"
        )
    plug_ins = []
    for name, positional, named in calls:
        factory = _find(field, name)
        try:
            inspect.signature(factory).bind(*positional, **named)
            plug_ins.append(factory(*positional, **named))
        except (TypeError, ValueError) as error:
            arguments = str(inspect.signature(factory)).partition(" -> ")[0].replace("'", "")
            raise PlugInError(f"{field}={text!r}: {error}; expected {name}{arguments}") from error
    return plug_ins


def _parse(node: ast.expr) -> tuple[str, list[Any], dict[str, Any]]:
    """name(1, b=2) -> ("name", [1], {"b": 2}). Raises ValueError for anything else."""
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    name = ast.unparse(call.func)
    if not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(name)
    named = {keyword.arg or "**": ast.literal_eval(keyword.value) for keyword in call.keywords}
    return name, [ast.literal_eval(value) for value in call.args], named


def _find(field: str, name: str) -> Callable[..., Any]:
    module_name, list_name = POINTS[field]
    owner, _, attribute = name.rpartition(".")
    if owner:
        try:
            return getattr(importlib.import_module(owner), attribute)
        except (ImportError, AttributeError) as error:
            raise PlugInError(
                f"{field}={name!r}: {error}; expected a function in a module that Python can import"
                " from here"
            ) from error
    module = importlib.import_module(module_name)
    names = getattr(module, list_name)
    if name not in names:
        raise PlugInError(
            f"{field}={name!r}: expected one of {', '.join(names)}, or a function of your own as"
            " module.name"
        )
    return getattr(module, name)

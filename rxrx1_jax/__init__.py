"""RxRx1 in JAX, from Python. These names keep their meaning from version to version:

    open_dataset, make_split, batches   data: a built dataset, its splits, input for a network
    InMemory                            arrays of your own in place of a dataset
    create_network                      a network to train by a loop of your own
    config, train, load_run             settings, a training, and what it made (a `Run`)
    export_run                          its weights, or its program, for others
    score                               accuracy of predictions
    read_embeddings, write_embeddings   tables of embeddings, of any model and for other libraries
    correct_embeddings                  methods tried on such a table: accuracy, and a page

Nothing heavy is imported before a name is used. docs/python.md shows all of them.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rxrx1_jax import config as config
    from rxrx1_jax.api import batches as batches
    from rxrx1_jax.api import correct_embeddings as correct_embeddings
    from rxrx1_jax.api import create_network as create_network
    from rxrx1_jax.api import export_run as export_run
    from rxrx1_jax.api import load_run as load_run
    from rxrx1_jax.api import make_split as make_split
    from rxrx1_jax.api import open_dataset as open_dataset
    from rxrx1_jax.api import read_embeddings as read_embeddings
    from rxrx1_jax.api import score as score
    from rxrx1_jax.api import train as train
    from rxrx1_jax.api import write_embeddings as write_embeddings
    from rxrx1_jax.data.images import InMemory as InMemory

if sys.platform == "win32":  # locks, signals and reads at a position are those of POSIX
    _line = "error: rxrx1_jax runs on Linux and macOS; on Windows use it within WSL 2"
    raise SystemExit(_line) if sys.argv[:1] == ["-m"] else ImportError(_line)

_MODULES = {
    "InMemory": "rxrx1_jax.data.images",
    **dict.fromkeys(
        (
            "open_dataset", "make_split", "batches", "create_network", "train", "load_run", "score",
            "export_run", "correct_embeddings", "read_embeddings", "write_embeddings",
        ),  # fmt: skip
        "rxrx1_jax.api",
    ),
}
__all__ = ["config", *_MODULES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    if name == "config":
        return importlib.import_module("rxrx1_jax.config")
    raise AttributeError(f"module 'rxrx1_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

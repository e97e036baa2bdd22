"""What the command line asks of a leaderboard, and of the search that ends in one."""

import argparse
from typing import NamedTuple

from ml_collections import ConfigDict

from rxrx1_jax import main as main_lib  # its --config and --workdir mean the same here


class Asked(NamedTuple):
    worlds: list[str]  # names of datasets
    folds: list[int]
    seeds: list[int]
    own: str  # the dataset that the config names


class Parser(main_lib.SweepParser):
    def __init__(self, name: str, about: str) -> None:
        super().__init__(name, about)
        self.add_argument("--worlds", metavar="NAME,NAME", help="datasets; data.name unless given")
        self.add_argument("--folds", default="0,1,2", help="folds; 0,1,2 unless given")
        self.add_argument("--seeds", default="0,1", help="values of train.seed; 0,1 unless given")


def read(options: argparse.Namespace, config: ConfigDict) -> Asked:
    """Raises ValueError, DatasetError: folds, seeds or worlds that there are not."""
    from rxrx1_jax.data import splits  # here: --help needs none of these
    from rxrx1_jax.leaderboard import worlds

    folds, seeds = _numbers("folds", options.folds), _numbers("seeds", options.seeds)
    wrong = [fold for fold in folds if fold >= splits.FOLDS]
    if wrong:
        raise ValueError(f"--folds has {wrong[0]}: expected 0 to {splits.FOLDS - 1}")
    own = config.data.name
    return Asked(worlds.check_worlds(options.worlds or own, config.data.dir), folds, seeds, own)


def _numbers(name: str, text: str) -> list[int]:
    values = text.split(",")
    if not all(value.isdecimal() for value in values):
        raise ValueError(f"--{name}={text}: expected numbers like 0,1")
    return sorted({int(value) for value in values})

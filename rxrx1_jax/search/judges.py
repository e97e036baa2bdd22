"""What chooses among the draws of a search: sites that no scored run is tested on."""

import argparse
from typing import NamedTuple

from ml_collections import ConfigDict

from rxrx1_jax.data import records, splits
from rxrx1_jax.leaderboard.options import Asked
from rxrx1_jax.leaderboard.worlds import check_worlds


class Judge(NamedTuple):
    worlds: list[str]  # datasets that draws are trained and tested on; none: those that are scored
    role: str  # of the sites whose accuracy counts
    about: str


def read(options: argparse.Namespace, config: ConfigDict, asked: Asked) -> Judge:
    """Raises ValueError: nothing can choose, or what would choose is scored; DatasetError."""
    if options.tuning_worlds is not None:
        names = [name.strip() for name in options.tuning_worlds.split(",")]
        if scored := [name for name in names if name in asked.worlds]:
            raise ValueError(
                f"--tuning_worlds has {scored[0]}, which is scored: expected others than"
                f" {', '.join(asked.worlds)}"
            )
        check_worlds(",".join([*asked.worlds, *names]), config.data.dir, "--tuning_worlds")
        return Judge(names, "test", f"the test sites of {', '.join(names)}")
    count = config.data.val_experiments
    if not count:
        raise ValueError(
            "nothing chooses among the draws: expected --config.data.val_experiments=1 or more, or"
            " --tuning_worlds=NAME,NAME"
        )
    for world in asked.worlds:
        sites = records.open_images(config.data.dir, world).sites

        def experiments(fold: int, role: str, sites=sites) -> set[str]:
            data = {**config.data, "protocol": "batch", "fold": fold}
            return set(sites["experiment"][splits.configured(sites, data).scored[role]].tolist())

        chosen = experiments(asked.folds[0], "val")
        for fold in asked.folds:
            if both := chosen & experiments(fold, "test"):
                raise ValueError(
                    f"data.val_experiments={count}: fold {fold} of {world} tests {min(both)}, which"
                    " would choose: expected fewer, fewer --folds, a dataset of more experiments,"
                    " or --tuning_worlds=NAME,NAME"
                )
    return Judge([], "val", f"validation experiments, {count} of each cell type")

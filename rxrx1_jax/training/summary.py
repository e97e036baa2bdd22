"""The first lines of a run."""

import jax
import numpy as np

from rxrx1_jax.training.setup import Setup


def summary(setup: Setup, start: int) -> str:
    config, sites, split = setup.config, setup.images.sites, setup.split
    wells = [len(np.unique(sites["well_id"][rows])) for rows in (split.train, split.test)]
    others = "".join(f", {role} {len(rows):,} sites" for role, rows in split.scored.items()
                     if role != "test")  # fmt: skip
    unlabelled = int((sites["sirna_id"] < 0).sum())
    where = getattr(setup.images, "path", setup.images.about["name"])
    parameters = sum(leaf.size for leaf in jax.tree.leaves(setup.abstract_state.params))
    parts = [
        f"{where}: {config.data.protocol} split, fold {config.data.fold}, cell type "
        f"{config.data.cell_type}, normalisation {config.data.normalisation}",
        f"train {len(split.train):,} sites of {wells[0]:,} wells, test {len(split.test):,} sites "
        f"of {wells[1]:,} wells{others}, {len(setup.vocabulary.classes):,} siRNA classes"
        + (f"; {unlabelled:,} sites without a label are left out" if unlabelled else ""),
        f"{config.model.name} of {parameters:,} parameters, {setup.spec.total_steps:,} steps of"
        f" {config.optim.batch_size} sites on {jax.device_count()} x"
        f" {jax.devices()[0].device_kind}",
        *([f"resumed at step {start:,}"] if start else []),
    ]
    return "\n".join(parts)

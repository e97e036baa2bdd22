"""The weights that a run begins with (model.init): of a file, or of another run.

A file has the names of torchvision or timm (`model.weights`). Its stem of three channels is tiled
over those of the images. The head is drawn where it is another one, and whatever else does not fit
is refused before work starts.

A file is external data: it may have been trained on anything. Of a run that is known, and one that
was trained on what this run is scored on is refused.
"""

import csv
import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from rxrx1_jax.data.info import Info
from rxrx1_jax.model import weights
from rxrx1_jax.training import run_dir, steps
from rxrx1_jax.training.run import Run
from rxrx1_jax.training.setup import Setup, create_model
from rxrx1_jax.training.steps import TrainState

RELEASE = "release"  # sources that begin so name the same sites, whatever the size of the images


class Initial(NamedTuple):
    """Weights that fit a training."""

    arrays: weights.Arrays
    body: frozenset[str]  # names that must be among them
    about: str  # one line

    def state(self, setup: Setup) -> TrainState:
        """The state before the first update."""
        drawn = setup.init()
        filled = weights.fill(_variables(drawn), self.arrays, self.body)
        filled = jax.tree.map(jnp.array, filled)  # copies, as the first step takes their memory
        state = steps.state_of(setup.spec, filled["params"], filled.get("batch_stats", {}))
        return jax.device_put(state, setup.devices.copied)


def fingerprint(init: str) -> dict[str, Any]:
    """What the weights of the setting are recognised by, kept beside the fingerprint of the data.

    init: SHA-256 of a file; step and weights of a run. external: there is a file among what they
    come from. uses: what else the run saw beside its training sites (`taught.uses`). Raises
    RunError: they are not there.
    """
    if not init:
        return {}
    if _is_file(init):
        try:
            with open(init, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise run_dir.RunError(f"model.init={init}: {error.strerror}") from error
        return {"init": digest, "external": True}
    run = _complete(init)
    found = {"init": ".".join(run.source.values()), "uses": sorted(run.uses - {"external"})}
    return found | ({"external": True} if "external" in run.uses else {})


def find(setup: Setup, data: Mapping[str, Any]) -> Initial:
    """The weights of model.init. Raises RunError: they do not fit, or know what is scored.

    data: `fingerprints.describe_data` of the set-up.
    """
    init, abstract = setup.config.model.init, _variables(setup.abstract_state)
    spec = dataclasses.replace(setup.spec, model=create_model(setup.config, head=_no_head))
    bare = dataclasses.replace(setup, spec=spec).abstract_state
    body = frozenset(weights.names(_variables(bare)).values())
    try:
        arrays = weights.read(Path(init)) if _is_file(init) else _of_run(setup, data, body)
        filled = flatten_dict(weights.fill(abstract, arrays, body))
    except weights.WeightsError as error:
        raise run_dir.RunError(f"model.init={init}: {error}") from error
    new = [weights.torch_name(path) for path, x in filled.items() if not isinstance(x, np.ndarray)]
    about = f"begins with {len(filled) - len(new)} arrays of {init}"
    return Initial(arrays, body, about + (f"; drawn: {', '.join(new)}" if new else ""))


def _variables(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, "batch_stats": state.batch_stats}


def _no_head(network: nn.Module, features: jax.Array, batch: Any, info: Info) -> jax.Array:
    return jnp.zeros((len(features), len(info.vocabulary.classes)))


def _is_file(init: str) -> bool:
    """By its name, so that a run knows it when the file is gone."""
    return Path(init).suffix in weights.SUFFIXES


def _complete(init: str) -> Run:
    if Path(init).is_file():
        raise run_dir.RunError(
            f"model.init={init}: expected a file {' or '.join(weights.SUFFIXES)}, or a run"
        )
    try:
        run = Run.open(init)
    except run_dir.RunError as error:
        raise run_dir.RunError(f"model.init={error}") from error
    if not run_dir.is_complete(run.path):
        raise run_dir.RunError(
            f"model.init={init}: not trained to its end; resume it, or take its weights as they"
            f" are: python -m rxrx1_jax.export {init}"
        )
    return run


def _of_run(setup: Setup, data: Mapping[str, Any], body: frozenset[str]) -> weights.Arrays:
    """What the run evaluates with. Without its head, unless it names the same classes."""
    config, run = setup.config, _complete(setup.config.model.init)
    if run.config.model.name != config.model.name:
        raise weights.WeightsError(
            f"a run with model.name={run.config.model.name!r}, this one has {config.model.name!r}"
        )
    _check_unseen(setup, data, run)
    arrays = weights.to_torch(run.evaluated())
    ours, theirs = setup.vocabulary, run.vocabulary
    same = run.config.model.head == config.model.head and ours.cell_types == theirs.cell_types
    if same and np.array_equal(ours.classes, theirs.classes):
        return arrays
    return {name: value for name, value in arrays.items() if name in body}


def _check_unseen(setup: Setup, data: Mapping[str, Any], run: Run | None) -> None:
    """Raises RunError if the run, or one that it comes from, was trained on sites that this one is
    scored on, or on others of experiments that it holds out."""
    sites, split = setup.images.sites, setup.split
    scored = np.concatenate(list(split.scored.values()))
    others = np.setdiff1d(sites["experiment"][scored], sites["experiment"][split.train])
    held_out = np.union1d(scored, np.flatnonzero(np.isin(sites["experiment"], others)))
    kept = {*sites["site_id"][held_out].tolist()}
    while run is not None:
        sources = setup.images.about["source"], run_dir.read_results(run.path)["data"]["source"]
        known = all(source.startswith(RELEASE) for source in sources)
        if known or run.fingerprint.get("data") == data["data"]:
            with open(run.path / "split.csv", newline="", encoding="utf-8") as file:
                trained = {row["site_id"] for row in csv.DictReader(file) if row["role"] == "train"}
            if seen := sorted(kept & trained):
                raise run_dir.RunError(
                    f"model.init={setup.config.model.init}: {run.path} was trained on {len(seen)}"
                    f" sites that this run holds out, {seen[0]} the first; expected a run of the"
                    " same data.fold, data.seed and data.val_experiments"
                )
        init = run.config.model.init
        run = _complete(init) if init and not _is_file(init) else None

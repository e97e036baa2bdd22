"""A step whose loss or gradient is not finite: what it was computed of."""

import math
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from rxrx1_jax.training import run_dir

SHOWN = 4  # site ids in the message; the file has all


class Diverged(FloatingPointError):
    """A step whose loss or gradient is not finite; `batch` says what it was computed of."""

    def __init__(self, step: int, values: Mapping[str, float], batch: str = ""):
        super().__init__(
            f"step {step}: loss is {values['loss']}, gradient norm {values['gradient_norm']}, "
            f"{batch}the last checkpoint is from before it. In a new --workdir lower "
            "optim.learning_rate or lengthen optim.warmup_epochs"
        )
        self.step, self.values = step, values


def check_finite(step: int, values: Mapping[str, float]) -> None:
    if not (math.isfinite(values["loss"]) and math.isfinite(values["gradient_norm"])):
        raise Diverged(step, values)


def diagnose(
    error: Diverged, batch: Mapping[str, jax.Array], site_ids: np.ndarray, workdir: Path
) -> Diverged:
    """Writes WORKDIR/diverged.json and returns the error with the batch in its message.

    The file holds step, loss, gradient_norm, site_ids of the whole batch and, of these, not_finite:
    whose prepared image has values that are not. To be called by every process.

    Args:
      batch: that of the step at fault, made again.
      site_ids: of all sites, by site_index.
    """
    image = batch["image"]
    finite = jnp.all(jnp.isfinite(image), axis=tuple(range(1, image.ndim)))
    rows = (batch["site_index"], finite)  # [N] each
    index, finite = multihost_utils.process_allgather(rows, tiled=True)
    ids = site_ids[index]
    bad = ids[~finite].tolist()
    path = workdir / run_dir.DIVERGED
    if jax.process_index() == 0:
        # As text where JSON has no number for it.
        found = {name: str(error.values[name]) for name in ("loss", "gradient_norm")}
        report = {"step": error.step, **found, "site_ids": ids.tolist(), "not_finite": bad}
        run_dir.write_json(path, report)
    shown = ", ".join(ids[:SHOWN]) + (f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else "")
    pixels = f"{len(bad)} of them with pixels that are not finite" if bad else "all pixels finite"
    return Diverged(error.step, error.values, f"of sites {shown} ({path}), {pixels}; ")

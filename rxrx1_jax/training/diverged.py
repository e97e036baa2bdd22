"""A step whose loss or gradient was not finite: what it saw is written down, then the run stops."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils

from rxrx1_jax.data.records import Records
from rxrx1_jax.training import run_dir
from rxrx1_jax.training.progress import STEPS_AHEAD, Diverged, Log

SHOWN = 4  # site ids in the message; the file has all


def log_step(log: Log, step: int, metrics: jax.Array, asked: float, got: float) -> None:
    """`log.train`. Of several processes all raise Diverged at the same step.

    Each finds it one to three steps after the one at fault. A step that only some of them had begun
    would never end, and nothing could be asked of the devices after it, so all go on to the last
    one of these, or to the next `log.flush`.
    """
    try:
        log.train(step, metrics, asked, got)
    except Diverged as error:
        if jax.process_count() == 1 or step > error.step + STEPS_AHEAD:
            raise


def diagnose(
    error: Diverged, batches: Iterable[Mapping[str, jax.Array]], records: Records, workdir: Path
) -> Diverged:
    """Writes WORKDIR/diverged.json and returns the error with the batch in its message.

    The file holds step, loss, gradient_norm, site_ids of the whole batch and, of these, not_finite:
    whose prepared image has values that are not. To be called by every process.

    Args:
      batches: the training batches from the step at fault on, drawn again: the order is pure.
    """
    batch = next(iter(batches))
    image = batch["image"]
    finite = jnp.all(jnp.isfinite(image), axis=tuple(range(1, image.ndim)))
    rows = (batch["site_index"], finite)  # [N] each
    index, finite = multihost_utils.process_allgather(rows, tiled=True)
    ids = records.sites["site_id"][index]
    bad = ids[~finite].tolist()
    path = workdir / "diverged.json"
    if jax.process_index() == 0:
        # As text where JSON has no number for it.
        found = {name: str(error.values[name]) for name in ("loss", "gradient_norm")}
        report = {"step": error.step, **found, "site_ids": ids.tolist(), "not_finite": bad}
        run_dir.write_json(path, report)
    shown = ", ".join(ids[:SHOWN]) + (f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else "")
    pixels = f"{len(bad)} of them with pixels that are not finite" if bad else "all pixels finite"
    return Diverged(error.step, error.values, f"of sites {shown} ({path}), {pixels}; ")

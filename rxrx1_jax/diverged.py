"""What a step saw whose loss or gradient was not finite: written down before the run stops."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rxrx1_jax import run
from rxrx1_jax.metrics import Diverged
from rxrx1_jax.parallel import local_rows
from rxrx1_jax.records import Records

SHOWN = 4  # site ids in the message; the file has all


def diagnose(
    error: Diverged, batches: Iterable[Mapping[str, jax.Array]], records: Records, workdir: Path
) -> Diverged:
    """Writes WORKDIR/diverged.json and returns the error with the batch in its message.

    The file holds step, loss, gradient_norm, site_ids of the batch (on several hosts, of the first
    one's share) and, of these, not_finite: whose prepared image has values that are not.

    Args:
      batches: the training batches from the step at fault on, drawn again: the order is pure.
    """
    batch = next(iter(batches))
    image = batch["image"]
    finite = local_rows(jnp.all(jnp.isfinite(image), axis=tuple(range(1, image.ndim))))
    ids = records.sites["site_id"][local_rows(batch["site_index"])]
    bad = ids[~np.asarray(finite, bool)].tolist()
    path = workdir / "diverged.json"
    if jax.process_index() == 0:
        # As text where JSON has no number for it.
        found = {name: str(error.values[name]) for name in ("loss", "gradient_norm")}
        report = {"step": error.step, **found, "site_ids": ids.tolist(), "not_finite": bad}
        run.write_json(path, report)
    shown = ", ".join(ids[:SHOWN]) + (f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else "")
    pixels = f"{len(bad)} of them with pixels that are not finite" if bad else "all pixels finite"
    return Diverged(error.step, error.values, f"of sites {shown} ({path}), {pixels}; ")

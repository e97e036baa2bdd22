"""Made-up log_probs.parquet files."""

from pathlib import Path

import numpy as np

from rxrx1_jax.data.images import structured
from rxrx1_jax.training import log_probs


def normalised(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities float32 of logits."""
    return (logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float32)


def sites_of_rows(rows: list[dict[str, str]]) -> np.ndarray:
    """Sites of the rows of a metadata.csv, which know their place in it."""
    columns = {name: [row[name] for row in rows] for name in rows[0] if name in log_probs.COLUMNS}
    for name in ("plate", "site", "sirna_id"):
        columns[name] = list(map(int, columns[name]))
    return structured(columns | {"release_row": list(range(len(rows)))})


def make_file(
    path: Path, sites: np.ndarray, role: np.ndarray, classes: np.ndarray, x: np.ndarray
) -> log_probs.LogProbs:
    """A file of log-probabilities x, open."""
    path.parent.mkdir(exist_ok=True, parents=True)
    log_probs.write(path, sites, role, np.asarray(classes, np.int32), [x], {"step": "1"})
    return log_probs.read(path)

"""What methods make of a trained run: RUN/corrections/METHOD.parquet, computed once.

The files have the columns of predictions.parquet. They are recognised by the step and the weights
of the run and by the version of the method, which are written into them.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rxrx1_jax.methods.catalogue import find
from rxrx1_jax.methods.evidence import Evidence, Method, choose, from_embeddings, scores
from rxrx1_jax.training import predictions

if TYPE_CHECKING:
    from rxrx1_jax.training.run import Run  # it imports JAX


def stored(run: "Run", name: str, folder: Path) -> pa.Table | None:
    """What is stored of a method, if it is of its version and the run's newest checkpoint, and a
    table as it was written."""
    made_by = _made_by(run.source, name)
    try:
        table = pq.read_table(_path(folder, name))
        found = table.schema.metadata or {}
        sizes = pc.unique(pc.list_value_length(table["top5"]))
        whole = len(table) == pc.count_distinct(table["site_id"]).as_py() > 0 and len(sizes) == 1
    except (OSError, KeyError, pa.ArrowException):
        return None
    known = all(found.get(key.encode()) == value.encode() for key, value in made_by.items())
    return table if known and whole and not any(x.null_count for x in table.columns) else None


def predictions_of(
    run: "Run", names: Sequence[str], folder: Path | None = None,
    refused: dict[str, Exception] | None = None,
) -> dict[str, pa.Table]:  # fmt: skip
    """Predictions of a run's test sites by each method, {name: table}; what is stored is read.

    A method that refuses these data, or lacks its library, is left out with a line on stderr, and
    noted in `refused`. What is computed is written into `folder`, or else into the run. Under the
    wilds protocol, where controls are classes, those are left out that tell them from treatments.

    Raises RunError: no trained run.
    """
    wilds = run.config.data.protocol == "wilds"
    source: dict[str, str] = {}  # of the evidence
    evidence: Evidence | None = None
    tables: dict[str, pa.Table] = {}

    def adapted(method, given):
        from rxrx1_jax.methods import adabn  # here: the rest needs no JAX

        return adabn.adapted(run, method, given)

    for name in names:
        kept = (stored(run, name, place) for place in (run.path, folder) if place)
        if (table := next((table for table in kept if table is not None), None)) is not None:
            tables[name] = table
            continue
        if evidence is None:
            embeddings = run.embeddings(True, folder)
            evidence, source = from_embeddings(embeddings), dict(embeddings.source)
        method = find(name)
        try:
            if wilds and not _on_all_wells(method):
                raise ValueError("under the wilds protocol controls are classes, no context")
            chosen = choose(method, evidence, adapted)
            found = scores(chosen, evidence, adapted)
        # A library of an extra; data that a method is not for (no controls, no groups).
        except (ImportError, ValueError) as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            if refused is not None:
                refused[name] = error
            continue
        if method.grid:
            number = method.grid.index(chosen) + 1
            print(f"{name}: validation chose {number} of {len(method.grid)} {chosen.about}".strip(),
                  file=sys.stderr)  # fmt: skip
        path = _path(folder or run.path, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        tables[name] = _table(evidence, found).replace_schema_metadata(_made_by(source, name))
        predictions.write_predictions(path, tables[name])
    return tables


def _on_all_wells(method: Method) -> bool:
    """Whether it does no more than run the network, adapted to all wells or not at all."""
    further = method.transforms or method.classify or method.decide or method.grid
    return not further and getattr(method.adapt, "on", "all") == "all"


def _table(evidence: Evidence, log_probs: np.ndarray) -> pa.Table:
    """Predictions of the test sites, in the order of the evidence, which knows their labels."""
    sites = evidence.sites[evidence.role == "test"]
    return predictions.predictions_table(sites, evidence.classes, log_probs)


def _made_by(source: Mapping[str, str], name: str) -> dict[str, str]:
    return {**source, "version": str(find(name).version)}


def _path(folder: Path, name: str) -> Path:
    return folder / "corrections" / f"{name}.parquet"

"""A table of embeddings and a method -> accuracy on a split; how much batch and biology is left.

Nothing here knows a network: methods of the catalogue that need one are refused.
"""

import numpy as np
import pyarrow as pa

from rxrx1_jax.data.embeddings import Embeddings
from rxrx1_jax.data.images import CONTROL_TYPES
from rxrx1_jax.data.splits import classes_of, make_split, roles_with_context
from rxrx1_jax.methods import diagnosis
from rxrx1_jax.methods.embedding_metrics import mean_profiles
from rxrx1_jax.methods.evidence import HELD_OUT, ROLES, Evidence, Method, read_out, transformed
from rxrx1_jax.methods.retrieval import activity_map
from rxrx1_jax.training.predictions import predictions_table

VERSION = 1  # of the figures; raise it when they change, and stored ones are computed again
ACTIVE = "active, mAP"
ACTIVE_SHARE = "active, %"
# What `figures` computes beside diagnosis.COLUMNS.
COLUMNS = {
    ACTIVE: "mean average precision of finding a treatment's wells in other experiments among the"
    " untreated wells of the well's own experiment",
    ACTIVE_SHARE: "share of treatments found so beyond chance, false discovery rate 5 %; of cell"
    " types with wells enough to show it",
}


def evidence_of(
    table: Embeddings, protocol: str, fold: int, val_experiments: int = 0
) -> Evidence:
    """The table's rows in a split; control wells of its experiments are context.

    Raises SplitError.
    """
    split = make_split(table.sites, protocol, fold, val_experiments=val_experiments)
    role = roles_with_context(table.sites, split)
    whole = Evidence(table.sites, role, table.x, None, classes_of(table.sites, protocol))
    return whole.only(np.isin(role, ROLES))


def corrected_table(table: Embeddings, method: Method, protocol: str, fold: int) -> Embeddings:
    """All rows of the table after the method's transforms. What the split leaves out is as
    validation sites, and control wells are context."""
    split = make_split(table.sites, protocol, fold)
    role = roles_with_context(table.sites, split)
    control = (role == "other") & np.isin(table.sites["well_type"], CONTROL_TYPES)
    role = np.where(control, "context", np.where(role == "other", "val", role))
    classes = classes_of(table.sites, protocol)
    after = corrected(method, Evidence(table.sites, role, table.x, None, classes))
    return Embeddings(table.sites, after.x.astype(np.float32), unit=table.unit)


def is_external(table: Embeddings, evidence: Evidence) -> bool:
    """Whether the embeddings may know the test sites: their network was trained elsewhere, or a
    test site of this split was one that it was trained or chosen on."""
    if table.role is None:
        return True
    column = table.id
    seen = table.sites[column][np.isin(table.role, ("train", "val"))]
    return bool(np.isin(evidence.sites[column][evidence.role == "test"], seen).any())


def corrected(method: Method, evidence: Evidence) -> Evidence:
    """All rows after the method's transforms. A method that does not declare the controls of unseen
    experiments has them as test sites, without labels."""
    role = evidence.role
    if not method.uses & {"test_controls", "test_images"}:
        seen = np.unique(evidence.sites["experiment"][role == "train"])
        unseen = (role == "context") & ~np.isin(evidence.sites["experiment"], seen)
        role = np.where(unseen, "test", role)
    return transformed(method, evidence._replace(role=role))


def predicted(method: Method, evidence: Evidence, given: Evidence) -> pa.Table:
    """Predictions of the test sites, with the columns of predictions.parquet.

    given: what `corrected` made of the evidence.
    """
    scores = read_out(method, given)
    tested = evidence.role[given.role == "test"] == "test"  # and no control
    sites = evidence.sites[evidence.role == "test"]
    return predictions_table(sites, evidence.classes, scores[tested])


def figures(x: np.ndarray, sites: np.ndarray, role: np.ndarray) -> diagnosis.Figures:
    """{column: (figure, chance)} of embeddings [n, d]: diagnosis.COLUMNS of the positive controls,
    and COLUMNS of the treatments; means over cell types."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in COLUMNS}
    untreated = sites["well_type"] == "negative_control"
    treated = np.isin(role, ("train", *HELD_OUT)) & (sites["well_type"] == "treatment")
    for cell_type in np.unique(sites["cell_type"]):
        rows = (treated | untreated) & (sites["cell_type"] == cell_type)
        names = ("well_id", "sirna_id", "experiment", "well_type")
        wells, _, label, experiment, kind = mean_profiles(x[rows], *(sites[n][rows] for n in names))
        try:
            active = activity_map(wells, label, experiment, kind == "negative_control")
        except ValueError:  # a single experiment, or one without untreated wells
            continue
        found[ACTIVE].append((active.mean, active.chance))
        able = active.least < diagnosis.SIGNIFICANT
        if able.any():
            found[ACTIVE_SHARE].append((100 * diagnosis.discovered(active.p_value[able]), 0.0))
    return diagnosis.measure(x, sites, None) | diagnosis.averages(found)

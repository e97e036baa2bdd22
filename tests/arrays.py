"""A small screen as arrays: evidence of two plates per experiment, batch effects on its x."""

import numpy as np

from rxrx1_jax.methods.centroids import TEMPERATURE
from rxrx1_jax.methods.evidence import Evidence

EXPERIMENTS = {"HUVEC-01": "train", "HUVEC-02": "train", "HUVEC-03": "test", "RPE-01": "test",
               "RPE-02": "train"}  # fmt: skip
PLATES, TREATMENTS, CONTROLS = 2, 3, 3
LAYOUT = [("site_id", "U32"), ("well_id", "U32"), ("cell_type", "U8"), ("dataset", "U8"),
          ("experiment", "U16"), ("plate", "i4"), ("well", "U4"), ("site", "i4"),
          ("well_type", "U16"), ("sirna", "U16"), ("sirna_id", "i4")]  # fmt: skip


def make_sites(wells, sites=(1, 2)) -> np.ndarray:
    """The sites of wells (experiment, plate, well, well_type, sirna_id), all columns."""
    rows = []
    for experiment, plate, well, well_type, sirna_id in wells:
        name, cell_type = f"{experiment}_{plate}_{well}", experiment.split("-")[0]
        rows += [(f"{name}_{site}", name, cell_type, "train", experiment, plate, well, site,
                  well_type, f"s{sirna_id}", sirna_id) for site in sites]  # fmt: skip
    return np.array(rows, LAYOUT)


def small_evidence() -> Evidence:
    """Two plates an experiment, three siRNAs and three control wells each, two sites a well."""
    wells = []
    for turn, experiment in enumerate(EXPERIMENTS):
        for plate in range(1, PLATES + 1):
            ids = [("treatment", k) for k in range(TREATMENTS * PLATES)]
            ids = ids[(plate + turn) % PLATES :: PLATES] + [("negative_control", 1138)] * CONTROLS
            wells += [(experiment, plate, f"B{i:02}", *of) for i, of in enumerate(ids)]
    sites = make_sites(wells)
    role = np.array([EXPERIMENTS[name] for name in sites["experiment"]])
    role = np.where(sites["well_type"] == "treatment", role, "context")
    rng = np.random.default_rng(0)
    centre = rng.normal(size=(1139, 6))
    shift = {name: rng.normal(size=6) for name in EXPERIMENTS}
    x = np.stack([centre[r["sirna_id"]] + shift[r["experiment"]] for r in sites])
    x = (x + 0.5 * rng.normal(size=x.shape)).astype(np.float32)
    logits = rng.normal(size=(len(sites), TREATMENTS * PLATES)).astype(np.float32)
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return Evidence(sites, role, x, log_probs, np.arange(TREATMENTS * PLATES, dtype=np.int32))


def read_out_by_hand(x, evidence):
    """What `centroids` of x gives the test sites, as a loop: log-softmax of cosines, float64."""
    sites, train = evidence.sites, evidence.role == "train"
    unit = x / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    out = []
    for row, site in zip(unit, sites, strict=True):
        means = []
        for sirna in evidence.classes:
            of = train & (sites["sirna_id"] == sirna)
            own = of & (sites["cell_type"] == site["cell_type"])
            means.append(unit[own if own.any() else of].sum(axis=0))
        cosine = [row @ mean / np.linalg.norm(mean) / TEMPERATURE for mean in means]
        out.append(cosine - np.log(np.exp(cosine).sum()))
    return np.array(out)[evidence.role == "test"]


def screen(seed=0, sirnas=12, experiments=4, dim=6, effect=1.0, batch=1.0, noise=0.5):
    """Two sites a well, a well a siRNA and experiment: columns of a small screen, rows mixed."""
    rng = np.random.default_rng(seed)
    sirna, experiment, _ = (
        x.ravel() for x in np.meshgrid(range(sirnas), range(experiments), range(2), indexing="ij")
    )
    z = (
        effect * rng.normal(size=(sirnas, dim))[sirna]
        + batch * rng.normal(size=(experiments, dim))[experiment]
        + noise * rng.normal(size=(len(sirna), dim))
    )
    names = np.array([f"HUVEC-{k + 1:02d}" for k in range(experiments)])[experiment]
    order = rng.permutation(len(sirna))
    return z[order].astype(np.float32), sirna[order], names[order]

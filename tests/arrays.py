"""A small screen as arrays: evidence of two plates per experiment, batch effects on its x."""

import numpy as np

from rxrx1_jax.methods.evidence import Evidence

EXPERIMENTS = {"HUVEC-01": "train", "HUVEC-02": "train", "HUVEC-03": "test", "RPE-01": "test",
               "RPE-02": "train"}  # fmt: skip
PLATES, TREATMENTS, CONTROLS = 2, 3, 3
LAYOUT = [("site_id", "U32"), ("well_id", "U32"), ("cell_type", "U8"), ("dataset", "U8"),
          ("experiment", "U16"), ("plate", "i4"), ("well", "U4"), ("site", "i4"),
          ("well_type", "U16"), ("sirna", "U16"), ("sirna_id", "i4")]  # fmt: skip


def small_evidence() -> Evidence:
    """Two plates an experiment, three siRNAs and three control wells each, two sites a well."""
    rows, role = [], []
    for turn, (experiment, part) in enumerate(EXPERIMENTS.items()):
        for plate in range(1, PLATES + 1):
            ids = [(k, "treatment") for k in range(TREATMENTS * PLATES)]
            ids = ids[(plate + turn) % PLATES :: PLATES] + [(1138, "negative_control")] * CONTROLS
            for well, (sirna_id, kind) in enumerate(ids):
                for site in (1, 2):
                    name = f"{experiment}_{plate}_B{well:02}"
                    rows.append((f"{name}_{site}", name, experiment.split("-")[0], "train",
                                 experiment, plate, f"B{well:02}", site, kind, f"s{sirna_id}",
                                 sirna_id))  # fmt: skip
                    role.append(part if kind == "treatment" else "context")
    sites = np.array(rows, LAYOUT)
    rng = np.random.default_rng(0)
    centre = rng.normal(size=(1139, 6))
    shift = {name: rng.normal(size=6) for name in EXPERIMENTS}
    x = np.stack([centre[r["sirna_id"]] + shift[r["experiment"]] for r in sites])
    x = (x + 0.5 * rng.normal(size=x.shape)).astype(np.float32)
    logits = rng.normal(size=(len(sites), TREATMENTS * PLATES)).astype(np.float32)
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return Evidence(
        sites, np.array(role), x, log_probs, np.arange(TREATMENTS * PLATES, dtype=np.int32)
    )

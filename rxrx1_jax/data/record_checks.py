"""Whether what the records say of their sites can be: a cheap guard against changed bits.

The checksum that TFRecord keeps of a whole record covers its image, so comparing it means reading
the dataset; `python -m tfds_builder.rxrx1 verify --all` does. Here is what costs nothing: that the
fields of a site, a well, a plate and an experiment agree with each other.
"""

from typing import Any

import numpy as np

_LABELS = {  # lowest and highest sirna_id of a well type, and the one of an unknown label
    "treatment": (0, 1107, -1),
    "positive_control": (1108, 1137, 1108),
    "negative_control": (1138, 1138, 1138),
}


def contradictions(sites: np.ndarray) -> list[tuple[int, str]]:
    """(row, what it says that cannot be) of the first site at fault for each reason.

    sites: structured array as `Records.sites`, in any order.
    """
    found: list[tuple[int, str]] = []

    def expect(right: Any, *names: str) -> None:
        if not right.all():
            row = int(np.argmin(right))
            said = (f"{name} {sites[name][row].tolist()!r}" for name in names)
            found.append((row, ", ".join(said)))

    text = np.char.add
    experiment, plate, well = sites["experiment"], sites["plate"], sites["well"]
    well_id = text(text(text(experiment, "_"), text(plate.astype("U"), "_")), well)
    expect(sites["well_id"] == well_id, "well_id", "experiment", "plate", "well")
    site_id = text(text(sites["well_id"], "_"), sites["site"].astype("U"))
    expect(sites["site_id"] == site_id, "site_id", "well_id", "site")
    if {"row", "column"} <= set(sites.dtype.names or ()):  # not read by training
        row = (sites["row"] % 2**16 + ord("A") - 1).astype(np.uint32).view("U1")
        column = np.char.zfill(sites["column"].astype("U"), 2)
        expect(well == text(row, column), "well", "row", "column")
    cell_type = np.char.partition(experiment, "-")[:, 0]
    expect(cell_type == sites["cell_type"], "cell_type", "experiment")
    names, counts = np.unique(sites["site_id"], return_counts=True)
    expect(~np.isin(sites["site_id"], names[counts > 1]), "site_id")

    label, low, high, unknown = sites["sirna_id"], *np.zeros((3, len(sites)), np.int64)
    known = np.isin(sites["well_type"], list(_LABELS))
    expect(known, "well_type")
    for well_type, limits in _LABELS.items():
        rows = sites["well_type"] == well_type
        low[rows], high[rows], unknown[rows] = limits
    right = ((low <= label) & (label <= high)) | (label == unknown)
    expect(right | ~known, "sirna_id", "well_type")
    for name in ("control_mean", "control_std"):
        values = sites[name]
        expect(((values >= 0) & (values <= 255)).all(1), name)

    # What all sites of one thing have in common.
    for whole, part in (
        ("well_id", "sirna_id"), ("well_id", "well_type"), ("sirna_id", "sirna"),
        ("sirna", "sirna_id"), ("experiment", "dataset"),
    ):  # fmt: skip
        _, first, group = np.unique(sites[whole], return_index=True, return_inverse=True)
        expect(sites[part] == sites[part][first][group], whole, part)
    places = text(text(experiment, "_"), plate.astype("U"))
    _, first, group = np.unique(places, return_index=True, return_inverse=True)
    for name in ("control_mean", "control_std"):
        same = (sites[name] == sites[name][first][group]).all(1)
        expect(same, "experiment", "plate", name)
    return found

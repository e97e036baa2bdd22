"""Tables of sites for tests of splits, and what a split takes from them."""

from collections import Counter

import numpy as np

RANDOM = ("random_site", "random_well")


def table(rows: list[tuple]) -> np.ndarray:
    """Sites from (experiment, dataset, plate, well, site, well_type, sirna_id)."""
    records = [
        (f"{e}_{p}_{w}_{s}", f"{e}_{p}_{w}", e.split("-")[0], d, e, p, w, s, t, i)
        for e, d, p, w, s, t, i in rows
    ]
    return np.array(records, [
        ("site_id", "U20"), ("well_id", "U20"), ("cell_type", "U8"), ("dataset", "U5"),
        ("experiment", "U12"), ("plate", "i4"), ("well", "U3"), ("site", "i4"),
        ("well_type", "U20"), ("sirna_id", "i4"),
    ])  # fmt: skip


def screen(counts: dict[str, int], sirnas: int = 6, seed: int = 0) -> np.ndarray:
    """A small screen with missing sites, missing wells, controls and unlabelled treatments."""
    rng = np.random.default_rng(seed)
    rows = []
    for cell_type, n in counts.items():
        for k in range(1, n + 1):
            experiment, dataset = f"{cell_type}-{k:02d}", "test" if 5 * k > 4 * n else "train"
            for sirna, column in enumerate(rng.permutation(sirnas) + 3):
                fate = rng.random()
                if fate < 0.05 and sirna:
                    continue  # the whole well is missing
                label = -1 if 0.05 <= fate < 0.1 and sirna else sirna
                for site in (1, 2) if fate < 0.9 else (2,):
                    rows.append(
                        (experiment, dataset, 1, f"D{column:02d}", site, "treatment", label)
                    )
            for site in (1, 2):
                rows.append((experiment, dataset, 1, "B02", site, "negative_control", 1138))
                rows.append((experiment, dataset, 1, "C03", site, "positive_control", 1108))
    sites = table(rows)
    return sites[rng.permutation(len(sites))]  # record order is that of hashed keys


DEMO = {"HUVEC": 6, "RPE": 3, "HEPG2": 3, "U2OS": 3}


def experiments(sites: np.ndarray, rows: np.ndarray) -> dict[str, int]:
    return dict(Counter(name.split("-")[0] for name in set(sites["experiment"][rows].tolist())))


def wells(sites, rows):
    return set(sites["well_id"][rows].tolist())


def held_out(sites, split, protocol) -> Counter:
    """Test sites, or wells, of every (cell type, siRNA)."""
    unit = "site_id" if protocol == "random_site" else "well_id"
    test = sites[split.test]
    units = {(row[unit], row["cell_type"], row["sirna_id"]) for row in test}
    return Counter(u[1:] for u in units)

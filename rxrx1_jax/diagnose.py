"""How much batch and how much biology embeddings hold: `python -m rxrx1_jax.diagnose RUN...`.

Reads RUN/embeddings.parquet (`--mode=embed`) and looks at the positive-control wells: the same
siRNAs on every plate, and no class of the network. For the embeddings as they are and after each
transform it prints, as means over cell types with two experiments or more:

    experiment found  a linear probe names the experiment of a site (less is better, down to chance)
    siRNA found again mean average precision of finding a well's siRNA in other experiments
    consistent        share of siRNAs whose replicates agree beyond chance (p < 0.05)
    planted           rank correlation of measured with planted distances between siRNAs (synthetic)

A method that lowers the first must be read with the others: mixing batches is easy if biology may
go. The transforms are fitted on the wells that are looked at, which takes the first below chance:
where the mean of every experiment is zero, leaving wells out shifts it the other way.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from rxrx1_jax.data.records import DatasetError, Records, find_dataset
from rxrx1_jax.methods import combat_harmony, transforms
from rxrx1_jax.methods import embedding_metrics as metrics
from rxrx1_jax.report.tables import Cell, Table

# (transform, batch); fitted on all control wells, ComBat and Harmony too.
TRANSFORMS: dict[str, tuple[Callable[..., np.ndarray], str] | None] = {
    "none": None,
    "centre_scale_plate": (transforms.centre_scale, "plate"),
    "sphering_experiment": (transforms.sphering, "experiment"),
    "tvn_plate": (transforms.tvn, "plate"),
    "combat_experiment": (combat_harmony.combat, "experiment"),
    "harmony_experiment": (combat_harmony.harmony, "experiment"),
}
COLUMNS = ("experiment found, %", "siRNA found again, mAP", "consistent, %", "planted")
SIGNIFICANT = 0.05


def diagnose(embeddings: np.ndarray, sites: np.ndarray, sirnas: dict | None) -> list[str]:
    """The cells of COLUMNS: what `measure` finds, with chance in brackets."""
    found = measure(embeddings, sites, sirnas)
    return [_cell(found.get(name)) for name in COLUMNS]


def measure(
    embeddings: np.ndarray, sites: np.ndarray, sirnas: dict | None
) -> dict[str, tuple[float, float]]:
    """{column: (figure, chance)} for some embeddings [n, d] of control sites [n].

    Means over the cell types with two experiments; without any, and "planted" without `sirnas`
    (metadata.json's planted effects, of synthetic screens only), a column is left out.
    """
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in COLUMNS}
    treated = sites["well_type"] == "positive_control"
    for cell_type in np.unique(sites["cell_type"]):
        rows = treated & (sites["cell_type"] == cell_type)
        mine, x = sites[rows], embeddings[rows]
        if len(np.unique(mine["experiment"])) < 2:
            continue
        probe = metrics.batch_predictability(
            x, mine["experiment"], mine["cell_type"], mine["sirna_id"]
        )[str(cell_type)]
        found[COLUMNS[0]].append((100 * probe.accuracy, 100 * probe.chance))
        wells, _, label, experiment = metrics.mean_profiles(
            x, mine["well_id"], mine["sirna_id"], mine["experiment"]
        )
        again = metrics.retrieval_map(wells, label, experiment)
        found[COLUMNS[1]].append((again.mean, again.chance))
        profiles, label, experiment = metrics.mean_profiles(
            x, mine["sirna_id"], mine["experiment"]
        )
        consistency = metrics.replicate_consistency(profiles, label, experiment)
        share = (consistency.p_value < SIGNIFICANT).mean()
        found[COLUMNS[2]].append((100 * share, 100 * SIGNIFICANT))
        if sirnas:
            means, label = metrics.mean_profiles(x, mine["sirna_id"])
            planted = metrics.planted_effects({"sirnas": sirnas}, label, str(cell_type))
            found[COLUMNS[3]].append((metrics.planted_recovery(means, planted).spearman, 0.0))
    return {
        name: (float(np.mean([v for v, _ in values])), float(np.mean([c for _, c in values])))
        for name, values in found.items()
        if values
    }


def _cell(found: tuple[float, float] | None) -> str:
    if found is None:
        return "-"
    mean, chance = found
    return f"{mean:.{digits(chance)}f} ({chance:.{digits(chance)}f})"


def digits(chance: float) -> int:
    """Decimals to print: one of a percentage, three of a figure up to 1."""
    return 1 if chance > 1 else 3


def control_embeddings(workdir: Path) -> tuple[np.ndarray, np.ndarray, dict | None]:
    """Embeddings [n, d] and sites [n] of a run's control wells, and the planted effects if any.

    Raises DatasetError, OSError: one line.
    """
    embeddings, records = all_embeddings(workdir)
    controls = np.flatnonzero(records.sites["well_type"] != "treatment")
    return embeddings[controls], records.sites[controls], records.metadata.get("sirnas")


def all_embeddings(workdir: Path) -> tuple[np.ndarray, Records]:
    """Embeddings [N, d] float32 of a run, and the records that they are of, in their order."""
    path = workdir / "embeddings.parquet"
    if not path.exists():
        raise DatasetError(f"{path} is missing; write it by rxrx1_jax.main with --mode=embed")
    data = json.loads((workdir / "config.json").read_text())["data"]
    records = Records(find_dataset(data["dir"], data["name"]))
    table = pq.read_table(path)
    if table["site_id"].to_pylist() != records.sites["site_id"].tolist():
        raise DatasetError(f"{path} is of another dataset than {records.path}; embed again")
    return np.column_stack([table[name].to_numpy() for name in table.column_names[1:]]), records


def run_table(workdir: Path) -> Table:
    """The table of one run. Raises DatasetError, OSError, ValueError: one line."""
    embeddings, sites, sirnas = control_embeddings(workdir)
    rows: list[list[Cell]] = []
    for name, chosen in TRANSFORMS.items():
        x = embeddings
        if chosen:
            try:
                x = chosen[0](x, sites, np.full(len(sites), True), chosen[1])
            except ImportError as error:  # a library of the extra `analysis`
                print(f"{name} is left out: {error}", file=sys.stderr)
                continue
        rows.append([name, *diagnose(x, sites, sirnas)])
    caption = f"{workdir}, positive-control wells; chance in brackets"
    return Table(caption, ["embeddings", *COLUMNS], rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m rxrx1_jax.diagnose", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="directories of runs")
    for run in parser.parse_args().runs:
        try:
            print(run_table(run).markdown())
        except (DatasetError, OSError, ValueError) as error:
            sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

"""How the variance of embeddings divides: `python -m rxrx1_jax.variance FILE`.

FILE: embeddings of any network, as for rxrx1_jax.correct; a run's are RUN/embeddings.parquet. For
each cell type the table has the shares of siRNA, experiment, plate, siRNA x experiment, well and
site: of the treatments as they are, of the treatments after the mean of the controls of each plate
is taken off, and of the positive controls as they are.
"""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rxrx1_jax.config import user_path
from rxrx1_jax.report import command

if TYPE_CHECKING:  # --help needs none of them
    from rxrx1_jax.data.embeddings import Embeddings
    from rxrx1_jax.methods.variance import Components
    from rxrx1_jax.report.tables import Cell, Table

HEAD = ["siRNA", "experiment", "plate", "siRNA x experiment", "well", "site"]
NOTES = [
    "Shares of the total, in %. The estimates have no bias, so one of nothing can be negative.",
    "–: the design cannot tell it. It is in the next column; a plate's is in the experiment, a"
    " site's in the well. The plate of the treatments also holds its group of siRNAs: that of the"
    " positive controls does not.",
    "Of sites that a network was trained on the share of siRNA is too large. The positive controls"
    " are no classes.",
]


def table_of(embeddings: "Embeddings") -> "Table":
    """Raises ValueError where no cell type has two experiments that share siRNAs."""
    import numpy as np

    from rxrx1_jax.report.tables import Table, Value

    rows: list[list[Cell]] = []
    for cell_type in np.unique(embeddings.sites["cell_type"]).tolist():
        found = list(_of_cell_type(embeddings, cell_type))
        rows += [[cell_type]] if found else []
        for name, parts in found:
            total = np.nansum(parts)
            rows.append([name, *(Value(100 * part / total) for part in parts)])
    if not rows:
        raise ValueError("no cell type has two experiments with the same siRNAs: expected one")
    caption = f"Variance of {embeddings.x.shape[1]} numbers per {embeddings.unit}, %"
    return Table(caption, ["sites", *HEAD], rows, NOTES)


def _of_cell_type(embeddings: "Embeddings", cell_type: str) -> "Iterator[tuple[str, Components]]":
    from rxrx1_jax.methods.transforms import centre
    from rxrx1_jax.methods.variance import components

    mine = embeddings.sites["cell_type"] == cell_type
    sites, x = embeddings.sites[mine], embeddings.x[mine]
    kind = sites["well_type"]
    chosen = [("treatments", kind == "treatment", x)]
    if (kind != "treatment").sum() > 1:
        centred = centre(x, sites, kind != "treatment", "plate")
        chosen.append(("treatments, centred", kind == "treatment", centred))
    chosen.append(("positive controls", kind == "positive_control", x))
    for name, rows, values in chosen:
        try:
            yield name, components(values[rows], sites[rows])
        except ValueError:
            continue


def main() -> int:
    parser = command.Plain("variance", __doc__ or "")
    parser.add_argument("embeddings", type=user_path, metavar="FILE",
                        help="CSV, TSV, Parquet, .h5ad, zip or gzip, with ids")  # fmt: skip
    parser.add_argument("--metadata", type=user_path, metavar="FILE",
                        help="of the screen, where the table has none")  # fmt: skip
    options = parser.parse_args()

    def work() -> None:
        from rxrx1_jax.data import tables

        found = tables.read(options.embeddings, options.metadata or "")
        for remark in found.remarks:
            print(remark, file=sys.stderr)
        print(table_of(found.embeddings).markdown())

    return command.run(work)


if __name__ == "__main__":
    sys.exit(main())

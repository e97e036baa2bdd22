"""Accuracy of LDA-12 on a dataset: `python -m rxrx1_jax.lda12 --name=rxrx1/synthetic`.

LDA-12 is linear discriminant analysis of twelve intensities of a site (`methods.lda12`). It needs
no image, no training and no JAX: seconds. A network should be ahead of it. Kaggle's pixel_stats.csv
does as well:

    python -m rxrx1_jax.lda12 --pixel_stats=pixel_stats.csv --metadata=metadata.csv
"""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rxrx1_jax.config import user_path
from rxrx1_jax.fields import FIELDS
from rxrx1_jax.report import command

if TYPE_CHECKING:  # --help needs none of them
    from rxrx1_jax.data.images import Sites
    from rxrx1_jax.data.splits import Split
    from rxrx1_jax.report.tables import Cell, Table


def table_of(sites: "Sites", pixels: int, splits_of: "Mapping[str, list[Split]]") -> "Table":
    """A row per protocol: means over its splits.

    pixels: of one plane. splits_of: {protocol: its folds}.
    """
    from rxrx1_jax.data.splits import classes_of
    from rxrx1_jax.methods.lda12 import lda12
    from rxrx1_jax.methods.statistics import Unit, worst_experiment
    from rxrx1_jax.report.tables import Table, Value, percent
    from rxrx1_jax.training.predictions import accuracies

    rows: list[list[Cell]] = []
    for protocol, folds in splits_of.items():
        found = [accuracies(lda12(sites, pixels, split, protocol)) for split in folds]
        figures = [
            (a["site"]["all"], a["well"]["all"], a["top5"],
             worst_experiment(a["site"]["experiment"])[1]) for a in found
        ]  # fmt: skip
        units = [Unit("", fold, 0) for fold in range(len(folds))]
        scores = [dict(zip(units, column, strict=True)) for column in zip(*figures, strict=True)]
        chance = 100 / len(classes_of(sites, protocol))
        rows.append([protocol, *map(percent, scores), Value(chance)])
    head = ["split", "by site", "by well", "top-5", "worst experiment", "chance"]
    return Table("LDA-12: accuracy of the test sites, %", head, rows, ["± is the sd over folds."])


def main() -> int:
    parser = command.Plain("lda12", __doc__ or "")
    parser.add_argument("--data_dir", type=user_path, default="data", metavar="DIR",
                        help="as the setting data.dir")  # fmt: skip
    parser.add_argument("--name", default="rxrx1/native", help="as the setting data.name")
    parser.add_argument("--pixel_stats", type=user_path, metavar="FILE",
                        help="Kaggle's pixel_stats.csv, in place of a dataset")  # fmt: skip
    parser.add_argument("--metadata", type=user_path, metavar="FILE",
                        help="the release's metadata.csv, with --pixel_stats")  # fmt: skip
    parser.add_argument("--protocols", nargs="+", choices=FIELDS["data.protocol"].valid,
                        default=["batch", "random_site", "random_well"])  # fmt: skip
    parser.add_argument("--cell_type", default="all", help="all, or one")
    options = parser.parse_args()
    if bool(options.pixel_stats) != bool(options.metadata):
        parser.error("--pixel_stats and --metadata go together")

    def work() -> None:
        from rxrx1_jax.data import pixel_stats, records, splits

        if options.pixel_stats:
            pixels = pixel_stats.PIXELS
            sites = pixel_stats.read_pixel_stats(options.pixel_stats, options.metadata, pixels)
        else:
            images = records.open_images(options.data_dir, options.name)
            sites, pixels = images.sites, images.image_shape[1] * images.image_shape[2]
        chosen = {
            protocol: [
                splits.make_split(sites, protocol, fold, cell_type=options.cell_type)
                for fold in range(1 if protocol in splits.FIXED else splits.FOLDS)
            ]
            for protocol in options.protocols
        }
        print(table_of(sites, pixels, chosen).markdown())

    return command.run(work)


if __name__ == "__main__":
    sys.exit(main())

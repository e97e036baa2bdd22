"""What can be done with a built dataset.

python -m tfds_builder.rxrx1 verify DIR [--all]
python -m tfds_builder.rxrx1 table DIR
python -m tfds_builder.rxrx1 show DIR --out=FOLDER [--experiment=HUVEC-01 --plate=1 --sirna_id=3]

DIR is DATA_DIR/rxrx1/CONFIG, as `tfds build` wrote it, or the folder of one version in it.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read by TensorFlow when it is imported

from .look import show, sites, stored, verify  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 1 where a check failed or the dataset cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python -m tfds_builder.rxrx1", description="Look at a built dataset."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    verify_parser = commands.add_parser("verify", help="check that it is whole and undamaged")
    verify_parser.add_argument(
        "--all",
        action="store_true",
        help="read every record; without it, all records of one experiment of each cell type",
    )
    show_parser = commands.add_parser("show", help="draw a plate, an siRNA and a site")
    show_parser.add_argument("--out", type=Path, required=True, help="folder of the PNG files")
    show_parser.add_argument("--experiment", help="of the plate and the site (default: the first)")
    show_parser.add_argument("--plate", type=int, help="1 to 4 (default: the first there is)")
    show_parser.add_argument(
        "--sirna_id", type=int, help="default: the first treatment on the plate"
    )
    show_parser.add_argument(
        "--cell_type", help="this one alone; its siRNA is drawn as counts and standardised"
    )
    table_parser = commands.add_parser(
        "table", help="write the table of sites that training needs, for a dataset of version 1"
    )
    for sub in (verify_parser, table_parser, show_parser):
        sub.add_argument("dataset", type=Path, metavar="DIR", help="DATA_DIR/rxrx1/CONFIG")
    options = parser.parse_args(arguments)
    try:
        builder = stored.open_dataset(options.dataset)
        if options.command == "verify":
            checks = verify.verify(builder, options.all)
            print(verify.report(builder, checks))
            return int(any(check.faults for check in checks))
        if options.command == "table":
            print(sites.write_table(builder))
            return 0
        chosen = (options.experiment, options.plate, options.sirna_id, options.cell_type)
        paths = show.show(builder, options.out, *chosen)
        print(*paths, sep="\n")
        return 0
    except (stored.DatasetError, OSError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

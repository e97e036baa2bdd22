"""Builds the dataset, checks it and looks at it.

python -m tfds_builder.rxrx1 build --config=CONFIG --data_dir=DATA_DIR [as for `tfds build`]
python -m tfds_builder.rxrx1 verify DIR [--all]
python -m tfds_builder.rxrx1 table DIR
python -m tfds_builder.rxrx1 show DIR --out=FOLDER [--experiment=HUVEC-01 --plate=1 --sirna_id=3]

DIR is DATA_DIR/rxrx1/CONFIG, or the folder of one version in it.
"""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from .quiet import quiet

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read by TensorFlow when it is imported


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 1 where a check failed or the dataset cannot be read or built."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments:
        print(__doc__.strip())
        return 1
    options = argparse.Namespace(command="build") if arguments[0] == "build" else parse(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # the terminal may know no letters but ASCII
        sys.stdout.reconfigure(errors="backslashreplace")
    with quiet():
        from .build import build, one_line  # TensorFlow, which `--help` does without

        try:
            if options.command == "build":
                folder = build(arguments[1:])
                print(f"next: python -m tfds_builder.rxrx1 show {folder} --out=look")
                code = 0
            else:
                code = look(options)
            sys.stdout.flush()
            return code
        except BrokenPipeError:  # who reads the output, `| head`, has seen enough
            for stream in (sys.stdout, sys.stderr):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            return 1
        except (Exception, KeyboardInterrupt) as error:
            print(one_line(error), file=sys.stderr)
            return 130 if isinstance(error, KeyboardInterrupt) else 1


def look(options: argparse.Namespace) -> int:
    """Runs a command that reads a dataset."""
    from .look import sites, stored, verify
    from .machine import local

    builder = stored.open_dataset(local(options.dataset))
    if options.command == "verify":
        checks = verify.verify(builder, options.all)
        print(verify.report(builder, checks))
        return int(any(check.faults for check in checks))
    if options.command == "table":
        print(sites.write_table(builder))
        return 0
    from .look import show  # matplotlib

    chosen = (options.experiment, options.plate, options.sirna_id, options.cell_type)
    print(*show.show(builder, local(options.out), *chosen), sep="\n")
    return 0


class Parser(argparse.ArgumentParser):
    """Wrong usage is one line and status 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; --help says more\n")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of one command. Ends the process with one line where they cannot be."""
    parser = Parser(
        prog="python -m tfds_builder.rxrx1",
        description="Build the dataset, check it and look at it.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="make the dataset; arguments as for `tfds build`")
    verify_parser = commands.add_parser("verify", help="check that it is whole and undamaged")
    verify_parser.add_argument(
        "--all",
        action="store_true",
        help="read every record; without it, all records of one experiment of each cell type",
    )
    show_parser = commands.add_parser("show", help="draw plates, an siRNA and a site")
    show_parser.add_argument("--out", required=True, help="folder of the PNG files")
    show_parser.add_argument("--experiment", help="default: the first, or the first with the siRNA")
    show_parser.add_argument("--plate", type=int, help="1 to 4; default: the first there is")
    show_parser.add_argument(
        "--sirna_id", type=int, help="default: the first treatment on the plate"
    )
    show_parser.add_argument("--cell_type", help="its experiments alone, and so more of them")
    table_parser = commands.add_parser(
        "table", help="write the table of sites that training needs, for a dataset of version 1"
    )
    for sub in (verify_parser, table_parser, show_parser):
        sub.add_argument("dataset", metavar="DIR", help="DATA_DIR/rxrx1/CONFIG")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())

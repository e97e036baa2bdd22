"""python -m tfds_builder.rxrx1.synthetic OUT [--size 64 --seed 0 ...]"""

import argparse
from dataclasses import fields
from pathlib import Path

from .screen import Screen
from .write import write_release


def main() -> None:
    """Command line: one option per field of Screen."""
    parser = argparse.ArgumentParser(description="Write a synthetic RxRx1 release.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--processes", type=int, default=None)
    for f in fields(Screen):
        kind = type(f.default)
        parser.add_argument(f"--{f.name.replace('_', '-')}", type=kind, default=f.default)
    options = vars(parser.parse_args())
    out, processes = options.pop("out"), options.pop("processes")
    try:
        write_release(Screen(**options), out, processes)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()

"""Trains, evaluates, predicts, embeds.

    python -m rxrx1_jax.main --config=demo:protocol=batch,fold=0 --workdir=runs/mine
    python -m rxrx1_jax.main --config=demo --config.optim.epochs=60 --workdir=runs/longer
    python -m rxrx1_jax.main --workdir=runs/mine --mode=embed

The first trains a run; the same command resumes it. The second changes a field of the config. The
third needs no config: the run has its own.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

from rxrx1_jax import config as config_lib

MODES = {
    "train": "train or resume, and evaluate",
    "evaluate": "evaluate the newest checkpoint again",
    "predict": "predict every treatment site",
    "embed": "embed every site",
}
# Compiled programs are kept between runs; set the variable to choose the place.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rxrx1_jax"


class Parser(argparse.ArgumentParser):
    """The arguments that rxrx1_jax.main shares with the commands that start it many times."""

    def __init__(self, module: str, about: str) -> None:
        super().__init__(
            prog=f"python -m {module}", description=about, allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        self.add_argument("--config", help="one of ours by its name, or a file (a path); then "
                          ":fold=1,optim.epochs=5 sets fields (of data by bare name)")  # fmt: skip
        self.add_argument("--config.FIELD", metavar="VALUE", help="any field that "
                          "`python -m rxrx1_jax.main --help` lists")  # fmt: skip
        self.add_argument("--workdir", help="folder of the run or runs; the same command resumes",
                          type=lambda text: Path(text).expanduser())  # fmt: skip

    def parse(self, argv: list[str]) -> argparse.Namespace:
        """The options. `config` is its name; `fields` {field: text} is what changes in it.

        Exits with one line where an argument is unknown or --workdir is missing.
        """
        words, rest, fields = list(argv), [], {}
        while words:
            name, equals, text = words.pop(0).partition("=")
            if name.startswith("--config."):
                if not equals and (not words or words[0].startswith("--")):
                    self.error(f"{name}: expected {name}=VALUE")
                fields[name.removeprefix("--config.")] = text if equals else words.pop(0)
            else:
                rest.append(name + equals + text)
        options = self.parse_args(rest)
        if options.workdir is None:
            self.error(f"expected --workdir and --config, as in `{self.prog} --config=demo "
                       "--workdir=runs/mine`")  # fmt: skip
        options.fields = fields
        return options

    def error(self, message: str) -> NoReturn:
        sys.exit(f"error: {message}; --help says more")


def read_config(options: argparse.Namespace) -> config_lib.ConfigDict:
    """The config of `Parser.parse`; without --config that of the run in --workdir.

    Raises ConfigError.
    """
    from rxrx1_jax.training import run_dir

    if options.config is not None:
        config = config_lib.read(options.config)
    elif (options.workdir / "config.json").exists():
        config = run_dir.read_settings(options.workdir)
    else:
        raise config_lib.ConfigError(
            f"{options.workdir}: no run there (no config.json), so --config is needed, for example "
            "--config=demo"
        )
    config_lib.change(config, options.fields)
    config_lib.check(config)
    return config


def arguments_of_config(options: argparse.Namespace) -> list[str]:
    """The --config of this command and the fields changed with it, for a child."""
    fields = [f"--config.{field}={text}" for field, text in options.fields.items()]
    return [f"--config={options.config}", *fields]


def main(argv: list[str]) -> int:
    """Runs the command; returns its exit code. Exits with a line that begins with "error: "."""
    parser = Parser("rxrx1_jax.main", __doc__ or "")
    modes = "; ".join(f"{mode}: {what}" for mode, what in MODES.items())
    parser.add_argument("--mode", choices=MODES, default="train", help=modes)
    parser.epilog = _fields()
    options = parser.parse(argv)
    workdir = options.workdir
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
    # By default only what takes a second to compile is kept.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    try:
        config = read_config(options)
    except (ValueError, OSError) as error:
        sys.exit(_line(error))
    # Imported here, so that --help and a wrong field are answered at once.
    from absl import logging

    from rxrx1_jax.data import images, splits
    from rxrx1_jax.training import checkpoint, processes, run_dir, train
    from rxrx1_jax.training.run import EMBEDDINGS, Run

    logging.set_verbosity(logging.WARNING)  # orbax tells each file it writes
    try:
        processes.join()
        if options.mode == "train":
            train.train_and_evaluate(config, workdir)
        else:
            run = Run.open(workdir, config_lib.flat(config))
            if options.mode == "evaluate":
                accuracy = run.evaluate(workdir)["accuracy"]
                print(
                    f"accuracy by site {accuracy['site']['all']:.4f}, "
                    f"by well {accuracy['well']['all']:.4f}: {workdir}/results.json"
                )
            elif options.mode == "predict":
                run.predict_all(path := workdir / "predictions_all.parquet")
                print(path)
            else:
                run.embed(path := workdir / EMBEDDINGS)
                print(path)
        processes.leave()
    except processes.Preempted as stop:
        processes.leave()
        print(f"{workdir}: {stop}", file=sys.stderr)
        return processes.EXIT_CODE
    except (
        config_lib.ConfigError, run_dir.RunError, images.DatasetError, splits.SplitError,
        checkpoint.CheckpointError, processes.LaunchError, FloatingPointError, OSError,
    ) as error:  # fmt: skip
        sys.exit(_line(error))
    return 0


def _line(error: Exception) -> str:
    return f"error: {str(error).strip().splitlines()[-1].strip()}"


def _fields() -> str:
    lines = ["fields of the config, with the values of the paper (--config.train.seed=1 sets one):"]
    for field, (value, about, valid, *_) in config_lib.FIELDS.items():
        lines.append(f"  {f'{field}={value}':<34} {about}")
        if valid:
            lines.append(f"{'':38}{' | '.join(valid)}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

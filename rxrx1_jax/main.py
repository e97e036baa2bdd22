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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rxrx1_jax import config as config_lib
from rxrx1_jax.report import command
from rxrx1_jax.training import faults, locks

Run = TypeVar("Run")
MODES = {
    "train": "train or resume, and evaluate",
    "evaluate": "evaluate the newest checkpoint again",
    "predict": "predict every treatment site",
    "embed": "embed every site",
    "plan": "memory, disk and time of the training, which is not begun",
}


class Parser(command.Plain):
    """The arguments that rxrx1_jax.main shares with the commands that start it many times."""

    def __init__(self, name: str, about: str) -> None:
        super().__init__(name, about)
        self.add_argument("--config", help="one of ours by its name, or a file (a path); then "
                          ":fold=1,optim.epochs=5 sets fields (of data by bare name)")  # fmt: skip
        self.add_argument("--config.FIELD", metavar="VALUE", help="any field that "
                          "`python -m rxrx1_jax.main --help` lists")  # fmt: skip
        self.add_argument("--data_dir", metavar="DIR", help="short for --config.data.dir")
        self.add_argument("--workdir", help="folder of the run or runs; the same command resumes",
                          type=config_lib.user_path)  # fmt: skip
        self.add_argument("--no-lock", action="store_true", help="on a file system without locks: "
                          "nothing else works in --workdir")  # fmt: skip

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
        if options.data_dir is not None:
            fields["data.dir"] = options.data_dir
        options.fields = fields
        if options.no_lock:
            os.environ[locks.NO_LOCK] = "1"  # for children, too
        return options


class SweepParser(Parser):
    """The arguments of the commands that start many runs."""

    def __init__(self, name: str, about: str) -> None:
        super().__init__(name, about)
        self.add_argument("--workers", type=at_least(1), metavar="N", help="runs at once, each on "
                          "a GPU or a share of one, and of the cores; one per GPU unless given, "
                          "one on CPUs")  # fmt: skip
        one = self.add_mutually_exclusive_group()
        one.add_argument("--collect", action="store_true", help="only make table and page")
        one.add_argument("--tasks", action="store_true", help="only print the number of runs")
        one.add_argument("--task", type=at_least(0), metavar="I",
                         help="only the I-th run, from 0 on; no table")  # fmt: skip


def at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r}, expected {least} or more")
        return int(text)

    return number


def of_task(runs: Sequence[Run], task: int | None) -> list[Run]:
    """All of `runs` or, of a task, its own. Raises ValueError for a task beyond them."""
    if task is None:
        return list(runs)
    if task >= len(runs):
        raise ValueError(f"--task={task}: there are {len(runs)} runs, 0 to {len(runs) - 1}")
    return [runs[task]]


def read_config(options: argparse.Namespace, to_train: bool = True) -> config_lib.ConfigDict:
    """The config of `Parser.parse`; without --config that of the run in --workdir.

    to_train: whether a training must be possible with it. Raises ConfigError, RunError.
    """
    from rxrx1_jax.training import run_dir

    if options.config is not None:
        config = config_lib.read(options.config)
    elif (options.workdir / "config.json").exists() or not to_train:
        config = run_dir.read_settings(options.workdir)
    else:
        raise config_lib.ConfigError(
            f"{options.workdir}: no run here (no config.json); expected"
            f" {run_dir.runs_near(options.workdir)}, or --config (as --config=demo) for a new one"
        )
    config_lib.change(config, options.fields)
    if to_train:
        config_lib.check(config)
    return config


def arguments_of_config(options: argparse.Namespace) -> list[str]:
    """The --config of this command and the fields changed with it, for a child."""
    fields = [f"--config.{field}={text}" for field, text in options.fields.items()]
    return [f"--config={options.config}", *fields]


def main(argv: list[str]) -> int:
    """Runs the command; returns its exit code. Exits with a line that begins with "error: "."""
    parser = Parser("main", __doc__ or "")
    modes = "; ".join(f"{mode}: {what}" for mode, what in MODES.items())
    parser.add_argument("--mode", choices=MODES, default="train", help=modes)
    parser.add_argument("--out", type=config_lib.user_path, help="folder for what evaluate, "
                        "predict and embed write, if not the run's own")  # fmt: skip
    parser.add_argument("--log_probs", action="store_true", help="predict writes log_probs.parquet,"
                        " too: the log-probability of each class, for each site")  # fmt: skip
    if not argv:
        print(parser.format_usage(), __doc__, sep="\n")
    if {"-h", "--help"} & {*argv}:
        parser.epilog = _fields(argv)
    options = parser.parse(argv)
    workdir: Path = options.workdir
    out: Path = options.out or workdir
    if options.out and options.mode == "train":
        parser.error(f"--out={options.out}: expected with --mode=evaluate, predict or embed")

    if options.log_probs and options.mode != "predict":
        parser.error(f"--log_probs with --mode={options.mode}: expected --mode=predict")

    def work() -> int:
        config = read_config(options, to_train=options.mode in ("train", "plan"))
        # Read when a backend starts.
        flags, name = os.environ.get("XLA_FLAGS", ""), faults.DETERMINISTIC.partition("=")[0]
        on_cpu = os.environ.get("JAX_PLATFORMS") == "cpu"
        if config.train.deterministic and name not in flags and not on_cpu:
            os.environ["XLA_FLAGS"] = f"{flags} {faults.DETERMINISTIC}".strip()
        # Imported here, so that --help and a wrong field are answered at once.
        from absl import logging

        from rxrx1_jax.training import plan, processes, train

        logging.set_verbosity(logging.FATAL)  # the errors of orbax are raised, too
        processes.join()
        status = 0
        try:
            if options.mode == "train":
                train.train_and_evaluate(config, workdir)
            elif options.mode == "plan":
                for line in plan.show(train.set_up(config, workdir), workdir):
                    print(line, flush=True)
            else:
                print(_work(options, config_lib.flat(config), out))
        except processes.Preempted as stop:
            print(f"{workdir}: {stop}", file=sys.stderr)
            status = processes.EXIT_CODE
        processes.leave()
        return status

    # A ValueError may be a fault of a plug-in or of ours, which needs its traceback.
    return command.run(work, out, told=())


def _work(options: argparse.Namespace, settings: dict[str, Any], out: Path) -> str:
    """Does what a mode does with a trained run; returns what to say of it."""
    from rxrx1_jax.training.log_probs import NAME as LOG_PROBS
    from rxrx1_jax.training.run import EMBEDDINGS, PREDICTIONS_ALL, Run

    run = Run.open(options.workdir, settings)
    run.checkpoint()
    command.check_writable("--out", out)
    out.mkdir(parents=True, exist_ok=True)
    if options.mode == "evaluate":
        accuracy = run.evaluate(out)["accuracy"]
        by_site, by_well = (100 * accuracy[unit]["all"] for unit in ("site", "well"))
        return f"accuracy by site {by_site:.1f} %, by well {by_well:.1f} %: {out}/results.json"
    if options.mode == "predict":
        run.predict_all(out / PREDICTIONS_ALL, options.log_probs)
        return f"{out}/{PREDICTIONS_ALL}" + f" {out}/{LOG_PROBS}" * options.log_probs
    run.embed(out / EMBEDDINGS)
    return f"{out}/{EMBEDDINGS}"


def _fields(argv: list[str]) -> str:
    """The fields with the values of the --config that is asked for, and what is valid."""
    given = [word.partition("=")[2] for word in argv if word.startswith("--config=")]
    try:
        config = config_lib.read(given[-1]) if given else config_lib.default()
    except config_lib.ConfigError as error:
        return f"error: {error}"
    whose = given[-1] if given else "the paper"
    lines = [f"fields of the config, with the values of {whose} (--config.train.seed=1 sets one):"]
    for field, value in config_lib.flat(config).items():
        _, about, valid, *_ = config_lib.FIELDS[field]
        lines.append(f"  {f'{field}={value}':<34} {about}")
        if valid:
            lines.append(f"{'':38}{' | '.join(valid)}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

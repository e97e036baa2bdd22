"""Trains, evaluates, predicts, embeds: `python -m rxrx1_jax.main --config=CONFIG --workdir=RUN`."""

import difflib
import os
import re
import runpy
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file; configs/default.py describes every field.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory of the run; the same command on it resumes."
)
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "evaluate", "predict", "embed"],
    "train (resumes) and evaluate; evaluate a trained run; predict every treatment site; embed"
    " every site.",
)
flags.mark_flags_as_required(["config", "workdir"])

# Compiled programs are kept between runs; set the variable to choose the place.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rxrx1_jax"


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; flags begin with --")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # orbax tells each file it writes
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
    # By default only what takes a second to compile is kept.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    # Imported here, so that --help answers at once.
    from rxrx1_jax.data import records, splits
    from rxrx1_jax.training import checkpoint, embed, preemption, processes, run_dir, train

    try:
        processes.join()
        config, workdir = _CONFIG.value, Path(_WORKDIR.value or "")
        if _MODE.value == "train":
            train.train_and_evaluate(config, workdir)
        elif _MODE.value == "evaluate":
            accuracy = train.evaluate_run(config, workdir)["accuracy"]
            print(
                f"accuracy by site {accuracy['site']['all']:.4f}, "
                f"by well {accuracy['well']['all']:.4f}: {workdir}/results.json"
            )
        elif _MODE.value == "predict":
            print(train.predict_run(config, workdir))
        else:
            print(embed.embed_run(config, workdir))
        processes.leave()
    except preemption.Preempted as stop:
        processes.leave()
        print(f"{workdir}: {stop}", file=sys.stderr)
        sys.exit(preemption.EXIT_CODE)
    except (
        run_dir.RunError, records.DatasetError, splits.SplitError, checkpoint.CheckpointError,
        processes.LaunchError, FloatingPointError, OSError,
    ) as error:  # fmt: skip
        sys.exit(f"error: {str(error).strip().splitlines()[-1].strip()}")


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the command line; a config file or field at fault is a line, not a traceback."""
    try:
        return flags.FLAGS(argv)
    except (AttributeError, KeyError):  # ml_collections: an override of a field that is not there
        words = [word for flag in argv for word in flag.split("=", 1)]
        path = words[words.index("--config") + 1]
        config = runpy.run_path(path.partition(":")[0])["get_config"]()
        fields = [f"{section}.{name}" for section in config for name in config[section]]
        for word in words:
            field = word.removeprefix("--config.")
            if word.startswith("--config.") and field not in fields:
                near = difflib.get_close_matches(field, fields, n=3, cutoff=0.4) or fields
                sys.exit(f"error: the config has no field {field}; expected {' or '.join(near)}")
        raise
    except flags.Error as error:
        # absl wraps what a config file raised into a traceback; its own message is what helps.
        raised = re.findall(r"^\s*\w*(?:Error|Exception): (.*)$", str(error), re.MULTILINE)
        sys.exit(f"error: {raised[-1] if raised else str(error).splitlines()[-1].strip()}")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)

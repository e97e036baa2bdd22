"""`python -m tfds_builder.rxrx1 build`: `tfds build` of this dataset, whose errors are one line."""

import contextlib
import io
import json
import logging
import traceback
from collections.abc import Sequence
from unittest import mock

from etils import epath

from .builder_configs import NAMES
from .machine import expand
from .release.metadata import ReleaseError
from .rxrx1_dataset_builder import Builder


def build(arguments: Sequence[str]) -> epath.Path:
    """Builds as `tfds build ARGUMENTS` does, from any folder, and returns the dataset's.

    Raises:
      ReleaseError: also for arguments that TFDS does not know.
      ValueError, OSError, RuntimeError: see `Builder.download_and_prepare`.
    """
    logging.getLogger().setLevel(logging.ERROR)  # Beam's imports warn of what nobody asked for
    from absl import logging as absl_logging
    from tensorflow_datasets.scripts.cli import cli_utils, main

    logging.getLogger().setLevel(logging.WARNING)
    absl_logging.set_verbosity(absl_logging.ERROR)
    said = io.StringIO()
    command = ["tfds", "build", "--imports=tfds_builder.rxrx1", "rxrx1", *arguments]
    try:
        with contextlib.redirect_stderr(said):
            args = main._parse_flags(command)
    except SystemExit as end:
        if not end.code:  # of --help
            raise
        last = said.getvalue().strip().splitlines()[-1]
        raise ReleaseError(last.partition("error: ")[2] or last) from None
    config = args.command.generation.config
    if not config and args.command.generation.config_idx is None:
        raise ReleaseError(f"--config is missing: one of {', '.join(NAMES)}, or a part as JSON")
    for group in (args.command.paths, args.command.publishing):
        folders = {name: path for name, path in vars(group).items() if isinstance(path, epath.Path)}
        vars(group).update({name: expand(path) for name, path in folders.items()})
    name = config
    if config is not None and config.startswith("{"):
        try:
            name = json.loads(config).get("name")
        except ValueError as error:
            raise ReleaseError(f"--config: {config} is not JSON ({error})") from error
    # TFDS ends with 99 lines on the dataset.
    with mock.patch.object(cli_utils, "print", lambda *_: None, create=True):
        args.execute()
    name = NAMES[args.command.generation.config_idx] if name is None else name
    return args.command.paths.data_dir / Builder.name / name / str(Builder.VERSION)


def one_line(error: BaseException) -> str:
    """What a user needs of an error: its message, of an unforeseen one its kind and place too."""
    if isinstance(error, (ValueError, OSError, RuntimeError, KeyboardInterrupt)) and str(error):
        return f"error: {error}"
    place = traceback.extract_tb(error.__traceback__)[-1]
    said = " ".join(f"{type(error).__name__}: {error}".split())
    return f"error: {said} ({place.filename}:{place.lineno})"

"""The tiny release, built once a session by the real builder: `tiny` = (release, dataset)."""

from pathlib import Path
from typing import NamedTuple

import pytest
from ml_collections import ConfigDict
from tiny_release import tiny_rows, write_tiny_release

from configs import demo

SIZE = 16


def write_few(folder: Path, batch_size: int, epochs: int, **sizes: int) -> tuple[ConfigDict, Path]:
    """(config, its file): the demo's, small, on a synthetic screen of 16 px built in `folder`."""
    pytest.importorskip("tensorflow_datasets", reason="needs the extra `build`")
    from tfds_builder.rxrx1 import Builder, Rxrx1Config

    parameters = Rxrx1Config(name="few", size=SIZE, screen={**sizes, "plates": 1})
    Builder(config=parameters, data_dir=folder).download_and_prepare()
    config = demo.get_config()
    config.data.dir, config.data.name = str(folder), "rxrx1/few"
    config.model.width = 8
    config.optim.batch_size = config.eval.batch_size = batch_size
    config.optim.epochs, config.optim.warmup_epochs = epochs, 1.0
    config.train.eval_every, config.train.checkpoint_every = 0, 1
    path = folder / "config.py"
    path.write_text(
        "from ml_collections import ConfigDict\n"
        f"def get_config():\n    return ConfigDict({config.to_dict()!r})\n"
    )
    return config, path


class Tiny(NamedTuple):
    release: Path  # a folder rxrx1, as the archives unpack; holds metadata.csv and images/
    dataset: Path  # .../rxrx1/tiny/VERSION, read only: copy it to break it
    rows: dict[str, dict[str, str]]  # metadata.csv by site_id


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Tiny:
    tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra `build`")
    from tfds_builder.rxrx1 import Builder, Rxrx1Config

    release = write_tiny_release(tmp_path_factory.mktemp("tiny") / "rxrx1", SIZE)
    builder = Builder(
        config=Rxrx1Config(name="tiny", size=SIZE), data_dir=tmp_path_factory.mktemp("tiny_data")
    )
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=str(release.parent))
    )
    return Tiny(release, Path(builder.data_path), {row["site_id"]: row for row in tiny_rows()})

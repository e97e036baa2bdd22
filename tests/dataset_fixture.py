"""The tiny release and a finished run on it, each made once for all workers."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from ml_collections import ConfigDict
from screens import tiny_config
from tiny_release import tiny_rows, write_tiny_release

from configs import demo

SIZE = 16
STEPS = 8  # of the run: 21 training sites, batches of 8, 3 epochs


class Tiny(NamedTuple):
    release: Path  # a folder rxrx1, as the archives unpack; holds metadata.csv and images/
    dataset: Path  # .../rxrx1/tiny/VERSION, read only: copy it to break it
    rows: dict[str, dict[str, str]]  # metadata.csv by site_id


class Finished(NamedTuple):
    config: ConfigDict
    workdir: Path
    results: dict[str, Any]


def prepared(
    release: Path | str, data_dir: Path | str, file_format: str = "tfrecord",
    beam_runner: str | None = None, **config: Any,
) -> Any:  # fmt: skip
    """Our builder, after it has made a dataset. config: fields of Rxrx1Config other than these."""
    tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra `build`")
    from tfds_builder.rxrx1 import Builder, Rxrx1Config

    builder = Builder(
        config=Rxrx1Config(**{"name": "tiny", "size": SIZE, **config}), data_dir=data_dir
    )
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(
            manual_dir=str(release), beam_runner=beam_runner
        ),
        file_format=file_format,
    )
    return builder


def build(release: Path, data_dir: Path, name: str = "tiny") -> Path:
    """The dataset that the real builder makes of a release of `SIZE` px."""
    return Path(prepared(release.parent, data_dir, name=name).data_path)


def build_screen(data_dir: Path, name: str = "few", **sizes: int) -> None:
    """Builds rxrx1/NAME, a synthetic screen of one plate an experiment."""
    pytest.importorskip("tensorflow_datasets", reason="needs the extra `build`")
    from tfds_builder.rxrx1 import Builder, Rxrx1Config

    parameters = Rxrx1Config(name=name, size=SIZE, screen={**sizes, "plates": 1})
    Builder(config=parameters, data_dir=data_dir).download_and_prepare()


def make_config(dataset: Path, **changes: Any) -> ConfigDict:
    """`tiny_config` for a dataset on disk."""
    return tiny_config(data__dir=str(dataset.parents[2]), data__name="rxrx1/tiny", **changes)


def write_config(config: ConfigDict, path: Path) -> Path:
    """A config file of these settings."""
    path.write_text(
        "from ml_collections import ConfigDict\n"
        f"def get_config():\n    return ConfigDict({config.to_dict()!r})\n"
    )
    return path


def write_few(folder: Path, batch_size: int, epochs: int, **sizes: int) -> tuple[ConfigDict, Path]:
    """(config, its file): the demo's, small, on a synthetic screen of 16 px built in `folder`."""
    build_screen(folder, **sizes)
    config = demo.get_config()
    config.data.dir, config.data.name = str(folder), "rxrx1/few"
    config.model.width = 8
    config.optim.batch_size = config.eval.batch_size = batch_size
    config.optim.epochs, config.optim.warmup_epochs = epochs, 1.0
    config.train.eval_every, config.train.checkpoint_every = 0, 1
    return config, write_config(config, folder / "config.py")


@pytest.fixture(scope="session")
def tiny(once) -> Tiny:
    def make(folder: Path) -> None:
        build(write_tiny_release(folder / "rxrx1", SIZE), folder / "data")

    folder = once("tiny", make)
    (dataset,) = folder.glob("data/rxrx1/tiny/*.*.*")
    return Tiny(folder / "rxrx1", dataset, {row["site_id"]: row for row in tiny_rows()})


@pytest.fixture
def copy(tiny, tmp_path) -> Path:
    """A copy of the dataset, to damage."""
    return Path(shutil.copytree(tiny.dataset, tmp_path / Path(*tiny.dataset.parts[-3:])))


@pytest.fixture(scope="session")
def plain(tiny) -> Any:
    """Our builder as a later process finds it, its dataset already on the disk."""
    from tfds_builder.rxrx1 import Builder

    return Builder(config="tiny", data_dir=tiny.dataset.parents[2])


@pytest.fixture(scope="session")
def array_record(tiny, once) -> Path:
    """The same dataset as ArrayRecord files, read only."""
    folder = once(
        "array_record", lambda folder: prepared(tiny.release, folder, file_format="array_record")
    )
    (dataset,) = folder.glob("rxrx1/tiny/*.*.*")
    return dataset


@pytest.fixture(scope="session")
def finished(tiny, once) -> Finished:
    """A finished run on the tiny dataset, read only: `own_run` is a copy to write to."""
    config = make_config(tiny.dataset)

    def make(folder: Path) -> None:
        from rxrx1_jax.training import train

        train.train_and_evaluate(config, folder / "run")

    workdir = once("finished", make) / "run"
    return Finished(config, workdir, json.loads((workdir / "results.json").read_text()))


@pytest.fixture
def own_run(finished, tmp_path) -> Finished:
    """A copy of the finished run, to write to."""
    shutil.copytree(finished.workdir, tmp_path / "own_run")
    return finished._replace(workdir=tmp_path / "own_run")

"""The tiny release, built once a session by the real builder: `tiny` = (release, dataset)."""

from pathlib import Path
from typing import NamedTuple

import pytest
from tiny_release import tiny_rows, write_tiny_release

SIZE = 16


class Tiny(NamedTuple):
    release: Path  # a folder rxrx1, as the archives unpack; holds metadata.csv and images/
    dataset: Path  # .../rxrx1/tiny/1.1.0, read only: copy it to break it
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

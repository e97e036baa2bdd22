"""`train`, `test` and (config wilds) `val` as splits of the dataset, beside its experiments.

Only the experiments are stored, so whoever reads the data without this code finds these alone.
"""

from collections.abc import ItemsView, Iterator, KeysView, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.splits import AbstractSplit, MultiSplitInfo, SplitDict, SplitInfo

from .release.metadata import ReleaseError
from .table import FILE


class Splits(SplitDict):
    """Experiments and partitions by name. It lists and counts the experiments: each site once.

    `values` gives the partitions too, since TFDS looks up what it reads there.
    """

    def __init__(self, experiments: SplitDict, partitions: Mapping[str, Sequence[str]]):
        unions = [
            MultiSplitInfo(name, [experiments[e] for e in members])
            for name, members in partitions.items()
            if members and all(e in experiments.keys() for e in members)
        ]
        super().__init__([*experiments.values(), *unions])
        self._experiments: dict[str, SplitInfo] = dict(experiments.items())

    def __iter__(self) -> Iterator[str]:
        return iter(self._experiments)

    def __len__(self) -> int:
        return len(self._experiments)

    def keys(self) -> KeysView[str]:
        return self._experiments.keys()

    def items(self) -> ItemsView[str, SplitInfo]:
        return self._experiments.items()

    def __getitem__(self, key: Any) -> Any:
        return dict.__getitem__(self, key) if key in self else super().__getitem__(EachOnce(key))

    @property
    def total_num_examples(self) -> int:
        return sum(info.num_examples for info in self._experiments.values())


class _Lookup(dict):
    def keys(self) -> Any:
        return [name for name, info in self.items() if not isinstance(info, MultiSplitInfo)]


@dataclass(frozen=True)
class EachOnce(AbstractSplit):
    """A split argument in which `all` means all experiments, without the partitions."""

    split: Any

    def to_absolute(self, split_infos: Mapping[str, SplitInfo]) -> list:
        return AbstractSplit.from_spec(self.split).to_absolute(_Lookup(split_infos))


class Info(tfds.core.DatasetInfo):
    """TFDS's, with the partitions that metadata.json lists among the splits.

    Attributes:
      declared: sizes of download and dataset in bytes, shown until the dataset is there.
    """

    declared = 0, 0
    _checked = False

    @property
    def splits(self) -> Splits:
        if self.initialized and not self._checked:
            self.check_lengths()
        return Splits(self._splits, (self.metadata or {}).get("partitions", {}))

    def set_splits(self, split_dict: SplitDict) -> None:
        stored = [info for info in split_dict.values() if not isinstance(info, MultiSplitInfo)]
        super().set_splits(SplitDict(stored))

    @property
    def download_size(self) -> tfds.core.utils.Size:
        return super().download_size or tfds.core.utils.Size(self.declared[0])

    @download_size.setter
    def download_size(self, size: int) -> None:
        self.as_proto.download_size = size

    @property
    def dataset_size(self) -> tfds.core.utils.Size:
        stored = sum(info.num_bytes for info in self._splits.values())
        return tfds.core.utils.Size(stored or self.declared[1])

    def check_lengths(self) -> None:
        """Compares dataset_info.json with sites.parquet: TFDS would read less, without a word.

        Raises:
          ReleaseError: names the first file of records whose number of sites differs.
        """
        folder = epath.Path(self.data_dir)
        listed = (self.metadata or {}).get("table", {}).get("files", [])  # version 1 has no table
        if listed:
            with (folder / FILE).open("rb") as file:
                shards = pq.read_table(file, columns=["shard"])["shard"].to_numpy()
            counts = np.bincount(shards, minlength=len(listed)).tolist()
            expected = {name: count for (name, _), count in zip(listed, counts, strict=True)}
            found = {
                name: length
                for info in self._splits.values()
                for name, length in zip(info.filenames, info.shard_lengths, strict=True)
            }
            for name in sorted(expected | found):
                if expected.get(name) != found.get(name):
                    raise ReleaseError(
                        f"{folder / 'dataset_info.json'}: {found.get(name, 'no')} sites in {name},"
                        f" {FILE} has {expected.get(name, 'none')}; get the file again, or delete"
                        " the folder and build"
                    )
        self._checked = True

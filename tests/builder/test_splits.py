"""`train`, `test` and `all` behave as splits that are stored; the oracle slices arrays of ids."""

import numpy as np
import pytest
from dataset_edits import edit_json

tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra `build`")

from tfds_builder.rxrx1 import Builder  # noqa: E402

Read = tfds.core.ReadInstruction
PARTS = {  # split -> slices of arrays of ids
    "train": [("train", slice(None))],
    tfds.Split.TEST: [("test", slice(None))],
    "train[:10]": [("train", slice(10))],
    "train[10:20]": [("train", slice(10, 20))],  # in one experiment
    "train[15:30]": [("train", slice(15, 30))],  # in two
    "train[-5:]": [("train", slice(-5, None))],
    "train[-30:-20]": [("train", slice(-30, -20))],
    "train[50%:]": [("train", slice(20, None))],  # 19.5 is rounded
    "train[25%:75%]": [("train", slice(10, 29))],
    "train[:1shard]": [("train", slice(21))],
    "train[:10%]+test[:3]": [("train", slice(4)), ("test", slice(3))],
    "train+test": [("train", slice(None)), ("test", slice(None))],
    "train[:5]+train[3:8]": [("train", slice(5)), ("train", slice(3, 8))],
    "HUVEC-01[:3]+train[2:4]": [("HUVEC-01", slice(3)), ("train", slice(2, 4))],
    "all": [("all", slice(None))],
    "all+train[:1]": [("all", slice(None)), ("train", slice(1))],
    Read("train", to=10, unit="%"): [("train", slice(4))],
    Read("train", from_=5, to=-30, unit="abs"): [("train", slice(5, -30))],
    Read("train") + Read("test"): [("train", slice(None)), ("test", slice(None))],
    tfds.even_splits("train", 3)[1]: [("train", slice(13, 26))],
    tfds.even_splits("train[:10]", 3)[0]: [("train", slice(4))],
    tfds.split_for_jax_process("train", process_index=1, process_count=2): [
        ("train", slice(20, 39))
    ],
}
REFUSED = {  # as for any split of TFDS; what is unknown is told with what there is
    "val": ["'val'", "'train'", "'test'", "'HUVEC-01'"],
    "train[100:200]": ["[100:200]", "39"],
    "train[30:100]": ["[30:100]", "39"],
    "train[-100:]": ["[-100:39]", "39"],
    "train[:200%]": ["200%", "[-100, 100]"],
    "train[::2]": ["train[::2]", "splits"],
    "all[:5]": ["'all'", "slice"],
}


@pytest.fixture(scope="module")
def at_random(array_record) -> Builder:
    return Builder(config="tiny", data_dir=array_record.parents[2])


@pytest.fixture(scope="module")
def ids(tiny) -> dict[str, np.ndarray]:
    """{split: ids in order}, by TFDS without our code."""
    stored = tfds.builder_from_directory(tiny.dataset)
    ids = {name: np.array(ids_of(stored.as_dataset(split=name))) for name in stored.info.splits}
    ids |= {"train": np.concatenate([ids["HUVEC-01"], ids["U2OS-01"]]), "test": ids["HUVEC-02"]}
    return ids | {"all": np.concatenate([ids[name] for name in stored.info.splits])}


def ids_of(data) -> list[str]:
    return [example["site_id"].decode() for example in tfds.as_numpy(data)]


@pytest.mark.parametrize("split", PARTS, ids=str)
def test_a_split_holds_what_an_array_would(plain, at_random, ids, split):
    parts = np.concatenate([ids[name][part] for name, part in PARTS[split]]).tolist()
    assert sorted(ids_of(plain.as_dataset(split=split))) == sorted(parts)  # files by turns
    assert plain.info.splits[split].num_examples == len(parts)
    source = at_random.as_data_source(split=split)
    order = [source[i]["site_id"].decode() for i in range(len(source))]
    assert sorted(order) == sorted(parts)
    if "all" not in str(split):  # whose experiments TFDS takes in any order
        assert order == parts


@pytest.mark.parametrize("split", REFUSED)
def test_a_split_that_cannot_be(plain, at_random, split):
    for read in (plain.as_dataset, at_random.as_data_source):
        with pytest.raises((ValueError, NotImplementedError)) as error:
            read(split=split)
        assert all(word in str(error.value) for word in REFUSED[split])


def test_no_site_counts_twice(plain, at_random, tiny):
    splits, stored = plain.info.splits, tfds.builder_from_directory(tiny.dataset).info
    assert splits.total_num_examples == 61 and splits["train"].num_shards == 2
    experiments = ["HUVEC-01", "HUVEC-02", "U2OS-01"]
    assert list(splits) == list(plain.as_dataset()) == list(at_random.as_data_source())
    assert list(splits) == list(stored.splits) == experiments
    assert "train" in splits and "val" not in splits
    assert plain.info.dataset_size == stored.dataset_size
    nested = plain.as_dataset(split={"a": "train", "b": ["test[:2]", "all"]})
    assert [len(nested["a"]), *map(len, nested["b"])] == [39, 2, 61]
    shares = [ids_of(plain.as_dataset(split=share)) for share in tfds.even_splits("all", 4)]
    assert sorted(sum(shares, [])) == sorted(tiny.rows) and min(map(len, shares)) >= 14
    assert plain.as_dataset(split="train", batch_size=-1)["site_id"].shape == (39,)


def test_by_the_name_of_a_config_that_was_built(tiny, plain):
    """`tiny` is none of ours: its settings are read from its metadata."""
    data_dir = tiny.dataset.parents[2]
    assert plain.builder_config.size == 16
    image, sirna_id = next(iter(tfds.as_numpy(
        tfds.load("rxrx1/tiny", split="train", data_dir=data_dir, as_supervised=True)
    )))  # fmt: skip
    assert image.shape == (6, 16, 16) and -1 <= sirna_id < 1139
    # With a version TFDS reads without our code, hence experiments alone.
    pinned = tfds.load(f"rxrx1/tiny:{Builder.VERSION}", split="U2OS-01", data_dir=data_dir)
    assert len(pinned) == 18


def test_examples_are_shown_as_composites(plain):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    sites = plain.as_dataset(split="train")
    figure = tfds.show_examples(sites, plain.info, rows=1, cols=2)
    first = ids_of(sites.take(1))[0]
    pictures = [ax.get_images()[0].get_array() for ax in figure.axes]
    assert [picture.shape for picture in pictures] == [(16, 16, 3)] * 2
    assert first.split("_")[0] in figure.axes[0].get_title() and np.ptp(pictures[0]) > 0.1
    pyplot.close(figure)


@pytest.mark.parametrize(
    "change",
    [
        lambda splits: splits.pop(0),  # TFDS would read less
        lambda splits: splits[0].update(shardLengths=["5"]),
        lambda splits: splits[0].pop("shardLengths"),
    ],
)
def test_edited_dataset_info(copy, change):
    edit_json(copy / "dataset_info.json", lambda info: change(info["splits"]))
    data_dir = copy.parents[2]
    with pytest.raises(ValueError, match="rxrx1-HUVEC-01"):
        len(tfds.load("rxrx1/tiny", split="train", data_dir=data_dir))
    with pytest.raises(ValueError, match="rxrx1-HUVEC-01"):
        tfds.builder("rxrx1/tiny", data_dir=data_dir).download_and_prepare()

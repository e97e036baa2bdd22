"""`verify`: a sound dataset passes; every kind of damage is found, with its place."""

import functools
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra `build`")
import tensorflow as tf  # noqa: E402

from tfds_builder.rxrx1 import Builder, table  # noqa: E402
from tfds_builder.rxrx1.__main__ import main  # noqa: E402
from tfds_builder.rxrx1.look import sites, stored, verify  # noqa: E402

VERSION = str(Builder.VERSION)


@pytest.fixture
def copy(tiny, tmp_path) -> Path:
    """A copy of the dataset that a test may break."""
    return Path(shutil.copytree(tiny.dataset, tmp_path / VERSION))


def faults_of(folder: Path, everything: bool = False) -> dict[str, list[str]]:
    checks = verify.verify(stored.open_dataset(folder), everything)
    return {check.name: check.faults for check in checks if check.faults}


def record_file(folder: Path, experiment: str = "HUVEC-01") -> Path:
    (file,) = folder.glob(f"rxrx1-{experiment}.*")
    return file


def rewrite(folder: Path, change: Callable[[list[tf.train.Example]], object]) -> Path:
    """Changes the examples of HUVEC-01 and writes them with right checksums."""
    file = record_file(folder)
    data = [r.numpy() for r in tf.data.TFRecordDataset(str(file))]
    examples = [tf.train.Example.FromString(record) for record in data]
    change(examples)
    with tf.io.TFRecordWriter(str(file)) as writer:
        for example in examples:
            writer.write(example.SerializeToString())
    return file


def feature(example: tf.train.Example, name: str):
    value = example.features.feature[name]
    return getattr(value, value.WhichOneof("kind")).value


def first(examples, well_type: str) -> int:
    return next(
        i for i, e in enumerate(examples) if feature(e, "well_type")[0] == well_type.encode()
    )


def change_metadata(folder: Path, change: Callable[[dict], object]) -> None:
    path = folder / "metadata.json"
    metadata = json.loads(path.read_text())
    change(metadata)
    path.write_text(json.dumps(metadata))


@pytest.mark.parametrize("format", ["tfrecord", "array_record"])
def test_sound_dataset_passes(format, request, tiny, capsys):
    folder = tiny.dataset if format == "tfrecord" else request.getfixturevalue("array_record")
    capsys.readouterr()  # of the build
    assert main(["verify", str(folder.parent), "--all"]) == 0  # the newest version in it
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"rxrx1/tiny/{folder.name} in {folder}"
    assert lines[1] == f"61 sites of 6 x 16 x 16 in 3 experiments, {format} files"
    checks = {line[:20].strip(): line[20:].split("  ")[0] for line in lines[3:]}
    assert checks == {
        "files": "3 of 3",
        "official release": "train 39 of 81,224, test 22 of 44,286",
        "checksums": "61 records, 3 of 3 experiments",
        "features": "61 records, 3 of 3 experiments",
        "images": "6 x 16 x 16 each",
        "control statistics": "6 plates, taken again",
        "table of sites": "61 rows",
    }
    assert all(line.endswith("  ok") for line in lines[3:])


def test_missing_file(copy, capsys):
    file = record_file(copy)
    file.unlink()
    assert main(["verify", str(copy)]) == 1
    printed = capsys.readouterr().out
    assert "2 of 3" in printed and "FAILED (1)" in printed and f"\nfiles:\n  {file}: " in printed


def overwrite(
    folder: Path, change: Callable[[bytearray], object], experiment: str = "HUVEC-01"
) -> Path:
    """Changes the bytes of an experiment's file."""
    file = record_file(folder, experiment)
    data = bytearray(file.read_bytes())
    change(data)
    file.write_bytes(data)
    return file


def flip(at: int) -> Callable[[bytearray], object]:
    return lambda data: data.__setitem__(at, data[at] ^ 1)


def cut(count: int) -> Callable[[bytearray], object]:
    return lambda data: data.__delitem__(slice(-count, None))


def test_damaged_array_record(array_record, tmp_path):
    copy = Path(shutil.copytree(array_record, tmp_path / VERSION))
    file = overwrite(copy, flip(2000))
    assert f"{file}: record 1 " in faults_of(copy)["checksums"][0]
    overwrite(copy, cut(200))
    assert {"files", "checksums"} <= faults_of(copy).keys()


def pixels(example) -> np.ndarray:
    plain = zlib.decompress(feature(example, "image")[0])
    return np.frombuffer(plain, np.uint8).reshape(6, 16, 16).copy()


def damage(data: bytearray) -> None:
    names = list(re.finditer(b"well_type", data))  # one in each record
    flip(names[7].start())(data)


def shorten_image(examples: list[tf.train.Example]) -> None:
    example = examples[first(examples, "treatment")]
    feature(example, "image")[0] = zlib.compress(pixels(example)[:5].tobytes())


def raise_statistic(name: str):
    return lambda examples: feature(examples[0], name).__setitem__(
        1, feature(examples[0], name)[1] + 1
    )


def raise_sum(metadata: dict) -> None:
    metadata["control_pixels"]["U2OS-01"]["1"]["negative_control"]["sum_of_squares"][5] += 1


def state(path: str, value="plate_controls") -> Callable[[dict], object]:
    *parts, last = path.split()
    return lambda metadata: functools.reduce(
        dict.__getitem__, parts, metadata["control_statistics"]
    ).update({last: value})


class Nonsense:
    def SerializeToString(self) -> bytes:
        return b"nonsense"


FAULTS = [  # kind of change, the change, check, what its first fault says
    (overwrite, damage, "checksums", "record 7 "),
    (overwrite, damage, "control statistics", "HUVEC-01"),
    (overwrite, cut(40), "files", " bytes, expected "),
    (overwrite, cut(40), "checksums", "record 20 "),
    (rewrite, lambda examples: examples.pop(), "checksums", "20 records, expected 21"),
    (rewrite, lambda examples: examples.__setitem__(slice(21), [Nonsense()] * 21), "features",
     "record 0, "),
    (rewrite, lambda examples: examples.__setitem__(3, examples[2]), "features", "second"),
    (rewrite, shorten_image, "images", "1280 bytes, expected 1536"),
    (rewrite, raise_statistic("control_mean"), "control statistics", "control_mean"),
    (rewrite, raise_statistic("control_std"), "control statistics", "control_std"),
    (change_metadata, raise_sum, "control statistics", "U2OS-01 plate 1, negative_control"),
    *((change_metadata, state(f"{path} {name}", [1.0] * 6), "control statistics", path.split()[0])
      for path, name in (("plate HUVEC-01 2", "mean"), ("experiment U2OS-01", "std"),
                         ("negative_control plate HUVEC-01 1", "mean"),
                         ("negative_control experiment HUVEC-01", "std"))),
    (change_metadata, state("plate U2OS-01 2 source"), "control statistics", "control_statistics"),
    (change_metadata, lambda metadata: metadata["partitions"]["train"].remove("U2OS-01"),
     "official release", "['U2OS-01']"),
]  # fmt: skip


@pytest.mark.parametrize(("how", "change", "check", "says"), FAULTS)
def test_damage_and_its_place(copy, how, change, check, says):
    how(copy, change)
    fault = faults_of(copy)[check][0]
    assert says in fault
    assert str(record_file(copy)) in fault or check in ("control statistics", "official release")


def test_only_one_experiment_of_a_cell_type_is_read_unless_all_are_asked_for(copy):
    file = overwrite(copy, flip(-50), "HUVEC-02")
    assert faults_of(copy) == {}
    assert f"{file}: record 21 " in faults_of(copy, everything=True)["checksums"][0]


def put(name: str, value: str | float):
    def change(example):
        feature(example, name)[0] = value.encode() if isinstance(value, str) else value

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (put("experiment", "HUVEC-02"), "well_id"),
        (put("dataset", "training"), "dataset: found 'training'"),
        (put("sirna_id", 1108), "sirna_id: found '1108', expected 0 to 1107"),
        (put("row", 1), "row: found 1, expected"),
        (put("column", 25), "column: found 25, expected"),
        (lambda e: e.features.feature.pop("plate"), "plate: found None"),
        (lambda e: e.features.feature["well"].int64_list.value.append(2), "well: found 2"),
        (lambda e: feature(e, "control_std").pop(), "control_std"),
        (put("control_mean", -1.0), "control_mean"),
        (lambda e: feature(e, "row").append(1), "row holds 2 values, expected 1"),
    ],
)  # fmt: skip
def test_features_that_cannot_be(copy, change, says):
    numbers = []

    def one(examples):
        numbers.append(first(examples, "treatment"))
        change(examples[numbers[0]])

    file = rewrite(copy, one)
    (fault,) = faults_of(copy)["features"]
    assert fault.startswith(f"{file}, record {numbers[0]}, ") and says in fault
    # and so without its table
    change_metadata(copy, lambda metadata: metadata.pop("table"))
    with pytest.raises(stored.DatasetError) as error:
        sites.write_table(stored.open_dataset(copy))
    assert f"{file}, record {numbers[0]}" in str(error.value) and says in str(error.value)


def test_experiment_of_another_split(copy):
    file, other = record_file(copy), record_file(copy, "HUVEC-02")
    file.write_bytes(other.read_bytes())
    assert "experiment: found 'HUVEC-02', expected 'HUVEC-01'" in faults_of(copy)["features"][0]


@pytest.mark.parametrize("well_type", ["positive_control", "treatment"])
def test_one_count_in_one_control_pixel(copy, well_type):
    """The smallest change there is; images of treatments are in no sum, but in the table."""

    def change(examples):
        example = examples[first(examples, well_type)]
        image = pixels(example)
        image[4, 3, 2] ^= 1
        feature(example, "image")[0] = zlib.compress(image.tobytes())

    rewrite(copy, change)
    faults = faults_of(copy)
    faults.pop("files", None)  # it may be packed to another size
    assert len(faults.pop("table of sites")) > 0
    if well_type == "treatment":
        assert faults == {}
        return
    (fault,) = faults["control statistics"]
    assert set(faults) == {"control statistics"}
    assert fault.startswith("HUVEC-01 plate ") and "positive_control" in fault


@pytest.mark.parametrize(
    ("column", "change"),
    [
        ("offset", lambda column: [column[0] + 1, *column[1:]]),
        ("adler32", lambda column: column[::-1]),
        ("well", lambda column: column[::-1]),
        ("control_mean", lambda column: [[value + 1 for value in row] for row in column]),
        ("pixel_sum2", lambda column: column[::-1]),
    ],
)
def test_table_that_differs_from_the_records(copy, column, change):
    """With the checksum that belongs to it, as other code might write it."""
    rows = pq.read_table(copy / table.FILE)
    number = rows.column_names.index(column)
    values = pa.array(change(rows[column].to_pylist()), rows.schema.field(column).type)
    changed = rows.set_column(number, rows.schema.field(column), values)
    entry = json.loads((copy / "metadata.json").read_text())["table"]
    written = table.write(changed, copy, dict(entry["files"]), 16)
    change_metadata(copy, lambda metadata: metadata.update(table=written))
    faults = faults_of(copy)
    assert set(faults) == {"table of sites"}
    assert f"{column} of " in faults["table of sites"][0]


def test_table_that_is_damaged_or_missing(copy, capsys):
    data = (copy / table.FILE).read_bytes()
    (copy / table.FILE).write_bytes(data[:-1])
    assert "SHA-256" in faults_of(copy)["table of sites"][0]
    (copy / table.FILE).unlink()
    assert table.FILE in faults_of(copy)["table of sites"][0]
    change_metadata(copy, lambda metadata: metadata.pop("table"))  # as version 1 has it
    for command in (["verify"], ["show", "--out=x"]):
        assert main([*command, str(copy)]) == 1
        assert f"tfds_builder.rxrx1 table {copy}" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", ["rxrx1-HUVEC-01*", "metadata.json", table.FILE])
def test_pipe_in_place_of_a_file(copy, name, capsys):
    (path,) = copy.glob(name)
    path.unlink()
    os.mkfifo(path)
    assert main(["verify", str(copy)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line


def test_experiment_in_another_partition(copy):
    partitions = {"train": ["HUVEC-01"], "test": ["HUVEC-02", "U2OS-01"]}
    change_metadata(copy, lambda metadata: metadata.update(partitions=partitions))
    (fault,) = faults_of(copy)["features"]
    assert fault.startswith("U2OS-01") and "{'train'}" in fault and "{'test'}" in fault


def test_more_sites_than_the_official_release_has():
    def check(train: int, layout: str) -> verify.Check:
        splits = {"HUVEC-01": SimpleNamespace(num_examples=train)}
        metadata = {"source": "release", "layout": layout, "partitions": {"train": ["HUVEC-01"]}}
        info = SimpleNamespace(splits=splits, metadata=metadata)
        return verify._check_partitions(SimpleNamespace(info=info))

    assert not check(81_224, "official").faults
    assert "81,224" in check(81_225, "official").faults[0]
    assert not check(81_225, "kaggle").faults  # later files hold more


def test_report_is_cut_to_the_first_faults(tiny):
    checks = [verify.Check("features", "61 records", [f"fault {i}" for i in range(25)])]
    text = verify.report(stored.open_dataset(tiny.dataset), checks)
    assert "FAILED (25)" in text and "fault 9\n" in text and "fault 10" not in text
    assert text.endswith("... and 15 more")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "dataset_info.json"),
        ("{", "JSON"),
        ("[]", ""),
        ('{"layout": "official"}', "source, partitions, control_pixels, control_statistics"),
    ],
)
def test_not_a_dataset(copy, capsys, text, says):
    if text is None:
        (copy / "dataset_info.json").unlink()
    else:
        (copy / "metadata.json").write_text(text)
    assert main(["verify", str(copy)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert str(copy) in line and says in line

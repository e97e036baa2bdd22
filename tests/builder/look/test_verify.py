"""`verify`: a sound dataset passes; every kind of damage is found, with its place."""

import functools
import os
import re
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from dataset_edits import cut, edit_bytes, edit_column, edit_json, edit_table, flip

tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra `build`")
import tensorflow as tf  # noqa: E402

from tfds_builder.rxrx1 import Builder, table  # noqa: E402
from tfds_builder.rxrx1.__main__ import main  # noqa: E402
from tfds_builder.rxrx1.look import sites, stored, verify  # noqa: E402

VERSION = str(Builder.VERSION)


def faults_of(folder: Path, everything: bool = False) -> dict[str, list[str]]:
    checks = verify.verify(stored.open_dataset(folder), everything)
    return {check.name: check.faults for check in checks if check.faults}


def record_file(folder: Path, experiment: str = "HUVEC-01") -> Path:
    (file,) = folder.glob(f"rxrx1-{experiment}.*")
    return file


def rewrite(folder: Path, change: Callable[[list[tf.train.Example]], object]) -> None:
    """Changes the examples of HUVEC-01 and writes them with right checksums."""
    file = record_file(folder)
    data = [r.numpy() for r in tf.data.TFRecordDataset(str(file))]
    examples = [tf.train.Example.FromString(record) for record in data]
    change(examples)
    with tf.io.TFRecordWriter(str(file)) as writer:
        for example in examples:
            writer.write(example.SerializeToString())


def feature(example: tf.train.Example, name: str):
    value = example.features.feature[name]
    return getattr(value, value.WhichOneof("kind")).value


def first(examples, well_type: str) -> tf.train.Example:
    return next(e for e in examples if feature(e, "well_type")[0] == well_type.encode())


def change_metadata(folder: Path, change: Callable[[dict], object]) -> None:
    edit_json(folder / "metadata.json", change)


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


def overwrite(folder: Path, change: Callable[[bytearray], object]) -> None:
    edit_bytes(record_file(folder), change)


def test_damaged_array_record(array_record, tmp_path):
    copy = Path(shutil.copytree(array_record, tmp_path / VERSION))
    overwrite(copy, flip(2000))
    assert f"{record_file(copy)}: record 1 " in faults_of(copy)["checksums"][0]
    overwrite(copy, cut(200))
    assert {"files", "checksums"} <= faults_of(copy).keys()


def pixels(example) -> np.ndarray:
    plain = zlib.decompress(feature(example, "image")[0])
    return np.frombuffer(plain, np.uint8).reshape(6, 16, 16).copy()


def damage(data: bytearray) -> None:
    names = list(re.finditer(b"well_type", data))  # one in each record
    flip(names[7].start())(data)


def shorten_image(example) -> None:
    feature(example, "image")[0] = zlib.compress(pixels(example)[:5].tobytes())


def raise_statistic(name: str):
    def change(examples):
        feature(examples[0], name)[1] += 1

    return change


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


def put(name: str, value: str | float):
    def change(example):
        feature(example, name)[0] = value.encode() if isinstance(value, str) else value

    return change


def in_one(folder: Path, change: Callable[[tf.train.Example], object]) -> None:
    """Changes the first treatment, which is record 0."""
    rewrite(folder, lambda examples: change(first(examples, "treatment")))


def exchange(folder: Path, other: str) -> None:
    shutil.copyfile(record_file(folder, other), record_file(folder))


SWAPPED = {"train": ["HUVEC-01"], "test": ["HUVEC-02", "U2OS-01"]}
FAULTS = [  # kind of change, the change, check, what its first fault says
    (overwrite, damage, "checksums", "record 7 "),
    (overwrite, damage, "control statistics", "HUVEC-01"),
    (overwrite, cut(40), "files", " bytes, expected "),
    (lambda folder, _: record_file(folder).unlink(), None, "files", "no bytes, expected "),
    (overwrite, cut(40), "checksums", "record 20 "),
    (rewrite, lambda examples: examples.pop(), "checksums", "20 records, expected 21"),
    (rewrite, lambda examples: examples.__setitem__(slice(21), [Nonsense()] * 21), "features",
     "record 0, "),
    (rewrite, lambda examples: examples.__setitem__(3, examples[2]), "features", "second"),
    (exchange, "HUVEC-02", "features", "experiment: found 'HUVEC-02', expected 'HUVEC-01'"),
    (in_one, put("experiment", "HUVEC-02"), "features", "well_id"),
    (in_one, put("dataset", "training"), "features", "dataset: found 'training'"),
    (in_one, put("sirna_id", 1108), "features", "sirna_id: found '1108', expected 0 to 1107"),
    (in_one, put("row", 1), "features", "row: found 1, expected"),
    (in_one, put("column", 25), "features", "column: found 25, expected"),
    (in_one, lambda e: e.features.feature.pop("plate"), "features", "plate: found None"),
    (in_one, lambda e: e.features.feature["well"].int64_list.value.append(2), "features",
     "well: found 2"),
    (in_one, lambda e: feature(e, "control_std").pop(), "features", "control_std"),
    (in_one, put("control_mean", -1.0), "features", "control_mean"),
    (in_one, lambda e: feature(e, "row").append(1), "features", "row holds 2 values, expected 1"),
    (in_one, shorten_image, "images", "1280 bytes, expected 1536"),
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
    (change_metadata, lambda metadata: metadata.update(partitions=SWAPPED), "features",
     "U2OS-01: its sites say dataset {'train'}, metadata.json's partitions {'test'}"),
]  # fmt: skip


@pytest.mark.parametrize(("how", "change", "check", "says"), FAULTS)
def test_damage_and_its_place(copy, how, change, check, says):
    """What is wrong with a record also keeps the table from being written."""
    file = record_file(copy)
    how(copy, change)
    fault = faults_of(copy)[check][0]
    assert says in fault
    if how is change_metadata or check == "control statistics":
        return
    assert fault.startswith(str(file)) and (how is not in_one or ", record 0, " in fault)
    if check != "files":
        change_metadata(copy, lambda metadata: metadata.pop("table"))
        (copy / table.FILE).unlink()
        with pytest.raises(stored.DatasetError, match=re.escape(str(file))) as error:
            sites.write_table(stored.open_dataset(copy))
        assert how is not in_one or fault in str(error.value)
        assert not (copy / table.FILE).exists()


def test_only_one_experiment_of_a_cell_type_is_read_unless_all_are_asked_for(copy):
    file = record_file(copy, "HUVEC-02")
    edit_bytes(file, flip(-50))
    assert faults_of(copy) == {}
    assert f"{file}: record 21 " in faults_of(copy, everything=True)["checksums"][0]


@pytest.mark.parametrize("well_type", ["positive_control", "treatment"])
def test_one_count_in_one_control_pixel(copy, well_type):
    """The smallest change there is; images of treatments are in no sum, but in the table."""

    def change(examples):
        example = first(examples, well_type)
        image = pixels(example)
        image[4, 3, 2] ^= 1
        feature(example, "image")[0] = zlib.compress(image.tobytes())

    rewrite(copy, change)
    faults = faults_of(copy)
    faults.pop("files", None)  # it may be packed to another size
    assert faults.pop("table of sites")
    assert list(faults) == (["control statistics"] if well_type == "positive_control" else [])
    for (fault,) in faults.values():
        assert fault.startswith("HUVEC-01 plate ") and "positive_control" in fault


@pytest.mark.parametrize(
    ("column", "change"),
    [
        ("offset", lambda column: [column[0] + 1, *column[1:]]),
        *((name, lambda column: column[::-1]) for name in ("adler32", "well", "pixel_sum2")),
        ("control_mean", lambda column: [[value + 1 for value in row] for row in column]),
    ],
)
def test_table_that_differs_from_the_records(copy, column, change):
    """With the checksum that belongs to it, as other code might write it."""
    edit_table(copy, edit_column(column, change))
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


def test_more_sites_than_the_official_release_has():
    def check(train: int, layout: str) -> verify.Check:
        splits = {"HUVEC-01": SimpleNamespace(num_examples=train)}
        metadata = {"source": "release", "layout": layout, "partitions": {"train": ["HUVEC-01"]}}
        info = SimpleNamespace(splits=splits, metadata=metadata)
        return verify._check_partitions(SimpleNamespace(info=info))

    assert not check(81_224, "official").faults
    assert "81,224" in check(81_225, "official").faults[0]
    assert not check(81_225, "kaggle").faults  # later files hold more


def test_report_is_cut_to_the_first_faults(copy, capsys):
    file = record_file(copy)
    rewrite(copy, lambda examples: [put("row", 99)(example) for example in examples])
    assert main(["verify", str(copy)]) == 1
    printed = capsys.readouterr().out
    assert "FAILED (21)" in printed and "... and 11 more" in printed and "record 10," not in printed
    assert f"\nfeatures:\n  {file}, record 0, " in printed and ", record 9, " in printed


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("dataset_info.json", Path.unlink, "dataset_info.json"),
        ("metadata.json", lambda path: path.write_text("{"), "JSON"),
        ("metadata.json", lambda path: path.write_text("[]"), ""),
        ("metadata.json", lambda path: path.write_text('{"layout": "official"}'),
         "source, partitions, control_pixels, control_statistics"),
        ("rxrx1-HUVEC-01*", pipe, "rxrx1-HUVEC-01"), ("metadata.json", pipe, "metadata.json"),
        (table.FILE, pipe, table.FILE),
    ],
)  # fmt: skip
def test_not_a_dataset(copy, capsys, name, change, says):
    change(*copy.glob(name))
    assert main(["verify", str(copy)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert str(copy) in line and says in line

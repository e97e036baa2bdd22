"""Files of a run that a person has touched: each fault is a line with the file and the field."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from finished_runs import all_right, edited, make_run

from rxrx1_jax.report.files import ReportError
from rxrx1_jax.report.runs import load_run

CONFIG, RESULTS, METRICS = "config.json", "results.json", "metrics.jsonl"
PREDICTIONS = "predictions.parquet"


def remove(path):
    path.unlink()


def holds(content):
    return lambda path: path.write_text(content)


def with_value(field, value=None, remove=False):
    def change(path):
        with edited(path) as content:
            *sections, name = field.split(".")
            for section in sections:
                content = content[section]
            content[name] = value
            if remove:
                del content[name]

    return change


def without(field):
    return with_value(field, remove=True)


def more(line):
    return lambda path: path.write_text(path.read_text() + line + "\n")


def column(name, values=None):
    """Without the column, or with other values in it."""

    def change(path):
        table = pq.read_table(path)
        place = table.schema.names.index(name)
        if values is None:
            table = table.drop_columns(name)
        else:
            table = table.set_column(place, name, pa.array(values(table[name].to_pylist())))
        pq.write_table(table, path)

    return change


def twice(path):
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table, table]), path)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (CONFIG, remove, ["config.json"]),
        (CONFIG, holds('{"data": '), ["not JSON"]),
        (CONFIG, holds("[]"), ["section"]),
        (CONFIG, without("model"), ["model"]),
        (CONFIG, with_value("dataset", 3), ["section"]),
        (CONFIG, with_value("optim", 3), ["optim", "3", "section"]),
        (CONFIG, with_value("data.dir", 7), ["data.dir", "7", "text"]),
        (CONFIG, with_value("optim.batch_size", 0.5), ["optim.batch_size", "0.5", "whole"]),
        (CONFIG, with_value("optim.momentun", 0.5), ["optim.momentun", "newer"]),
        (RESULTS, remove, ["unfinished", "results.json"]),
        (RESULTS, holds(""), ["not JSON"]),
        (RESULTS, holds("null"), ["data.name"]),
        (RESULTS, without("fold"), ["'fold'", "0 or more"]),
        (RESULTS, without("data.source"), ["data.source"]),
        (RESULTS, without("accuracy.well"), ["accuracy.well.all"]),
        (RESULTS, with_value("data.classes", 0), ["data.classes", "1 or more"]),
        (RESULTS, holds("[]"), ["data.name"]),
        (RESULTS, holds("{}"), ["data.name"]),
        (RESULTS, with_value("seed", True), ["'seed'", "True"]),
        (RESULTS, with_value("seed", 3), ["'seed'", "3", "0"]),
        (RESULTS, with_value("protocol", "random_site"), ["'protocol'", "random_site", "batch"]),
        (RESULTS, with_value("data.name", "rxrx1/native"), ["'data.name'", "rxrx1/synthetic"]),
        (RESULTS, with_value("data.test_sites", 79), ["test sites", "79", "80"]),
        (RESULTS, with_value("epochs", "30"), ["'epochs'", "'30'", "whole number"]),
        (RESULTS, with_value("model", ["x" * 99]), ["'model'", "...", "text"]),
        (RESULTS, with_value("accuracy.site.all", 35.0), ["accuracy.site.all", "0 to 1"]),
        (RESULTS, with_value("accuracy.site.all", 0.75), ["0.75", "0.15"]),
        (RESULTS, with_value("step", 599), ["unfinished", "599 of 600"]),
        (METRICS, remove, ["unfinished", "metrics.jsonl"]),
        (RESULTS, with_value("accuracy.site.cell_type.RPE", 0.3), ["cell types"]),
        (METRICS, more("7"), ["line 37", "step"]),
        (METRICS, more("[" * 10**5), ["line 37", "JSON"]),
        (METRICS, more('{"step": 600, "epo'), ["line 37", "JSON"]),
        (METRICS, lambda path: path.write_bytes(b"\xff\x00\x01"), ["line 1", "JSON"]),
        (METRICS, more('{"step": 3}'), ["line 37", "epoch"]),
        (METRICS, more('{"step": 3, "epoch": NaN}'), ["line 37", "epoch", "nan"]),
        (METRICS, more('{"step": -3, "epoch": 1}'), ["line 37", "step", "-3"]),
        (METRICS, more('{"step": 3, "epoch": 1, "test_loss": "x"}'), ["line 37", "test_loss"]),
        (PREDICTIONS, remove, ["unfinished", "predictions.parquet"]),
        (PREDICTIONS, holds("PAR1 torn"), ["not a Parquet file"]),
        (PREDICTIONS, column("label"), ["label"]),
        (PREDICTIONS, column("prediction", lambda v: list(map(str, v))), ["prediction", "string"]),
        (PREDICTIONS, column("top5", lambda v: [1.0] * len(v)), ["top5", "double", "lists"]),
        (PREDICTIONS, column("top5", lambda v: [[1], *v[1:]]), ["top5", "length"]),
        (PREDICTIONS, column("top5", lambda v: [[None, 3], *v[1:]]), ["top5", "1 missing"]),
        (PREDICTIONS, column("top5", lambda v: [[] for _ in v]), ["top5", "null"]),
        (PREDICTIONS, column("label", lambda v: [None, *v[1:]]), ["label", "1 missing"]),
        (PREDICTIONS, column("cell_type", lambda v: ["RPE"] * len(v)), ["cell types"]),
        (PREDICTIONS, twice, ["site_id", "HUVEC-05_1_W"]),
        (PREDICTIONS, column("site_id", lambda v: [v[1], *v[1:]]), ["site_id", "HUVEC-05_1_W0_2"]),
        ("environment.json", holds("[]"), ["object"]),
        ("environment.json", with_value("devices", 3), ["'devices'", "3", "list"]),
        (PREDICTIONS, lambda path: pq.write_table(pq.read_table(path)[:0], path), ["0 rows"]),
    ],
)
def test_a_bad_file_is_a_line_that_names_it_and_the_field(tmp_path, name, change, words):
    run = make_run(tmp_path / "run", all_right(3, 3))
    change(run / name)
    with pytest.raises(ReportError) as error:
        load_run(run)
    said = str(error.value)
    assert str(run) in said and "\n" not in said
    assert all(word in said for word in words), said


def test_files_that_others_wrote_are_read(tmp_path):
    """Further fields, columns and types of text are no faults."""
    run = make_run(tmp_path / "run", all_right(3, 3))
    expected = load_run(run)
    with edited(run / RESULTS) as results:
        results["new"] = {"field": None}
    table = pq.read_table(run / PREDICTIONS)
    table = table.set_column(1, "well_id", table["well_id"].cast(pa.large_string()))
    pq.write_table(table.append_column("mine", table["label"]), run / PREDICTIONS)
    with open(run / METRICS, "a") as file:
        file.write(json.dumps({"step": 900, "epoch": 45, "mine": 1.5}) + "\n\n")
        again = {"step": 600, "epoch": 30.0, "test_accuracy": 0.25}
        file.write(json.dumps(again) + "\n")  # of version 0.2: the later one counts
    found = load_run(run)
    assert found.accuracy == expected.accuracy and found.metrics[-1]["mine"] == 1.5
    tested = [entry["test_accuracy"] for entry in found.metrics if "test_accuracy" in entry]
    assert tested[-1] == 0.25 and len(tested) == 6

"""What correct, diagnose, table1 and the leaderboard say of files of a run that were touched."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import run_command
from finished_runs import all_right, make_run

from rxrx1_jax import table1
from rxrx1_jax.data.embeddings import DIGEST
from rxrx1_jax.leaderboard import assess, jobs
from rxrx1_jax.report.files import ReportError
from rxrx1_jax.training import sweep
from rxrx1_jax.training.run import EMBEDDINGS, Run


def holds(name, content):
    return lambda run: (run / name).write_bytes(content)


def without(name):
    def change(run):
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def edited(name, change):
    """Of a table, its metadata as they were but for the digest: as another program writes it."""

    def edit(run):
        table = pq.read_table(run / name)
        about = {key: x for key, x in table.schema.metadata.items() if key != DIGEST.encode()}
        pq.write_table(change(table).replace_schema_metadata(about), run / name)

    return edit


def column(name, values):
    return lambda t: t.set_column(t.column_names.index(name), name, [[values] * len(t)])


def each(pattern, change):
    def edit(run):
        for path in list(run.glob(pattern)):
            change(path)

    return edit


SETTINGS = json.dumps({"data": {}, "eval": {}, "model": {}, "train": {}, "optim": {}}).encode()
FAULTS = [  # command, what was done, words of the line
    ("correct", holds("config.json", b"[]"), ["config.json", "restore"]),
    ("correct", holds("config.json", b"\xff"), ["config.json", "restore"]),
    ("correct", holds("config.json", SETTINGS[:-1] + b', "dataset": 3}'), ["dataset", "restore"]),
    ("correct", holds("config.json", SETTINGS.replace(b"eval", b"evil")), ["section", "eval"]),
    ("correct", holds("split.csv", b"a,b"), ["split.csv", "role", "restore"]),
    ("correct", without("checkpoints"), ["checkpoint"]),
    ("correct", each("checkpoints/*/about", shutil.rmtree), ["checkpoint"]),
    ("correct", each("checkpoints/*/about/metadata", lambda p: p.write_bytes(b"[]")),
     ["checkpoints"]),
    ("correct", holds("corrections", b""), ["corrections"]),
    ("diagnose", holds("config.json", b"null"), ["config.json", "restore"]),
    ("diagnose", holds(EMBEDDINGS, b"PAR1"), [EMBEDDINGS, "remove"]),
    ("diagnose", edited(EMBEDDINGS, column("feature_2", "x")), [EMBEDDINGS, "feature_2", "remove"]),
    ("diagnose", edited(EMBEDDINGS, column("feature_2", float("nan"))), [EMBEDDINGS, "finite"]),
    ("diagnose", edited(EMBEDDINGS, column("sirna_id", "x")), [EMBEDDINGS, "sirna_id"]),
    ("diagnose", edited(EMBEDDINGS, lambda t: t[:0]), [EMBEDDINGS, "one"]),
    ("diagnose", edited(EMBEDDINGS, lambda t: pa.concat_tables([t, t])), [EMBEDDINGS, "2 rows"]),
    ("diagnose", edited(EMBEDDINGS, lambda t: t.drop_columns("site_id")), [EMBEDDINGS, "site_id"]),
    ("diagnose", edited(EMBEDDINGS, lambda t: t.drop_columns("feature_2")), [EMBEDDINGS, "gap"]),
]  # fmt: skip


@pytest.fixture(scope="module")
def embedded(finished, tmp_path_factory):
    """A finished run with embeddings."""
    run = shutil.copytree(finished.workdir, tmp_path_factory.mktemp("damage") / "run")
    Run.open(run).embeddings()
    return run


@pytest.mark.parametrize(("name", "change", "words"), FAULTS)
def test_damage_is_a_line_that_names_the_file(embedded, tmp_path, name, change, words):
    run = shutil.copytree(embedded, tmp_path / "run")
    change(run)
    done = run_command(name, run, *["--methods", "none"] * (name == "correct"))
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert done.code == 1 and errors == [done.last] and str(run) in done.last
    assert all(word in done.last for word in words), done.last


def collected(run):
    table1.collect([sweep.Plan(run, {}, 9, "")], run.parent, {})


def listed(run):
    job = jobs.Job("", "base", "batch", jobs.Unit("w", 0, 0))
    jobs.outcomes({job: sweep.Plan(run, {}, 9, "")}, {})


@pytest.mark.parametrize("content", [b"[]", b"{}", b'{"step": "8", "total_steps": 8}', b"\xff"])
@pytest.mark.parametrize("look", [collected, listed])
def test_a_sweep_names_the_results_that_were_touched(tmp_path, look, content):
    run = make_run(tmp_path / "run", all_right(3, 3))
    (run / "results.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"results\.json.*remove"):
        look(run)


@pytest.mark.parametrize("content", ["[]", '{"diagnosis": 3}', "{"])
def test_an_assessment_that_was_touched_is_named(tmp_path, content):
    (tmp_path / assess.FILE).write_text(content)
    with pytest.raises(ReportError, match=r"assessment\.json.*remove"):
        assess.read(tmp_path)


def test_looking_at_a_run_that_is_trained_touches_nothing(embedded, tmp_path):
    """Its lock, the checkpoint that is being written, its log."""
    run = shutil.copytree(embedded, tmp_path / "run")
    (run / EMBEDDINGS).unlink()
    (run / ".lock").write_text("process 1 on elsewhere")
    partial = run / "checkpoints" / "9.orbax-checkpoint-tmp-1" / "state"
    partial.mkdir(parents=True)
    (partial / "part").write_bytes(b"half")
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}
    for name, *more in (["report", f"--out={tmp_path}/page"], ["correct", "--methods", "none"],
                        ["diagnose"]):  # fmt: skip
        done = run_command(name, run, *more)
        assert done.code == (name == "diagnose"), done.err  # which has too few siRNAs here
    after = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}
    new = {p.relative_to(run).parts[0] for p in after.keys() - before.keys()}
    assert before.items() <= after.items() and new <= {
        "corrections", "embeddings.parquet", "embeddings_log_probs.parquet"
    }  # fmt: skip

"""launch/beam: the scripts run up to `tfds`; TFDS and Beam understand every option they pass."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra `build`")
beam = pytest.importorskip("apache_beam")

from apache_beam.options import pipeline_options as options_of  # noqa: E402
from tensorflow_datasets.scripts.cli import build, cli_utils  # noqa: E402

FOLDER = Path(__file__).parents[2] / "launch" / "beam"
BUCKET = {"DATA_DIR": "gs://bucket/data", "MANUAL_DIR": "gs://bucket/release"}
SHARED = {"DATA_DIR": "/shared/data", "MANUAL_DIR": "/shared/release"}
EXTERNAL = {"environment_type": "EXTERNAL", "environment_config": "localhost:50000"}
SETTINGS = {
    "local": {"DATA_DIR": "/data", "MANUAL_DIR": "/release"},
    "dataflow": {
        **BUCKET, "TEMP": "gs://bucket/temp", "PROJECT": "my-project", "REGION": "us-central1",
        "IMAGE": "registry/rxrx1-beam",
    },
    "flink": {**SHARED, "MASTER": "host:8081"},
    "spark": {**SHARED, "MASTER": "spark://host:7077"},
}  # fmt: skip
EXPECTED = {  # runner class, options by the attribute that Beam gives them
    "local": ("FnApiRunner", {"direct_num_workers": 3, "direct_running_mode": "multi_processing"}),
    "dataflow": ("DataflowRunner", {
        "project": "my-project", "region": "us-central1", "temp_location": "gs://bucket/temp",
        "job_name": "rxrx1-native", "max_num_workers": 3,
        "sdk_container_image": "registry/rxrx1-beam", "save_main_session": False,
    }),
    "flink": ("FlinkRunner", {"flink_master": "host:8081", "parallelism": 3, **EXTERNAL}),
    "spark": ("SparkRunner", {"spark_master_url": "spark://host:7077", **EXTERNAL}),
}  # fmt: skip


def run_script(name: str, tmp_path: Path, settings: dict[str, str]) -> subprocess.CompletedProcess:
    """Runs a script with a `tfds` that prints its arguments as JSON."""
    stand_in = tmp_path / "tfds"
    stand_in.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    stand_in.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    command = [str(FOLDER / f"{name}.sh"), "--file_format=tfrecord"]
    return subprocess.run(
        command, env={"PATH": path, **settings}, capture_output=True, text=True, cwd=tmp_path
    )


def test_every_script_is_listed_and_checked_here():
    scripts = {path.stem for path in FOLDER.glob("*.sh")}
    assert scripts == set(SETTINGS) == set(EXPECTED)
    readme = (FOLDER / "README.md").read_text()
    assert all(f"[`{name}.sh`]({name}.sh)" in readme for name in scripts)


@pytest.mark.parametrize("name", SETTINGS)
def test_options_are_understood(tmp_path, caplog, monkeypatch, name):
    # TFDS's parser takes over all flags of the process, those of other tests' modules, too.
    monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())
    settings = SETTINGS[name] | {"WORKERS": "3"}
    run = run_script(name, tmp_path, settings)
    assert run.returncode == 0, run.stderr
    command, *arguments = json.loads(run.stdout)
    assert command == "build"
    args = cli_utils.make_flags_parser(build.Args, "test")(["tfds build", *arguments])
    assert args.positional_datasets == ["rxrx1/native"]
    assert args.generation.imports == "tfds_builder.rxrx1"
    assert args.generation.file_format == "tfrecord"
    assert os.fspath(args.paths.data_dir) == settings["DATA_DIR"]
    assert os.fspath(args.paths.manual_dir) == settings["MANUAL_DIR"]

    passed = [f"--{option}" for option in args.generation.beam_pipeline_options.split(",")]
    runner, expected = EXPECTED[name]
    with caplog.at_level(logging.WARNING):
        options = options_of.PipelineOptions(passed)
        pipeline = beam.Pipeline(options=options)  # makes the runner and validates the options
        known = options.get_all_options()
    assert "unparseable" not in caplog.text and "Unknown" not in caplog.text
    assert type(pipeline.runner).__name__ == runner
    assert {option: known[option] for option in expected} == expected
    assert len(passed) == len(expected) + 1  # and nothing else


@pytest.mark.parametrize(
    ("name", "setting"), [(n, s) for n, settings in SETTINGS.items() for s in settings]
)
def test_missing_settings_are_named(tmp_path, name, setting):
    settings = {key: value for key, value in SETTINGS[name].items() if key != setting}
    run = run_script(name, tmp_path, settings)
    assert run.returncode and setting in run.stderr and not run.stdout


def test_unknown_options_would_be_noticed(caplog):
    """The check above rests on this warning of Beam's."""
    with caplog.at_level(logging.WARNING):
        options_of.PipelineOptions(["--direct_num_worker_count=2"]).get_all_options()
    assert "unparseable" in caplog.text

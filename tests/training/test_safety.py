"""Data and checkpoints are read without running what is in them; nothing needs the network."""

import subprocess
import sys
import zipfile

import pytest
from test_checkpoint import CLASSES, make_state
from test_train import ROOT

from rxrx1_jax.training import checkpoint

pytest_plugins = ["dataset_fixture"]

# Audit events (PEP 578): of pickle when it would import a class or function, of the import of a
# file that came with the data, of a program that is started, of a connection.
WATCH = """
import sys
seen = []
EVENTS = ("pickle.find_class", "os.system", "subprocess.Popen", "os.exec", "socket.connect")
sys.addaudithook(lambda event, data: seen.append((event, data)) if event in EVENTS else None)
"""


def watched(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", WATCH + code + "\nprint('SEEN', seen)", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.rpartition("SEEN")[2].strip()


def test_the_watch_sees_a_pickle():
    code = "import pickle, fractions; pickle.loads(pickle.dumps(fractions.Fraction(1)))"
    assert "pickle.find_class" in watched(code)


def test_importing_the_program_connects_to_nothing():
    seen = watched(
        "import rxrx1_jax.main, rxrx1_jax.training.train, rxrx1_jax.report, rxrx1_jax.correct\n"
        "seen = [(event, _) for event, _ in seen if event == 'socket.connect']"
    )
    assert seen == "[]"


def test_reading_a_dataset_and_a_checkpoint_runs_nothing(tiny, tmp_path):
    _, state = make_state()
    with checkpoint.manager(tmp_path, keep=1) as checkpoints:
        checkpoint.save(checkpoints, 7, state, CLASSES, [], 1.0)
        checkpoint.wait(checkpoints)
    code = (
        "sys.path[:0] = ['tests', 'tests/training']\n"
        "import pathlib, tensorboardX\n"
        "from test_checkpoint import CLASSES, make_state\n"
        "from rxrx1_jax.data import records\n"
        "from rxrx1_jax.training import checkpoint\n"
        "_, state = make_state()\n"
        "seen.clear()\n"
        "sites = records.Records(sys.argv[1])\n"
        "sites[0], records.Records(sys.argv[1])\n"
        "with checkpoint.manager(pathlib.Path(sys.argv[2]), 1) as checkpoints:\n"
        "    checkpoint.restore(checkpoints, state, CLASSES)\n"
        "checkpoint.load_params(sys.argv[2], 'best')\n"
    )
    assert watched(code, str(tiny.dataset), str(tmp_path)) == "[]"


def test_members_of_archives_are_read_and_never_extracted(tmp_path):
    pytest.importorskip("tensorflow_datasets", reason="needs the extra `build`")
    from tfds_builder.rxrx1.release.metadata import ReleaseError
    from tfds_builder.rxrx1.release.release import open_release

    folder = tmp_path / "manual"
    folder.mkdir()
    with zipfile.ZipFile(folder / "rxrx1-images.zip", "w") as archive:
        for name in ("../escaped.txt", "/escaped.txt", "rxrx1/images/../../escaped.txt"):
            archive.writestr(name, "x")
    with zipfile.ZipFile(folder / "rxrx1-metadata.zip", "w") as archive:
        archive.writestr("rxrx1/metadata.csv", "site_id\n../../escaped\n")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ReleaseError):
        open_release(folder)
    assert sorted(tmp_path.rglob("*")) == before


def test_tests_cannot_reach_the_network():
    import socket

    with pytest.raises(RuntimeError, match="tests need no network"):
        socket.create_connection(("192.0.2.1", 80), timeout=0.1)  # RFC 5737: nobody's address

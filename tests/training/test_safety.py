"""Data and checkpoints are read without running what is in them; nothing needs the network."""

import json
import socket
import zipfile

import pytest
from children import run
from small_state import make_state, save

from rxrx1_jax.training import checkpoint


def watched(*arguments):
    """The audit events that programs/watched.py has seen."""
    code, stdout, stderr = run("watched", *arguments)
    assert code == 0, stderr
    return json.loads(stdout.rpartition("SEEN")[2])


def test_the_watch_sees_a_pickle():
    assert "pickle.find_class" in watched("pickle")


def test_importing_the_program_connects_to_nothing():
    assert watched("import") == []


def test_reading_a_dataset_and_a_checkpoint_runs_nothing(tiny, tmp_path):
    _, state = make_state()
    with checkpoint.manager(tmp_path, keep=1) as checkpoints:
        save(checkpoints, 7, state, [], 1.0)
        checkpoint.wait(checkpoints)
    assert watched("read", tiny.dataset, tmp_path) == []


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
    with pytest.raises(RuntimeError, match="192.0.2.1"):
        socket.create_connection(("192.0.2.1", 80), timeout=0.1)  # RFC 5737: nobody's address

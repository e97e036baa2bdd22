"""storage.py: the same bytes from folders and archives; broken archives are named."""

import os
import pickle
import shutil
import signal
import socket
import struct
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_release import write_tiny_release, zip_files

from tfds_builder.rxrx1.images import View, check_images
from tfds_builder.rxrx1.release import storage as storage_module
from tfds_builder.rxrx1.release.metadata import ReleaseError
from tfds_builder.rxrx1.release.release import open_release
from tfds_builder.rxrx1.release.storage import Storage

IMAGE = "images/HUVEC-01/Plate1/B02_s1_w1.png"
STRAY = "images/HUVEC-01/Plate1/x.png"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return write_tiny_release(tmp_path_factory.mktemp("release"))


def packed(tiny: Path, root: Path, kind: str) -> Path:
    """The tiny release in one of the ways in which it may lie; returns the root to name."""
    both = ["metadata.csv", "images"]
    if kind == "folder":
        return tiny
    if kind == "subfolder":
        (root / "rxrx1").symlink_to(tiny)
    elif kind == "archives":
        zip_files(root / "rxrx1-images.zip", tiny, ["images"])
        zip_files(root / "rxrx1-metadata.zip", tiny, ["metadata.csv"])
        (root / "rxrx1-dl-embeddings.zip").symlink_to(
            zip_files(root / "other", tiny, ["metadata.csv"], "x")
        )
    elif kind == "mixed":
        (root / "metadata.csv").symlink_to(tiny / "metadata.csv")
        zip_files(root / "images.zip", tiny, ["images"], "")
    elif kind == "one archive":
        return zip_files(root / "release.zip", tiny, both, "a b/c/")
    elif kind == "one archive in a folder":
        zip_files(root / "release.zip", tiny, both, "__MACOSX/")  # resource forks are passed over
        with zipfile.ZipFile(root / "release.zip", "a") as archive:
            for path in sorted(tiny.rglob("*.*")):
                archive.write(path, "set/" + path.relative_to(tiny).as_posix())
    return root


KINDS = ["folder", "subfolder", "archives", "mixed", "one archive", "one archive in a folder"]


@pytest.mark.parametrize("kind", KINDS)
def test_same_names_and_bytes_wherever_they_lie(tiny, tmp_path, kind):
    root = packed(tiny, tmp_path, kind)
    storage = Storage(root)
    for _ in range(2):
        assert storage.holds("images") and storage.holds("metadata.csv")
        assert not storage.holds("train")
        for path in [tiny / "metadata.csv", *sorted(tiny.rglob("*.png"))[::31]]:
            name = path.relative_to(tiny).as_posix()
            assert storage.read(name) == path.read_bytes()
            assert storage.exists(name)
            assert str(root) in storage.describe(name) and storage.describe(name).endswith(name)
            assert "__MACOSX" not in storage.describe(name)
        for folder in ("images", "images/HUVEC-01", "images/U2OS-01/Plate2"):
            assert list(storage.names(folder)) == sorted(os.listdir(tiny / folder))
            assert storage.exists(folder)
        for name in (IMAGE + "x", "train/x", "train.csv"):
            assert not storage.exists(name) and not storage.names(name)
            with pytest.raises(FileNotFoundError, match=os.path.basename(name)):
                storage.read(name)
        storage = pickle.loads(pickle.dumps(storage))  # and so in another process


def test_archives_are_read_by_many_threads(tiny, tmp_path):
    storage = Storage(packed(tiny, tmp_path, "archives"))
    names = [path.relative_to(tiny).as_posix() for path in tiny.rglob("*.png")] * 3
    with ThreadPoolExecutor(8) as pool:
        contents = list(pool.map(storage.read, names))
    assert contents == [(tiny / name).read_bytes() for name in names]


def test_extracted_files_go_before_archives_and_two_archives_are_refused(tiny, tmp_path):
    for name in ("a.zip", "b.zip"):
        zip_files(tmp_path / name, tiny, ["metadata.csv", "images"])
    for name in ("metadata.csv", IMAGE):
        with pytest.raises(ReleaseError, match=rf"{name[:12]}.*a\.zip.*b\.zip"):
            Storage(tmp_path).read(name)
    (tmp_path / "metadata.csv").write_text("extracted")
    assert Storage(tmp_path).read("metadata.csv") == b"extracted"
    (tmp_path / "a.zip").write_text("cut off")
    shutil.copytree(tiny / "images", tmp_path / "images")
    storage = Storage(tmp_path)
    assert storage.names("images") == sorted(os.listdir(tiny / "images"))
    assert storage.read(IMAGE) == (tiny / IMAGE).read_bytes()


SPECIAL = {  # what would block or never end, and how it is made
    "pipe": lambda path: os.mkfifo(path),
    "socket": lambda path: socket.socket(socket.AF_UNIX).bind(os.path.relpath(path)),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "link to a pipe": lambda path: (os.mkfifo(f"{path}.pipe"), path.symlink_to(f"{path}.pipe")),
}


@pytest.fixture
def soon():
    """Ends a test that hangs."""
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(60)
    yield
    signal.alarm(0)


@pytest.mark.parametrize("place", ["metadata.csv", IMAGE, "other.zip", "notes", STRAY])
@pytest.mark.parametrize("kind", SPECIAL)
def test_special_files_are_never_waited_for(tiny, tmp_path, soon, caplog, monkeypatch, kind, place):
    root = Path(shutil.copytree(tiny, tmp_path / "r"))
    monkeypatch.chdir(tmp_path)
    path = root / place
    path.unlink(missing_ok=True)
    SPECIAL[kind](path)
    if place == "metadata.csv":
        with pytest.raises(ReleaseError, match=f"{path} "):
            open_release(root)
        return
    release = open_release(root)
    if place == IMAGE:
        with pytest.raises(ReleaseError, match=f"^1 image.*\n.*{path} "):
            check_images(release, View(16, 16))
        with pytest.raises(ReleaseError, match=f"{path} "):
            release.storage.read(place)
    assert (str(path) in caplog.text) == (place in ("other.zip", STRAY))


@pytest.mark.parametrize("kind", SPECIAL)
def test_special_file_as_the_release(tmp_path, soon, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    for name in ("release.zip", "release"):
        SPECIAL[kind](tmp_path / name)
        with pytest.raises(ReleaseError, match=f"{tmp_path / name} "):
            open_release(tmp_path / name)


@pytest.mark.parametrize("says", [None, 100])  # what the archive says that it unpacks to
@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("name", ["metadata.csv", IMAGE])
def test_member_that_unpacks_to_a_flood(tmp_path, monkeypatch, method, says, name):
    monkeypatch.setattr(storage_module, "TABLE_BYTES", 1 << 20)
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(name, bytes(1 << 27))
    if says:
        central = path.read_bytes().rindex(b"PK\x01\x02")
        edit(path, central + 24, struct.pack("<I", says))
    tracemalloc.start()
    try:
        with pytest.raises(ReleaseError, match=f"{path}: {name} "):
            Storage(path).read(name)
        assert tracemalloc.get_traced_memory()[1] < 1 << 26
    finally:
        tracemalloc.stop()


def test_extracted_file_that_is_too_large(tmp_path):
    (tmp_path / "metadata.csv").touch()
    os.truncate(tmp_path / "metadata.csv", 1 << 40)  # takes no place on the disk
    with pytest.raises(ReleaseError, match="metadata.csv .* 67 MB"):
        Storage(tmp_path).read("metadata.csv")


def test_home_and_brackets_in_paths(tiny, tmp_path, monkeypatch):
    root = Path(shutil.copytree(tiny, tmp_path / "rele[as]e *?"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in (root, f"~/{root.name}"):
        assert Storage(path).read(IMAGE) == (tiny / IMAGE).read_bytes()


def test_members_outside_the_release_are_out_of_reach(tiny, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("x")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("metadata.csv", "table")
        archive.writestr("images/../../secret", "member")
        archive.writestr("/etc/images/x.png", "member")
    storage = Storage(tmp_path / "a.zip")
    assert storage.read("images/../../secret") == b"member"  # a name, not a path
    with pytest.raises(FileNotFoundError):
        storage.read("images/../secret")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "secret"]


def edit(path: Path, at: int, new: bytes) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:at] + new + data[at + len(new) :])


@pytest.mark.parametrize(
    "kind", ["cut", "empty", "text", "crc", "data", "encrypted", "method", "folder"]
)
def test_broken_archive_names_archive_and_member(tmp_path, kind):
    path = tmp_path / "a.zip"
    text = b"0123456789" * 50
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rxrx1/metadata.csv", text)
    data = path.read_bytes()
    local, central = 0, data.index(b"PK\x01\x02")
    if kind == "cut":
        path.write_bytes(data[:-30])
    elif kind in ("empty", "text"):
        path.write_bytes(b"" if kind == "empty" else text)
    elif kind == "crc":
        edit(path, central + 16, b"\0\0\0\0")
    elif kind == "data":
        edit(path, local + 30 + len("rxrx1/metadata.csv"), b"\xff\xff\xff")
    elif kind == "encrypted":
        edit(path, central + 8, struct.pack("<H", 1))
        edit(path, local + 6, struct.pack("<H", 1))
    elif kind == "method":
        edit(path, central + 10, struct.pack("<H", 97))
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    member = "" if kind in ("cut", "empty", "text", "folder") else ": rxrx1/metadata.csv"
    with pytest.raises(ReleaseError) as error:
        Storage(tmp_path).read("metadata.csv")
    assert f"{path}{member} " in str(error.value)
    assert ("encrypted" in str(error.value)) == (kind == "encrypted")


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 400), st.binary(min_size=1, max_size=8))
def test_any_edit_of_an_archive_gives_the_bytes_or_a_named_error(tmp_path, at, new):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rxrx1/metadata.csv", "0123456789" * 9)
        archive.writestr("rxrx1/images/HUVEC-01/Plate1/B02_s1_w1.png", "png")
    edit(path, at % path.stat().st_size, new)
    try:
        assert Storage(path).read("metadata.csv") == b"0123456789" * 9
    except FileNotFoundError:
        pass  # the name itself was edited
    except ReleaseError as error:
        assert str(path) in str(error)

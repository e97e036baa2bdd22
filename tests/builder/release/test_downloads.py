"""Downloads against a server on this machine: fetched once, checked, refused when damaged."""

import hashlib
import http.server
import threading
from pathlib import Path

import pytest
from tiny_release import write_tiny_release, zip_files

tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra `build`")

from tfds_builder.rxrx1 import Builder, Rxrx1Config  # noqa: E402
from tfds_builder.rxrx1.release import downloads  # noqa: E402
from tfds_builder.rxrx1.release.metadata import ReleaseError  # noqa: E402

CONTENT = b"an archive" * 1000


@pytest.fixture
def server(tmp_path):
    """(address, list of the requested paths) of a server of tmp_path/served."""
    folder, requested = tmp_path / "served", []
    folder.mkdir()
    (folder / "rxrx1-metadata.zip").write_bytes(CONTENT)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, format, *args):
            requested.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", requested
        running.shutdown()


def manager(tmp_path: Path):
    return tfds.download.DownloadManager(download_dir=tmp_path / "downloads", dataset_name="rxrx1")


def archive(address: str, content: bytes = CONTENT) -> downloads.Archive:
    return downloads.Archive(
        f"{address}/rxrx1-metadata.zip", len(content), hashlib.md5(content).hexdigest()
    )


def test_fetched_once_and_linked_by_name(tmp_path, server):
    address, requested = server
    folder = tmp_path / "downloads" / "rxrx1_official"
    manager(tmp_path).download(archive(address).url)  # and the process is killed before the check
    for _ in range(2):  # the second run finds the link
        assert downloads.fetch([archive(address)], manager(tmp_path), folder) == folder
    assert (folder / "rxrx1-metadata.zip").read_bytes() == CONTENT
    assert [path.name for path in folder.iterdir()] == ["rxrx1-metadata.zip"]
    assert len(requested) == 1


@pytest.mark.parametrize("published", [CONTENT[:-1], CONTENT[:-1] + b"x"])
def test_damaged_file_is_refused(tmp_path, server, published):
    address, _ = server
    folder = tmp_path / "release"
    with pytest.raises(ReleaseError, match=f"{tmp_path}/downloads.*{address}") as error:
        downloads.fetch([archive(address, published)], manager(tmp_path), folder)
    assert hashlib.md5(published).hexdigest() in str(error.value)
    assert not list(folder.iterdir())


def test_missing_file_says_what_to_do_by_hand(tmp_path, server):
    url = server[0] + "/gone.zip"
    with pytest.raises(ReleaseError, match=f"404.*{url}.*--manual_dir"):
        downloads.fetch([downloads.Archive(url, 1, "")], manager(tmp_path), tmp_path / "release")


def test_full_disk_is_seen_before_the_download(tmp_path, server):
    huge = archive(server[0])._replace(bytes=10**18)
    with pytest.raises(ReleaseError, match="1000000000.0 GB"):
        downloads.fetch([huge], manager(tmp_path), tmp_path / "release")
    assert not server[1]


def test_builds_from_what_was_downloaded_once(tmp_path, server, monkeypatch):
    """The way of `tfds build` without --manual_dir: download, check, link, build; twice."""
    address, requested = server
    release, served = write_tiny_release(tmp_path / "release", 16), tmp_path / "served"
    published = []
    for name, top in (("rxrx1-metadata.zip", "metadata.csv"), ("rxrx1-images.zip", "images")):
        content = zip_files(served / name, release, [top]).read_bytes()
        md5 = hashlib.md5(content).hexdigest()
        published.append(downloads.Archive(f"{address}/{name}", len(content), md5))
    monkeypatch.setitem(downloads.ARCHIVES, "official", published)
    manual = tmp_path / "data" / "downloads" / "manual"  # TFDS's default
    manual.mkdir(parents=True)
    (manual / "imagenet.zip").write_bytes(b"of another dataset")

    def build(size: int) -> None:
        config = Rxrx1Config(name=f"px{size}", size=size, source_size=16)
        builder = Builder(config=config, data_dir=tmp_path / "data")
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig())
        assert len(builder.as_dataset(split="train")) == 39

    for size in (16, 8):
        build(size)
    assert len(requested) == 2
    (tmp_path / "data" / "downloads" / "rxrx1_archives_official").rename(tmp_path / "gone")
    write_tiny_release(manual / "rxrx1", 16)
    build(4)
    assert len(requested) == 2


def test_bucket_is_refused(tmp_path, server):
    with pytest.raises(ReleaseError, match="gs://bucket/x: .*--download_dir"):
        downloads.fetch([archive(server[0])], manager(tmp_path), "gs://bucket/x")

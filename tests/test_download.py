"""The two archives of the real screen, from a server on this machine that breaks off."""

import hashlib
import http.server
import threading
import zipfile
from pathlib import Path

import pytest
from commands import run_command
from official_tables import ARCHIVES, made_up, synthetic_sites, write_archives

from rxrx1_jax import download

CUT = 40_000  # bytes after which the server breaks off, once per archive
EMBEDDINGS = "rxrx1-dl-embeddings.zip"


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    sites = synthetic_sites(huvec=1, rpe=0, hepg2=0, u2os=0)
    write_archives(folder, sites, made_up(sites, 32))
    return folder


@pytest.fixture
def server(published, monkeypatch):
    """Its address, and (path, first byte) of each request. It breaks off once, and knows Range."""
    requests: list[tuple[str, int]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers.get("Range", "bytes=0-")
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            requests.append((self.path, start))
            file = published / self.path.lstrip("/")
            if not file.exists():
                self.send_error(404)
                return
            content = file.read_bytes()
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start:] if start else content[:CUT])
            self.close_connection = True

        def log_message(self, format, *args):
            pass

    sums = {}
    for name, member in ARCHIVES.items():
        with zipfile.ZipFile(published / name) as archive:
            sums[name] = hashlib.sha256(archive.read(member)).hexdigest()
    ours = [archive._replace(sha256=sums[archive.name]) for archive in download.ARCHIVES]
    monkeypatch.setattr(download, "ARCHIVES", ours)
    monkeypatch.setattr(download, "WAIT", 0.0)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", requests
        running.shutdown()


def test_a_broken_transfer_resumes_and_a_second_call_fetches_nothing(tmp_path, server, published):
    address, requests = server
    assert (published / EMBEDDINGS).stat().st_size > CUT
    for _ in range(2):
        done = run_command("download", f"--out={tmp_path}/new/data", f"--from={address}/")
        assert done.code == 0, done
        assert done.out.split() == [str(tmp_path / "new/data" / name) for name in ARCHIVES]
    assert [start for path, start in requests if path.endswith(EMBEDDINGS)] == [0, CUT]
    for name in ARCHIVES:
        assert (tmp_path / "new/data" / name).read_bytes() == (published / name).read_bytes()
    assert len(list((tmp_path / "new/data").iterdir())) == 2


def test_whoever_has_the_files_gives_their_folder(tmp_path, server, published):
    done = run_command("download", f"--out={tmp_path}", f"--from={published}")
    assert done.code == 0 and server[1] == []
    assert (tmp_path / EMBEDDINGS).read_bytes() == (published / EMBEDDINGS).read_bytes()


def test_a_whole_part_is_checked_and_taken(tmp_path, server, published):
    (tmp_path / f"{EMBEDDINGS}.part").write_bytes((published / EMBEDDINGS).read_bytes())
    assert run_command("download", f"--out={tmp_path}", f"--from={server[0]}").code == 0
    assert (tmp_path / EMBEDDINGS).exists()


@pytest.mark.parametrize("fault", ["other numbers", "no table", "no zip", "damaged"])
def test_what_was_not_published_is_refused_and_removed(tmp_path, server, published, fault):
    folder = tmp_path / "from"
    folder.mkdir()
    for name in ARCHIVES:
        (folder / name).write_bytes((published / name).read_bytes())
    name, member = EMBEDDINGS, ARCHIVES[EMBEDDINGS]
    if fault in ("other numbers", "no table"):
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr(member if fault == "other numbers" else "other.csv", "site_id\n")
    else:
        content = bytearray((folder / name).read_bytes())
        content[1000:1010] = b"0123456789"
        (folder / name).write_bytes(b"<html>" if fault == "no zip" else content)
    done = run_command("download", f"--out={tmp_path}/new", f"--from={folder}")
    assert done.code == 1 and done.last.startswith("error: ")
    assert name in done.last and member in done.last and download.ARCHIVES[1].sha256 in done.last
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["rxrx1-metadata.zip"]


@pytest.mark.parametrize("base", ["/nowhere", "http://127.0.0.1:9", "{server}/gone"])
def test_what_cannot_be_fetched_is_one_line(tmp_path, server, base):
    base = base.format(server=server[0])
    done = run_command("download", f"--out={tmp_path}", f"--from={base}")
    assert done.code == 1 and f"{base}/rxrx1-metadata.zip" in done.last
    assert len(done.last.splitlines()) == 1 and not list(tmp_path.glob("*.zip"))

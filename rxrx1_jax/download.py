"""Fetches what a look at the real screen needs: `python -m rxrx1_jax.download`.

These are two archives that Recursion publishes, 52 MB: the metadata of RxRx1 and 128 numbers per
site, the embeddings of a network of theirs. No image is fetched. A transfer that was cut resumes
where it ended. Each archive is checked against the published SHA-256 of the table in it. RxRx1 is
under CC BY-NC-SA 4.0.
"""

import hashlib
import http.client
import os
import sys
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from rxrx1_jax.config import user_path
from rxrx1_jax.report import command

BUCKET = "https://storage.googleapis.com/rxrx/rxrx1"
FOLDER = "data/rxrx1_embeddings"
BLOCK = 1 << 18  # bytes
ATTEMPTS = 5  # in a row that bring nothing
WAIT = 2.0  # seconds before another
TIMEOUT = 30.0  # seconds without a byte


class Archive(NamedTuple):
    name: str
    table: str  # in it
    sha256: str  # of the table


# Of github.com/recursionpharma/rxrx-datasets, rxrx1/README.md.
ARCHIVES = (
    Archive("rxrx1-metadata.zip", "rxrx1/metadata.csv",
            "799ed719d2be136db29fef6fcb7a51ceb94d1de9d43421a49b16409329a2f1b7"),
    Archive("rxrx1-dl-embeddings.zip", "rxrx1/embeddings.csv",
            "e38f50b74c45682ec9ce7e6407b891c953c27217be5e39b187d289320395a192"),
)  # fmt: skip


class DownloadError(OSError):
    """An archive that cannot be had; one line."""


def fetch(archive: Archive, folder: Path, base: str) -> Path:
    """FOLDER/NAME, downloaded unless it is there; it appears once it is whole and checked.

    base: URL that it lies below.

    Raises DownloadError.
    """
    path, partial = folder / archive.name, folder / f"{archive.name}.part"
    if path.exists():
        return path
    url = f"{base}/{archive.name}"
    failed, last, attempts = 0, "", 1 if base.startswith("file:") else ATTEMPTS
    while failed < attempts:
        before = partial.stat().st_size if partial.exists() else 0
        try:
            _transfer(url, partial, before)
            break
        except urllib.error.HTTPError as error:
            if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise DownloadError(f"{url}: {error}; is it still there?") from error
            break  # nothing is missing; the check tells
        except (OSError, http.client.HTTPException) as error:
            last = str(error) or type(error).__name__
            gained = partial.exists() and partial.stat().st_size > before
            failed = 0 if gained else failed + 1
            if failed < attempts:
                time.sleep(WAIT)
    else:
        kept = partial.stat().st_size if partial.exists() else 0
        raise DownloadError(
            f"{url}: {last}; the same command goes on ({kept / 1e6:.1f} MB are here), or fetch it"
            " by hand and give its folder as --from"
        )
    _check(archive, partial, url)
    os.replace(partial, path)
    return path


def _transfer(url: str, partial: Path, have: int) -> None:
    """The bytes from `have` on; all of them where the server has no parts to give."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        goes_on = answer.status == http.client.PARTIAL_CONTENT
        start = have if goes_on else 0
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length else None
        with (
            open(partial, "ab" if goes_on else "wb") as file,
            tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=partial.stem) as bar,
        ):
            while block := answer.read(BLOCK):
                file.write(block)
                bar.update(len(block))
        if total is not None and partial.stat().st_size < total:
            raise http.client.IncompleteRead(b"", total - partial.stat().st_size)


def _check(archive: Archive, path: Path, url: str) -> None:
    """Raises DownloadError, and removes the file, unless it holds the published table."""
    try:
        with zipfile.ZipFile(path) as held, held.open(archive.table) as table:
            found = hashlib.file_digest(table, "sha256").hexdigest()  # type: ignore[arg-type]
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
        found = str(error).strip("'\"")
    if found != archive.sha256:
        size = path.stat().st_size
        path.unlink()
        raise DownloadError(
            f"{url}: {size} bytes whose {archive.table} is not the published one ({found}; expected"
            f" SHA-256 {archive.sha256}); removed: run the same command again"
        )


def main() -> int:
    parser = command.Plain("download", __doc__ or "")
    parser.add_argument("--out", type=user_path, default=FOLDER, metavar="DIR",
                        help=f"folder for the archives (default: {FOLDER})")  # fmt: skip
    parser.add_argument("--from", dest="base", default=BUCKET, metavar="DIR",
                        help="folder, or URL, that has them already")  # fmt: skip
    options = parser.parse_args()

    def work() -> None:
        base = options.base.rstrip("/")
        if "://" not in base:
            base = user_path(base).absolute().as_uri()
        options.out.mkdir(parents=True, exist_ok=True)
        for archive in ARCHIVES:
            print(fetch(archive, options.out, base))

    return command.run(work)


if __name__ == "__main__":
    sys.exit(main())

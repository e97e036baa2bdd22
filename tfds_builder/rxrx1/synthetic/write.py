"""Writes a synthetic screen to a folder; an interrupted run goes on."""

import csv
import functools
import io
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
from etils import epath
from tqdm import tqdm

from ..machine import usable_cpus, write_whole
from ..release.metadata import CHANNELS, COLUMNS, ReleaseError, Site
from .screen import (
    DRAWING,
    SCREEN_FILE,
    TRUTH_FILE,
    Screen,
    render_site,
    screen_sites,
    screen_truth,
)  # fmt: skip


def write_release(screen: Screen, root: Path, processes: int | None = None) -> Path:
    """Write the whole release and return its folder.

    processes: worker processes (None: one per core this process may use; 1: none are started). A
    folder that holds the finished screen is returned at once; an unfinished one of the same
    parameters is completed, whole files being kept.

    Raises:
        ReleaseError: the folder holds a screen of other parameters, or something else.
    """
    if claim(root, screen):
        return root
    sites = screen_sites(screen)
    for folder in {(site.experiment, site.plate) for site in sites}:
        (root / "images" / folder[0] / f"Plate{folder[1]}").mkdir(parents=True, exist_ok=True)
    if processes is None:
        processes = usable_cpus()
    work = functools.partial(_write_site, screen, str(root))
    with tqdm(total=len(sites), unit="site", desc="synthetic screen") as bar:
        if processes <= 1:
            for site in sites:
                work(site)
                bar.update()
        else:
            # spawn, not fork: the caller may have threads (TensorFlow), which fork would break.
            with multiprocessing.get_context("spawn").Pool(processes, _start_worker) as pool:
                for _ in pool.imap_unordered(work, sites, chunksize=16):
                    bar.update()
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([getattr(site, name) for name in COLUMNS] for site in sites)
    write_whole(root / "metadata.csv", table.getvalue().encode())
    truth = json.dumps(screen_truth(screen, sites))
    write_whole(root / TRUTH_FILE, truth.encode())
    return root


def claim(root: Path, screen: Screen) -> bool:
    """Mark the folder as this screen's; True when it is finished already.

    Raises:
        ReleaseError: the folder holds a screen of other parameters, or something else.
    """
    wanted = {"drawing": DRAWING, **asdict(screen)}
    marker = root / SCREEN_FILE
    if not marker.exists():
        if root.exists() and any(root.iterdir()):
            raise ReleaseError(
                f"{root}: not empty and without {SCREEN_FILE}, so not a synthetic screen; "
                "choose an empty folder"
            )
        root.mkdir(parents=True, exist_ok=True)
        write_whole(marker, json.dumps(wanted, indent=1).encode())
        return False
    # A screen from before `effects` holds all of them.
    found = {"effects": "all", **json.loads(marker.read_text())}
    if found != wanted:
        names = [k for k in wanted | found if wanted.get(k) != found.get(k)]
        changes = ", ".join(f"{k} {found.get(k)!r} (asked: {wanted.get(k)!r})" for k in names)
        raise ReleaseError(
            f"{marker}: the folder holds another screen: {changes}; "
            "choose another folder or delete this one"
        )
    return (root / TRUTH_FILE).exists()


def _start_worker() -> None:
    cv2.setNumThreads(1)  # the processes are the parallelism


def _write_site(screen: Screen, root: str, site: Site) -> None:
    """Draw and write the six planes of a site, unless they are all there."""
    folder = f"{root}/images/{site.experiment}/Plate{site.plate}/{site.well}_s{site.site}_w"
    paths = [Path(f"{folder}{channel}.png") for channel in range(1, len(CHANNELS) + 1)]
    if all(path.exists() for path in paths):
        return
    for path, plane in zip(paths, render_site(screen, site), strict=True):
        done, data = cv2.imencode(".png", plane, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        if not done:
            raise RuntimeError(f"{path}: OpenCV could not encode the image as PNG")
        write_whole(path, data.tobytes())


def start(parameters: Mapping[str, Any], folder: epath.PathLike) -> None:
    """Runs the generator of the synthetic screen, in an interpreter of its own.

    Its workers are spawned, and a spawned worker begins by importing the program that started it:
    that would be TFDS's command line with TensorFlow, or a caller's script without a main guard.

    Raises:
      ReleaseError: the folder holds something else; or the generator failed, whose last words
        stand on stderr.
    """
    screen = Screen(**parameters)
    if claim(Path(folder), screen):
        return
    options = asdict(screen)
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    package = __package__  # rxrx1.synthetic if TFDS loaded this folder
    source = os.fspath(Path(__file__).parents[package.count(".") + 1])
    path = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", package, os.fspath(folder), *arguments]
    status = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}).returncode
    if status:
        raise ReleaseError(
            f"the synthetic screen was not written to {folder} (exit status {status}); the reason"
            " stands above"
        )

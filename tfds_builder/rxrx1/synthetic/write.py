"""Writes a synthetic screen to a folder; an interrupted run goes on."""

import csv
import functools
import io
import json
from dataclasses import asdict
from pathlib import Path

import cv2
from etils import epath
from tqdm import tqdm

from ..machine import map_in_order, write_whole
from ..release.metadata import CHANNELS, COLUMNS, ReleaseError, Site
from .screen import DRAWING, Screen, render_site, screen_sites, screen_truth

SCREEN_FILE, TRUTH_FILE = "screen.json", "truth.json"


def write_release(screen: Screen, root: epath.PathLike) -> Path:
    """Write the whole release and return its folder.

    A folder that holds the finished screen is returned at once; an unfinished one of the same
    parameters is completed, whole files being kept.

    Raises:
        ReleaseError: the folder holds a screen of other parameters, or something else.
    """
    root = Path(root)
    if _claim(root, screen):
        return root
    sites = screen_sites(screen)
    for folder in {(site.experiment, site.plate) for site in sites}:
        (root / "images" / folder[0] / f"Plate{folder[1]}").mkdir(parents=True, exist_ok=True)
    written = map_in_order(functools.partial(_write_site, screen, root), sites)
    for _ in tqdm(written, "Drawing", len(sites), unit=" sites"):
        pass
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerows([COLUMNS, *sites])
    write_whole(root / "metadata.csv", table.getvalue().encode())
    write_whole(root / TRUTH_FILE, json.dumps(screen_truth(screen, sites)).encode())
    return root


def _claim(root: Path, screen: Screen) -> bool:
    """Marks the folder as this screen's; True when it is finished already."""
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
    found = json.loads(marker.read_text())
    if found != wanted:
        names = [k for k in wanted | found if wanted.get(k) != found.get(k)]
        changes = ", ".join(f"{k} {found.get(k)!r} (asked: {wanted.get(k)!r})" for k in names)
        raise ReleaseError(
            f"{marker}: the folder holds another screen: {changes}; "
            "choose another folder or delete this one"
        )
    return (root / TRUTH_FILE).exists()


def _write_site(screen: Screen, root: Path, site: Site) -> None:
    """Draw and write the six planes of a site, unless they are all there."""
    folder = root / "images" / site.experiment / f"Plate{site.plate}"
    names = [f"{site.well}_s{site.site}_w{n}.png" for n in range(1, len(CHANNELS) + 1)]
    if all((folder / name).exists() for name in names):
        return
    for name, plane in zip(names, render_site(screen, site), strict=True):
        _, data = cv2.imencode(".png", plane, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        write_whole(folder / name, data.tobytes())

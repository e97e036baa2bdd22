"""A page as headless Chromium lays it out: at three widths, and in print on A4."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--allow-file-access-from-files", "--virtual-time-budget=20000", "--dump-dom",
)  # fmt: skip
WIDTHS = (1280, 800, 390)
PRINTED = 703  # px of A4 within margins of 12 mm
# Tells the page around it what stands out of it on either side, and how many pictures are shown.
PROBE = """<script>addEventListener("load", () => {
  const out = [...document.body.querySelectorAll("*")].filter(part => {
    const box = part.getBoundingClientRect();
    return box.width > 1 && (box.right > innerWidth + 0.5 || box.left < -0.5);
  });
  const images = [...document.images].filter(image => image.naturalWidth).length;
  parent.postMessage({width: innerWidth, page: document.documentElement.scrollWidth,
                      out: out.map(part => part.outerHTML.slice(0, 90)), images: images}, "*");
})</script>"""
AROUND = """<!doctype html><script>addEventListener("message", told => {
  const said = document.createElement("pre");
  said.textContent = JSON.stringify(told.data);
  document.body.append(said);
})</script>"""


def laid_out(page: Path, folder: Path) -> list[dict[str, Any]]:
    """{"width", "page": its width, "out": parts wider than it, "images"} for each width and print.

    folder: for what Chromium writes.
    """
    text = page.read_text()
    printed = text.replace("@media print", "@media all").replace("@media screen", "@media not all")
    frames = [(width, text) for width in WIDTHS] + [(PRINTED, printed)]
    around = AROUND
    for k, (width, content) in enumerate(frames):
        copy = page.with_name(f"probe{k}.html")
        copy.write_text(content.replace("</body>", f"{PROBE}</body>"))
        around += f'<iframe src="{copy.as_uri()}" style="width: {width}px; border: 0"></iframe>'
    (folder / "around.html").write_text(around)
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", folder / "around.html"],
        capture_output=True, text=True, timeout=150, check=True,
    )  # fmt: skip
    for k in range(len(frames)):
        page.with_name(f"probe{k}.html").unlink()
    said = re.findall("<pre>(.*?)</pre>", done.stdout, re.DOTALL)
    return sorted((json.loads(html.unescape(one)) for one in said), key=lambda one: one["width"])


def check_page(page: Path, folder: Path) -> None:
    """Every part of the page, and every picture, is seen at every width and in print."""
    found = laid_out(page, folder)
    assert [one["width"] for one in found] == sorted([*WIDTHS, PRINTED])
    for one in found:
        assert not one["out"] and one["page"] <= one["width"], one
        assert one["images"] == page.read_text().count("<img ")


def texts(svg: Path) -> list[ElementTree.Element]:
    return list(ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text"))


def check_text(svg: Path) -> None:
    """Text that a telephone shows: the picture has 358 of its 390 px, its smallest text 9 px."""
    width = float(ElementTree.parse(svg).getroot().attrib["viewBox"].split()[2])
    sizes = [re.search(r"([\d.]+)px", text.attrib["style"]) for text in texts(svg)]
    assert sizes and min(float(size[1]) for size in sizes if size) * 358 / width >= 9, svg

"""LDA-12 against the pixels; Kaggle's table of pixels as a file."""

import csv
from pathlib import Path

import numpy as np
import pytest
from commands import run_command
from screens import tiny_images

from rxrx1_jax.data.images import METADATA
from rxrx1_jax.data.pixel_stats import read_pixel_stats
from rxrx1_jax.data.splits import make_split
from rxrx1_jax.methods import lda12

SIZE = 16 * 16


def test_the_twelve_numbers_are_those_of_the_pixels():
    images = tiny_images()
    sites = images.sites
    found = lda12.intensities(sites, SIZE)
    own = [row for row, site in enumerate(sites) if site["plate"] == 1]
    assert len(own) > 20
    for row in own:
        plate = (sites["experiment"] == sites["experiment"][row]) & (
            sites["plate"] == sites["plate"][row]
        )
        controls = images.planes[plate & (sites["well_type"] != "treatment")].astype(np.float64)
        mean, sd = controls.mean((0, 2, 3)), controls.std((0, 2, 3))
        image = images.planes[row].astype(np.float64)
        expected = [*(image.mean((1, 2)) - mean) / sd, *np.log(image.std((1, 2)) / sd)]
        np.testing.assert_allclose(found[row], expected, rtol=1e-4, atol=1e-5)


def test_a_channel_without_variation_is_finite():
    images = tiny_images()
    images.sites["pixel_sum"][:, 0], images.sites["pixel_sum2"][:, 0] = 3 * SIZE, 9 * SIZE
    images.sites["control_std"][:, 0] = 0
    assert np.isfinite(lda12.intensities(images.sites, SIZE)).all()


@pytest.fixture
def files(tmp_path):
    """pixel_stats.csv in Kaggle's form, of the tiny release, and a metadata.csv."""
    images = tiny_images()
    with open(tmp_path / "pixel_stats.csv", "w", newline="") as file:
        write = csv.writer(file).writerow
        write("id_code experiment plate well site channel mean std median min max".split())
        for image, s in zip(images.planes, images.sites, strict=True):
            for channel, plane in enumerate(image, 1):
                write([s["well_id"], s["experiment"], s["plate"], s["well"], s["site"], channel,
                       plane.mean(), plane.std(), np.median(plane), plane.min(), plane.max()])
    with open(tmp_path / "metadata.csv", "w", newline="") as file:
        write = csv.writer(file).writerow
        write(METADATA)
        for site in images.sites[list(METADATA)].tolist():
            write(site)
    return images, tmp_path / "pixel_stats.csv", tmp_path / "metadata.csv"


def test_kaggle_s_table_gives_the_sites_of_the_images(files):
    images, stats, metadata = files
    found = read_pixel_stats(stats, metadata, SIZE)
    expected = np.sort(images.sites, order="site_id")
    for name in (*METADATA, "pixel_sum", "pixel_sum2", "control_mean", "control_std"):
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    tables = [lda12.lda12(sites, SIZE, make_split(sites, "official"), "official").sort_by("site_id")
              for sites in (found, images.sites)]  # fmt: skip
    assert tables[0].equals(tables[1])


def test_the_command_prints_a_row_per_split(files, monkeypatch):
    _, stats, metadata = files
    monkeypatch.setattr("rxrx1_jax.data.pixel_stats.PIXELS", SIZE)
    arguments = [f"--pixel_stats={stats}", f"--metadata={metadata}", "--protocols", "official"]
    done = run_command("lda12", *arguments)
    (row,) = [line for line in done.out.splitlines() if line.startswith("| official")]
    cells = [float(cell) for cell in row.strip("| ").split(" | ")[1:]]
    assert done.code == 0 and len(cells) == 5 and all(0 <= cell <= 100 for cell in cells)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda stats, metadata: metadata.write_text("\n".join(metadata.read_text().split()[:9])),
         ["pixel_stats.csv", "metadata.csv"]),
        (lambda stats, metadata: stats.write_text(stats.read_text().rsplit("\n", 2)[0]),
         ["5 rows", "1 to 6"]),
        (lambda stats, metadata: stats.write_text(stats.read_text().replace("std", "sd")),
         ["pixel_stats.csv", "std"]),
        (lambda stats, metadata: stats.write_text("id_code\n"), ["pixel_stats.csv"]),
        (lambda stats, metadata: metadata.unlink(), ["metadata.csv"]),
        (lambda stats, metadata: stats.write_text(stats.read_text().replace(",6,", ",six,")),
         ["pixel_stats.csv", "six"]),
        (lambda stats, metadata: stats.write_text(stats.read_text().replace(",3,", ",3,-")),
         ["pixel_stats.csv", "0 to 255"]),
        (lambda stats, metadata: stats.write_text("".join(stats.read_text().partition("\n")[:2])),
         ["pixel_stats.csv", "no rows"]),
    ],
)  # fmt: skip
def test_bad_files_are_one_line(files, change, named):
    _, stats, metadata = files
    change(stats, metadata)
    done = run_command("lda12", f"--pixel_stats={stats}", f"--metadata={metadata}")
    assert done.code == 1 and all(name in done.last for name in named), done.last
    assert len(done.err.strip().splitlines()) == 1


def test_the_two_files_go_together(tmp_path):
    assert "--metadata" in run_command("lda12", f"--pixel_stats={Path('x')}").last

"""`show`: the right sites in the right places, and contrast against NumPy."""

import io
import os
import shutil
import sys

import numpy as np
import pytest
from matplotlib.image import imread
from tiny_release import read_pngs, tiny_rows

tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra `build`")

from tfds_builder import faux_colours  # noqa: E402
from tfds_builder.rxrx1.__main__ import main  # noqa: E402
from tfds_builder.rxrx1.look import figures, show, stored  # noqa: E402

ROWS = {row["site_id"]: row for row in tiny_rows()}


@pytest.fixture
def draw(tiny, tmp_path, monkeypatch):
    """draw(options) -> {kind: (what its figure was drawn from, the figure)}; `names` of files."""
    drawn = {}

    def noted(kind):
        make = getattr(show, f"{kind}_figure")

        def figure(*given):
            drawn[kind] = given[0], make(*given)
            return drawn[kind][1]

        monkeypatch.setattr(show, f"{kind}_figure", figure)

    for kind in ("plate", "maps", "sirna", "site"):
        noted(kind)
    monkeypatch.setattr(show, "DPI", 40)

    def run(**options):
        drawn.clear()
        paths = show.show(stored.open_dataset(tiny.dataset), tmp_path / "out", **options)
        drawn["names"] = [path.name.removeprefix("tiny_") for path in paths]
        return drawn

    return run


def test_four_pictures_are_written(tiny, tmp_path, capsys):
    out = tmp_path / "new" / "pictures"
    assert main(["show", str(tiny.dataset.parent), f"--out={out}"]) == 0
    paths = capsys.readouterr().out.split()
    assert sorted(paths) == sorted(map(str, out.iterdir()))
    # the lowest treatment on the first plate of HUVEC, the paper's first cell type
    assert [os.path.basename(path) for path in paths] == [
        "tiny_plate_HUVEC-01_1.png",
        "tiny_maps_HUVEC-01_1_2.png",
        "tiny_sirna_0_HUVEC-01_1.png",
        "tiny_site_HUVEC-01_1_D04_2.png",
    ]
    for path in paths:
        picture = imread(path)  # RGBA in 0..1
        assert picture.shape[0] > 700 and picture.shape[1] > 900
        assert picture[..., :3].std() > 0.05


@pytest.mark.parametrize(
    ("options", "plate", "second", "sirna", "site"),
    [
        ({"experiment": "U2OS-01", "plate": 2, "sirna_id": 1107}, "U2OS-01_2", 1, "1107", "O23_1"),
        ({"plate": 2}, "HUVEC-01_2", 1, "0", "D04_1"),
        ({"sirna_id": 1}, "HUVEC-01_2", 1, "1", "D05_1"),
        ({"sirna_id": 1138, "cell_type": "U2OS"}, "U2OS-01_1", 2, "1138", "B02_1"),
        ({"sirna_id": 1109, "experiment": "HUVEC-02"}, "HUVEC-02_2", 1, "1109", "C07_1"),
    ],
)
def test_names_carry_what_was_asked(draw, options, plate, second, sirna, site):
    of_type = f"_{options['cell_type']}" if "cell_type" in options else ""
    names = [f"plate_{plate}", f"maps_{plate}_{second}", f"sirna_{sirna}_{plate}{of_type}"]
    names.append(f"site_{plate}_{site}")
    assert [name.removesuffix(".png") for name in draw(**options)["names"]] == names


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--experiment=RPE-01"], ["RPE-01", "HUVEC-01, HUVEC-02, U2OS-01"]),
        (["--plate=3"], ["plate 3", "HUVEC-01", "1, 2"]),
        (["--sirna_id=77"], ["sirna_id 77", "0, 1, 1107, 1108"]),
        (["--cell_type=RPE"], ["RPE", "HUVEC, U2OS"]),
        (["--experiment=U2OS-01", "--cell_type=HUVEC"], ["U2OS-01", "HUVEC-01, HUVEC-02"]),
        # HUVEC-01 has siRNA 1 on plate 2 alone, and HUVEC-02 siRNA 1109
        (["--sirna_id=1", "--plate=1"], ["1", "plate 1 of HUVEC-01;", "plate 2 of HUVEC-01"]),
        (["--sirna_id=1109", "--plate=1", "--experiment=HUVEC-02"],
         ["1109", "plate 1 of HUVEC-02;", "plate 2 of HUVEC-02"]),
    ],
)  # fmt: skip
def test_what_is_not_there(tiny, tmp_path, options, says, capsys):
    assert main(["show", str(tiny.dataset), f"--out={tmp_path / 'x'}", *options]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in says)
    assert not (tmp_path / "x").exists()


def composites(images: np.ndarray) -> np.ndarray:
    """[N, C, H, W] -> RGB, drawn with shared contrast."""
    low, high = (
        np.percentile(images, p, axis=(0, 2, 3))[:, None, None]
        for p in faux_colours.COMPOSITE_PERCENTILES
    )
    planes = ((images - low) / np.maximum(high - low, 1)).clip(0, 1)
    return 1 - np.prod(1 - planes[..., None] * faux_colours.CHANNEL_COLOURS[:, None, None], axis=1)


def images_of(axis):
    """{(column, row): RGB} of the images of a plate, by where their centres lie."""
    found = {}
    for image in axis.get_images():
        left, right, bottom, top = image.get_extent()
        row = (bottom + top) / 2 / figures.PITCH
        found[round((left + right) / 2), round(row)] = np.asarray(image.get_array())
    return found


def test_every_well_of_the_plate_is_in_its_place(tiny, draw):
    rows = [r for r in ROWS.values() if (r["experiment"], r["plate"]) == ("HUVEC-01", "2")]
    lowest = {r["well"]: r for r in sorted(rows, key=lambda r: r["site"], reverse=True)}
    (axis,) = draw(plate=2)["plate"][1].axes
    drawn = images_of(axis)
    expected = composites(np.stack([read_pngs(tiny.release, row) for row in lowest.values()]))
    assert len(drawn) == len(lowest)
    for well, rgb in zip(lowest, expected, strict=True):
        np.testing.assert_allclose(drawn[int(well[1:]), ord(well[0]) - 64], rgb, atol=1e-5)
    ids = sorted(row["sirna_id"] for row in lowest.values())
    assert sorted(text.get_text() for text in axis.texts) == ids
    outlined = [patch for patch in axis.patches if not patch.get_fill()]
    assert len(outlined) == sum(row["well_type"] != "treatment" for row in lowest.values())
    assert len(axis.patches) - len(outlined) == 384 - len(lowest)
    assert "HUVEC-01, plate 2" in axis.get_title(loc="left")


def test_plate_with_a_missing_first_site_and_an_unknown_label(draw):
    pictures, figure = draw(experiment="HUVEC-01", plate=1)["plate"]
    sites = {picture.fields["well"]: picture.fields["site"] for picture in pictures}
    assert (sites["D04"], sites["C03"]) == (2, 1)
    assert "site 2" in figure.axes[0].get_title(loc="left")
    texts = [t.get_text() for t in draw(experiment="HUVEC-02", plate=2)["plate"][1].axes[0].texts]
    assert texts.count("?") == 1 and "-1" not in texts


def test_maps_of_two_plates_against_the_pngs(tiny, draw):
    axes = draw(experiment="HUVEC-01", plate=2)["maps"][1].axes
    maps = [axis for axis in axes if axis.get_images() and axis.get_title()]
    assert len(maps) == 24
    for number, axis in enumerate(maps):
        channel, column = divmod(number, 4)
        plate = (2, 1)[column % 2]
        rows = [r for r in ROWS.values() if r["well_id"].startswith(f"HUVEC-01_{plate}_")]
        pixels = {row["site_id"]: read_pngs(tiny.release, row)[channel] for row in rows}
        controls = [pixels[r["site_id"]] for r in rows if r["well_type"] != "treatment"]
        expected = np.full((16, 24), np.nan)
        for well in {row["well"] for row in rows}:
            sites = [pixels[row["site_id"]] for row in rows if row["well"] == well]
            expected[ord(well[0]) - 65, int(well[1:]) - 1] = np.mean(sites)
        if column >= 2:
            expected = (expected - np.mean(controls)) / np.std(controls)
        shown = np.ma.filled(axis.get_images()[0].get_array(), np.nan)
        np.testing.assert_allclose(shown, expected, atol=1e-4)
        assert f"plate {plate}" in axis.get_title()
        assert axis.get_images()[0].get_clim() == maps[number ^ 1].get_images()[0].get_clim()


def test_sirna_has_the_same_site_number_in_every_experiment(draw, monkeypatch):
    pictures, figure = draw(sirna_id=0)["sirna"]  # of HUVEC-01, plate 1, site 2 alone is there
    assert [p.fields["experiment"] for p in pictures] == ["HUVEC-01", "HUVEC-02", "U2OS-01"]
    assert {(p.fields["sirna_id"], p.fields["site"]) for p in pictures} == {(0, 2)}
    titles = [axis.get_title().split("\n")[0] for axis in figure.axes if axis.get_visible()]
    assert sorted(titles) == sorted([p.fields["experiment"] for p in pictures] * 2)
    # the one that was asked for is among those shown, however many there are
    monkeypatch.setattr(show, "SHOWN_OF_MANY", 1)
    shown = [
        p.fields["well_id"] for p in draw(experiment="HUVEC-02", plate=2, sirna_id=1)["sirna"][0]
    ]
    assert [well[:10] for well in shown] == ["HUVEC-02_2", "U2OS-01_1_"]


def test_sirna_as_counts_and_standardised(tiny, draw):
    pictures, figure = draw(sirna_id=1, cell_type="HUVEC")["sirna"]
    images = np.stack([read_pngs(tiny.release, ROWS[p.fields["site_id"]]) for p in pictures])
    mean, std = (
        np.stack([p.fields[name] for p in pictures])[..., None, None]
        for name in ("control_mean", "control_std")
    )
    drawn = [np.asarray(axis.get_images()[0].get_array()) for axis in figure.axes]
    assert len(drawn) == 4  # two rows of two experiments
    np.testing.assert_allclose(drawn[:2], composites(images), atol=1e-5)
    np.testing.assert_allclose(drawn[2:], composites((images - mean) / std), atol=1e-5)


@pytest.mark.parametrize("channels", [3, 6])
def test_channels_of_one_site(tiny, channels):
    row = ROWS["HUVEC-01_2_D05_1"]
    image = read_pngs(tiny.release, row)[:channels]
    fields = row | {"sirna_id": int(row["sirna_id"])}
    composite, *axes = figures.site_figure(figures.Picture(fields, image)).axes
    assert composite.get_title() == "composite" and len(axes) == channels
    colours = ["blue", "green", "red", "cyan", "magenta", "yellow"]
    channels_of = {"red": 0, "green": 1, "blue": 2}
    for axis, plane, colour in zip(axes, image, colours, strict=False):
        drawn = np.asarray(axis.get_images()[0].get_array())
        bright = drawn[plane >= np.percentile(plane, 99.5)].mean(0)
        if colour in channels_of:
            assert bright.argmax() == channels_of[colour] and bright.max() == 1
        else:  # the complement: everything but one primary colour
            without = {"cyan": 0, "magenta": 1, "yellow": 2}[colour]
            assert bright[without] == 0 and np.delete(bright, without).min() == 1
        assert drawn[plane <= np.percentile(plane, 1)].max() == 0
        assert f"{plane.min()} to {plane.max()}" in axis.get_title()


@pytest.mark.parametrize("channels", [3, 6])
def test_a_plate_of_one_black_well(channels):
    """The other extreme: no contrast, controls without deviation, no second plate, no label."""
    row = ROWS["U2OS-01_2_D05_1"] | {"sirna_id": -1, "sirna": "", "pixel_sum": [0] * channels}
    row |= {"control_mean": [0.0] * channels, "control_std": [0.0] * channels}
    black = figures.Picture(row, np.zeros((channels, 16, 16), np.uint8))
    drawn = [figures.maps_figure([[row]], 256), figures.plate_figure([black])]
    for figure in (*drawn, figures.sirna_figure([black]), figures.site_figure(black)):
        with np.errstate(all="raise"):
            figure.savefig(io.BytesIO(), format="png", dpi=30)


def test_thumbnail_averages_blocks():
    image = np.random.default_rng(0).integers(0, 256, (3, 130, 130), dtype=np.uint8)
    small = show._thumbnail(image)
    assert small.shape == (3, 43, 43)
    np.testing.assert_allclose(small[2, 7, 9], image[2, 21:24, 27:30].mean(), rtol=1e-6)
    np.testing.assert_array_equal(show._thumbnail(image[:, :64, :64]), image[:, :64, :64])


def test_images_of_array_records(tiny, array_record):
    builder = stored.open_dataset(array_record)
    rows = stored.read_table(builder).to_pylist()[::-7]
    for row, image in zip(rows, stored.read_images(builder, rows), strict=True):
        np.testing.assert_array_equal(image, read_pngs(tiny.release, ROWS[row["site_id"]]))


@pytest.mark.parametrize("command", ["verify", "show", "table"])
def test_home_brackets_and_letters_in_paths(tiny, tmp_path, monkeypatch, command):
    """On a terminal that knows ASCII alone."""
    folder = tmp_path / "try [1] *" / "d\u00e9j\u00e0" / tiny.dataset.name
    shutil.copytree(tiny.dataset, folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(show, "DPI", 40)
    printed = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", printed)
    options = ["--out=~/pictures"] if command == "show" else []
    if command != "table":
        for path in (*folder.iterdir(), folder, folder.parent):
            path.chmod(path.stat().st_mode & 0o555)  # nothing is written there
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert main([command, f"~/try [1] */{folder.parent.name}", *options]) == 0
    if command != "table":
        assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    text = printed.buffer.getvalue().decode("ascii")
    assert ("pictures/" if command == "show" else r"d\xe9j\xe0") in text
    assert len(list(tmp_path.glob("pictures/*"))) == (4 if command == "show" else 0)


def test_reader_that_leaves_early(tiny, tmp_path, monkeypatch, capsys):
    """`| head -1`, which may be gone before the first line."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        monkeypatch.setattr(sys, "stderr", open(os.devnull, "w"))
        assert main(["verify", str(tiny.dataset)]) == 1
        pipe.write("more")  # as Python flushes it at its end
    assert capsys.readouterr().err == ""

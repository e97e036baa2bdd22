"""`show`: the right sites in the right places, and contrast against NumPy."""

import numpy as np
import pytest
from matplotlib.image import imread
from tiny_release import read_pngs, tiny_rows

tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra `build`")

from tfds_builder import faux_colours  # noqa: E402
from tfds_builder.rxrx1.__main__ import main  # noqa: E402
from tfds_builder.rxrx1.look import figures, show, stored  # noqa: E402

ROWS = {row["site_id"]: row for row in tiny_rows()}


@pytest.fixture(scope="module")
def builder(tiny):
    return stored.open_dataset(tiny.dataset)


def test_three_pictures_are_written(tiny, tmp_path, capsys):
    out = tmp_path / "new" / "pictures"
    assert main(["show", str(tiny.dataset.parent), f"--out={out}"]) == 0
    paths = sorted(out.iterdir())
    # the lowest treatment on the first plate that HUVEC, the paper's first cell type, has
    names = [path.name for path in paths]
    assert names[:2] == ["plate_HUVEC-01_1.png", "sirna_0.png"]
    site = ROWS[names[2].removeprefix("site_").removesuffix(".png")]
    assert (site["experiment"], site["plate"], site["sirna_id"]) == ("HUVEC-01", "1", "0")
    assert sorted(capsys.readouterr().out.split()) == sorted(map(str, paths))
    for path in paths:
        picture = imread(path)  # RGBA in 0..1
        assert picture.shape[0] > 700 and picture.shape[1] > 900
        assert picture[..., :3].std() > 0.05


def test_choice_on_the_command_line(tiny, tmp_path):
    options = ["--experiment=U2OS-01", "--plate=2", "--sirna_id=1107"]
    assert main(["show", str(tiny.dataset), f"--out={tmp_path}", *options]) == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names[:2] == ["plate_U2OS-01_2.png", "sirna_1107.png"]
    assert ROWS[names[2].removeprefix("site_").removesuffix(".png")]["sirna_id"] == "1107"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--experiment=RPE-01", "there are HUVEC-01, HUVEC-02, U2OS-01"),
        ("--plate=3", "no plate 3 of HUVEC-01"),
        ("--sirna_id=77", "no site of sirna_id 77"),
        ("--cell_type=RPE", "there are HUVEC, U2OS"),
    ],
)
def test_what_is_not_there(tiny, tmp_path, option, message, capsys):
    assert main(["show", str(tiny.dataset), f"--out={tmp_path / 'x'}", option]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def images_of(axis):
    """{(column, row): RGB} of the images of a plate, by where their centres lie."""
    found = {}
    for image in axis.get_images():
        left, right, bottom, top = image.get_extent()
        row = (bottom + top) / 2 / figures.PITCH
        found[round((left + right) / 2), round(row)] = np.asarray(image.get_array())
    return found


def test_every_well_of_the_plate_is_in_its_place(tiny, builder):
    wells = show._read_plate(builder, "HUVEC-01", 2)
    rows = [r for r in ROWS.values() if (r["experiment"], r["plate"]) == ("HUVEC-01", "2")]
    lowest = {r["well"]: r for r in sorted(rows, key=lambda r: r["site"], reverse=True)}
    assert list(wells) == sorted(lowest)
    axis = figures.plate_figure(wells).axes[0]
    drawn = images_of(axis)
    places = {(int(well[1:]), ord(well[0]) - 64): row for well, row in lowest.items()}
    assert set(drawn) == set(places)
    pngs = np.stack([read_pngs(tiny.release, row) for row in lowest.values()])
    low, high = (
        np.percentile(pngs, p, axis=(0, 2, 3))[:, None, None]
        for p in faux_colours.COMPOSITE_PERCENTILES
    )
    for place, row in places.items():
        planes = ((read_pngs(tiny.release, row) - low) / (high - low)).clip(0, 1)
        rgb = 1 - np.prod(
            [
                1 - p[..., None] * c
                for p, c in zip(planes, faux_colours.CHANNEL_COLOURS, strict=True)
            ],
            axis=0,
        )
        np.testing.assert_allclose(drawn[place], rgb, atol=1e-5)
    assert sorted(text.get_text() for text in axis.texts) == sorted(
        row["sirna_id"] for row in lowest.values()
    )
    outlined = [patch for patch in axis.patches if not patch.get_fill()]
    assert len(outlined) == sum(row["well_type"] != "treatment" for row in lowest.values())
    filled = [patch for patch in axis.patches if patch.get_fill()]
    assert len(filled) == 384 - len(lowest)
    assert "HUVEC-01, plate 2" in axis.get_title(loc="left")


def test_plate_with_a_missing_first_site_and_an_unknown_label(builder):
    wells = show._read_plate(builder, "HUVEC-01", 1)
    assert wells["D04"].fields["site"] == 2 and wells["C03"].fields["site"] == 1
    assert "site 2 where it is missing" in figures.plate_figure(wells).axes[0].get_title(loc="left")
    unlabelled = show._read_plate(builder, "HUVEC-02", 2)
    texts = [text.get_text() for text in figures.plate_figure(unlabelled).axes[0].texts]
    assert texts.count("?") == 1 and "-1" not in texts


def test_sirna_in_every_experiment(builder):
    sites = show._read_sirna(builder, 1, ("HUVEC-01", 2), sorted(builder.info.splits))
    assert list(sites) == ["HUVEC-01", "HUVEC-02", "U2OS-01"]
    assert {site.fields["sirna_id"] for site in sites.values()} == {1}
    assert sites["HUVEC-01"].fields["plate"] == 2
    axes = [axis for axis in figures.sirna_figure(sites).axes if axis.get_visible()]
    assert [axis.get_title().split("\n")[0] for axis in axes] == list(sites)
    # the wanted experiment is among those shown, however many there are
    show_all, show.SHOWN_EXPERIMENTS = show.SHOWN_EXPERIMENTS, 1
    try:
        names = sorted(builder.info.splits)
        sites = show._read_sirna(builder, 1, ("HUVEC-02", None), names)
    finally:
        show.SHOWN_EXPERIMENTS = show_all
    assert list(sites) == ["HUVEC-02", "U2OS-01"]


def test_sirna_of_one_cell_type_is_standardised_too(tiny, builder, tmp_path):
    options = [f"--out={tmp_path}", "--cell_type=HUVEC", "--sirna_id=1"]
    assert main(["show", str(tiny.dataset), *options]) == 0
    assert (tmp_path / "sirna_1_HUVEC.png").exists()
    names = ["HUVEC-01", "HUVEC-02"]
    sites = show._read_sirna(builder, 1, ("HUVEC-01", 2), names)
    axes = [axis for axis in figures.sirna_figure(sites).axes if axis.get_visible()]
    drawn = [np.asarray(axis.get_images()[0].get_array()) for axis in axes]
    assert len(drawn) == 4  # two rows of two experiments
    standardised = np.stack([
        (site.image - site.fields["control_mean"][:, None, None])
        / site.fields["control_std"][:, None, None]
        for site in sites.values()
    ])  # fmt: skip
    low, high = (
        np.percentile(standardised, p, axis=(0, 2, 3))[:, None, None]
        for p in faux_colours.COMPOSITE_PERCENTILES
    )
    planes = ((standardised - low) / np.maximum(high - low, 1)).clip(0, 1)
    colours = faux_colours.CHANNEL_COLOURS[:, None, None]
    expected = 1 - np.prod(1 - planes[..., None] * colours, axis=1)
    np.testing.assert_allclose(drawn[2:], expected, atol=1e-5)


@pytest.mark.parametrize("channels", [3, 6])
def test_channels_of_one_site(tiny, builder, channels):
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
        assert f"{plane.min()} to {plane.max()} counts" in axis.get_title()


def test_thumbnail_averages_blocks():
    image = np.random.default_rng(0).integers(0, 256, (3, 130, 130), dtype=np.uint8)
    small = show._thumbnail(image)
    assert small.shape == (3, 43, 43)
    np.testing.assert_allclose(small[2, 7, 9], image[2, 21:24, 27:30].mean(), rtol=1e-6)
    np.testing.assert_array_equal(show._thumbnail(image[:, :64, :64]), image[:, :64, :64])


def test_folder_that_cannot_be_made(tiny, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["show", str(tiny.dataset), f"--out={tmp_path / 'file'}"]) == 1
    assert str(tmp_path / "file") in capsys.readouterr().err.splitlines()[-1]

"""The synthetic screen: layout, determinism, and what is planted."""

import collections
import csv
import json
import os
from dataclasses import replace

import numpy as np
import pytest

from tfds_builder.rxrx1 import images, synthetic
from tfds_builder.rxrx1.builder_configs import BUILDER_CONFIGS
from tfds_builder.rxrx1.release import metadata, release
from tfds_builder.rxrx1.synthetic import (
    Screen,
    cells,
    planted,
    render_site,
    screen_sites,
    write_release,
)  # fmt: skip

TINY = Screen(
    size=32, huvec=2, rpe=0, hepg2=0, u2os=1, plates=2, treatments=2, positive_controls=3, sites=2
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_release(TINY, tmp_path_factory.mktemp("tiny") / "screen")


def _files(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*.*")}


def test_a_design_keeps_the_real_plates():
    sites = screen_sites(Screen(huvec=6, rpe=3, hepg2=3, u2os=3, treatments=8))
    assert len(sites) == 4680 and len({s.site_id for s in sites}) == 4680
    inner = {f"{r}{c:02d}" for r in "BCDEFGHIJKLMNO" for c in range(2, 24)}
    fixed = {f"{r}{c}" for r in "CFHJM" for c in ("03", "07", "11", "15", "19", "22")}
    plates = {}
    for s in sites:
        plates.setdefault((s.experiment, s.plate), []).append(s)
    assert len(plates) == 60
    assert {s.experiment for s in sites if s.dataset == "test"} == {  # the last fifth
        "HUVEC-05", "HUVEC-06", "RPE-03", "HEPG2-03", "U2OS-03",
    }  # fmt: skip
    for rows in plates.values():
        kinds = {kind: [s for s in rows if s.well_type == kind] for kind in metadata.WELL_TYPES}
        assert {s.well for s in kinds["positive_control"]} == fixed
        assert {s.sirna_id for s in kinds["positive_control"]} == set(range(1108, 1138))
        empty = {(s.well, s.sirna, s.sirna_id) for s in kinds["negative_control"]}
        assert empty == {("B02", "EMPTY", 1138)}
        ids = {s.sirna_id for s in kinds["treatment"]}
        first = min(ids)
        assert first % 8 == 0 and ids == set(range(first, first + 8))
        assert {s.well for s in kinds["treatment"]} <= inner - fixed - {"B02"}
    for number in (1, 2, 6):  # each plate order is a rotation of the four groups, as in RxRx1
        first = [
            min(s.sirna_id for s in plates[f"HUVEC-{number:02d}", p] if s.well_type == "treatment")
            for p in (1, 2, 3, 4)
        ]
        groups = [f // 8 for f in first]
        assert all((b - a) % 4 == 1 for a, b in zip(groups, groups[1:], strict=False))
    wells = [
        {s.sirna_id: s.well for s in sites if s.experiment == e and s.well_type == "treatment"}
        for e in ("HUVEC-01", "HUVEC-02")
    ]
    assert sum(wells[0][k] == wells[1][k] for k in range(32)) < 5  # re-drawn per experiment


def test_the_screen_for_a_gpu_has_the_real_proportions():
    (config,) = (c for c in BUILDER_CONFIGS if c.name == "gpu_screen")
    sites = screen_sites(Screen(size=config.size, **config.screen))
    assert len(sites) == 81_312 and len(sites) * 6 * config.size**2 < 8.0e9  # as the config says
    experiments = collections.Counter(
        cell_type for cell_type, _ in {(s.cell_type, s.experiment) for s in sites}
    )
    assert experiments == {"HUVEC": 16, "RPE": 7, "HEPG2": 7, "U2OS": 3}
    assert len({s.sirna_id for s in sites if s.well_type == "treatment"}) == 1_108


def test_release_reader_accepts_it(tiny):
    opened = release.open_release(tiny)
    sites, view = opened.sites, images.View(32, 32)
    expected = screen_sites(TINY)
    assert sorted(sites) == sorted(expected) and len(sites) == 3 * 2 * 6 * 2
    images.check_images(opened, view)
    image = images.read_image(opened, sites[7], view)
    assert np.array_equal(image, render_site(TINY, sites[7]))
    with (tiny / "metadata.csv").open() as file:
        rows = list(csv.reader(file))
    assert tuple(rows[0]) == metadata.COLUMNS
    assert [r[3] for r in rows[1:]] == sorted([r[3] for r in rows[1:]])  # test before train


def test_order_does_not_change_a_byte(tiny, tmp_path):
    assert _files(write_release(TINY, tmp_path / "two")) == _files(tiny)
    sites = screen_sites(TINY)[:6]
    backwards = [render_site(TINY, site) for site in sites[::-1]][::-1]
    np.testing.assert_array_equal(backwards, [render_site(TINY, site) for site in sites])


def test_interrupted_run_is_completed_and_finished_run_left_alone(tiny, tmp_path):
    whole = write_release(TINY, tmp_path / "s")
    lost = whole / "images/HUVEC-01/Plate1/B02_s1_w3.png"
    kept = whole / "images/HUVEC-01/Plate1/B02_s2_w3.png"
    os.utime(kept, (1, 1))
    lost.unlink()
    write_release(TINY, whole)
    assert not lost.exists()  # truth.json says finished: returned at once
    with pytest.raises(metadata.ReleaseError, match="effects 'all' .asked: 'gain'"):
        write_release(replace(TINY, effects="gain"), whole)
    (whole / "truth.json").unlink()
    write_release(TINY, whole)
    assert kept.stat().st_mtime == 1
    assert _files(whole) == _files(tiny)


def test_other_parameters_or_foreign_folder_are_refused(tiny, tmp_path):
    with pytest.raises(metadata.ReleaseError, match="seed 0 .asked: 5"):
        write_release(replace(TINY, seed=5), tiny)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(metadata.ReleaseError, match="not empty"):
        write_release(TINY, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("plates", 5), ("treatments", 278), ("size", 4), ("replicates", 40), ("effects", "gains")],
)
def test_impossible_parameters_name_the_field(field, value):
    with pytest.raises(ValueError, match=field):
        Screen(**{field: value})


def test_seed_changes_everything_planted():
    one, two = screen_sites(TINY), screen_sites(replace(TINY, seed=1))
    assert [s.well for s in one] != [s.well for s in two]
    site = one[0]
    assert not np.array_equal(render_site(TINY, site), render_site(replace(TINY, seed=1), site))


def test_nuisance_never_knows_the_class():
    """Same well, other siRNA: same optics, and phenotypes that differ by the mixed effect alone."""
    site = next(s for s in screen_sites(TINY) if s.well_type == "treatment")
    untreated = site._replace(sirna="EMPTY", sirna_id=1138, well_type="negative_control")
    base, base_optics = synthetic.site_phenotype(TINY, untreated)
    experiment = planted.experiment_effect(0, site.experiment, 1.0)
    for sirna_id in (0, 1, 17, 1110):
        phenotype, optics = synthetic.site_phenotype(TINY, site._replace(sirna_id=sirna_id))
        for name in optics._fields:
            assert np.array_equal(getattr(optics, name), getattr(base_optics, name)), name
        effect = planted.sirna_effects(0, sirna_id, 1.0)[site.cell_type]
        expected = experiment.efficacy * (experiment.mixing @ effect)
        np.testing.assert_allclose(phenotype - base, expected, atol=1e-9)
        assert np.linalg.norm(effect) > 0.5
    # Without an effect the class leaves no trace in the pixels either.
    silent = replace(TINY, effect=0.0)
    other = render_site(silent, site._replace(sirna_id=17))
    assert np.array_equal(render_site(silent, site), other)


def test_batch_effect_scales_to_none():
    off = replace(TINY, batch_effect=0.0)
    site = next(s for s in screen_sites(TINY) if s.experiment == "HUVEC-01")
    same_well = site._replace(experiment="HUVEC-02")
    optics = [synthetic.site_phenotype(off, s)[1] for s in (site, same_well)]
    for where, found in zip((site, same_well), optics, strict=True):  # what wells differ by
        well = planted.well_effect(0, where.experiment, where.plate, where.row, where.column, 0.0)
        np.testing.assert_allclose(np.log(found.gain), well.log_gain, atol=1e-12)
    assert all(o.blur == planted.TYPICAL_BLUR and o.bleed == 1 for o in optics)
    effect = planted.experiment_effect(0, "HUVEC-01", 0.0)
    assert np.array_equal(effect.mixing, np.eye(24)) and not effect.shift.any()
    half, full = (planted.experiment_effect(0, "RPE-01", k).log_gain for k in (0.5, 1.0))
    np.testing.assert_allclose(2 * half, full)


def test_gain_alone():
    """Wells of two experiments differ by the channel gains, and are alike once standardised."""
    screen = replace(TINY, size=64, positive_controls=30, effects="gain", plates=1, sites=1)
    off = replace(screen, effects="all", batch_effect=0.0)
    full = replace(screen, effects="all")
    plate = [s for s in screen_sites(screen) if s.experiment == "HUVEC-01"]
    for site in plate[::9]:
        phenotype, optics = synthetic.site_phenotype(screen, site)
        plain, plain_optics = synthetic.site_phenotype(off, site)
        assert np.array_equal(phenotype, plain)
        gain = synthetic.site_phenotype(full, site)[1].gain
        for name, value in plain_optics._asdict().items():
            expected = gain if name == "gain" else value
            assert np.array_equal(getattr(optics, name), expected), name
    # The same wells imaged by two experiments: as they are, with the gains of the other.
    gains = [
        np.exp(synthetic.screen_truth(screen, plate)["experiments"][name]["log_gain"])
        for name in ("HUVEC-01", "HUVEC-02")
    ]
    ratio = gains[1] / gains[0]
    assert np.abs(np.log(ratio)).max() > 0.3

    def imaged(factor):
        images = []
        for site in plate:
            phenotype, optics = synthetic.site_phenotype(screen, site)
            optics = optics._replace(gain=optics.gain * factor)
            rng = planted.generator(screen.seed, "site", site.site_id)
            images.append(cells.draw_site(site.cell_type, phenotype, optics, rng, 64, 384.0))
        x = np.stack(images).astype(np.float64)
        control = np.array([s.well_type != "treatment" for s in plate])
        mean, std = (f(x[control], axis=(0, 2, 3), keepdims=True)[0] for f in (np.mean, np.std))
        return x, (x - mean) / std, std

    (raw, one, std), (other_raw, other, other_std) = imaged(1.0), imaged(ratio)
    # By pixel: half a count of rounding on either side, and the grain, whose variance
    # .03 counts + .06 does not follow the gain (five sd of the brightest pixel).
    grain = 5 * np.sqrt(0.03 * np.maximum(raw, other_raw) + 0.06)
    allowed = (0.5 + grain) * (1 / std + 1 / other_std)
    unclipped = np.maximum(raw, other_raw) < 255
    assert unclipped.mean() > 0.999
    assert (np.abs(one - other) < allowed)[unclipped].all()
    # By site: the grain averages out, and what is left is far below the difference in the pixels.
    left = np.abs(one.mean((2, 3)) - other.mean((2, 3))).mean(0)
    before = np.abs(raw.mean((2, 3)) - other_raw.mean((2, 3))).mean(0) / std[:, 0, 0]
    assert left.max() < 0.02
    far = np.abs(np.log(ratio)) > 0.2
    assert far.any() and (before > 10 * left)[far].all()


def test_truth_rebuilds_every_phenotype(tiny):
    truth = json.loads((tiny / "truth.json").read_text())
    assert truth["parameters"] == list(cells.PARAMETER_NAMES)
    for site in screen_sites(TINY)[::7]:
        experiment = truth["experiments"][site.experiment]
        plate = truth["plates"][f"{site.experiment}_{site.plate}"]
        well = truth["wells"][site.well_id]
        effect = np.array(truth["sirnas"][str(site.sirna_id)][site.cell_type])
        phenotype = np.array(experiment["mixing"]) @ effect * experiment["efficacy"]
        phenotype += np.array(experiment["shift"]) + plate["shift"] + well["shift"]
        gain = np.exp(
            np.array(experiment["log_gain"]) + plate["log_gain"] + np.array(well["log_gain"])
        )
        found, optics = synthetic.site_phenotype(TINY, site)
        np.testing.assert_allclose(found, phenotype, atol=5e-4)
        np.testing.assert_allclose(optics.gain, gain, rtol=1e-4)


def test_any_size(tmp_path):
    site = screen_sites(TINY)[0]
    for size in (17, 200, 512):
        image = render_site(replace(TINY, size=size), site)
        assert image.shape == (6, size, size) and image.dtype == np.uint8 and image.std() > 1

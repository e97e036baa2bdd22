"""Diagnosis of embeddings: a planted batch effect is seen, its removal too, and biology with it."""

import itertools
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from arrays import make_sites
from commands import run_command

from rxrx1_jax.data.embeddings import Embeddings
from rxrx1_jax.methods import diagnosis
from rxrx1_jax.methods.catalogue import METHODS
from rxrx1_jax.methods.combat_harmony import combat
from rxrx1_jax.training.run import Run

PROBE, PURITY, ILISI, AGAIN, FOUND, CONSISTENT, PLANTED = diagnosis.COLUMNS


@pytest.fixture(scope="module")
def screen():
    """Ten siRNAs on one plate of each of four experiments, two wells of two sites each."""
    experiments = ("HUVEC-01", "HUVEC-02", "HUVEC-03", "HUVEC-04")
    wells = itertools.product(experiments, range(10), (0, 1))
    sites = make_sites((e, 1, f"W{k}{w}", "positive_control", k) for e, k, w in wells)
    rng = np.random.default_rng(0)
    planted = rng.normal(size=(10, 5))
    biology = planted[sites["sirna_id"]] + 0.3 * rng.normal(size=(len(sites), 5))
    shift = {e: 3 * rng.normal(size=5) for e in np.unique(sites["experiment"])}
    shifts = np.array([shift[e] for e in sites["experiment"]])
    sirnas = {str(k): {"HUVEC": planted[k].tolist()} for k in range(10)}
    return sites, biology, shifts, sirnas


def test_batch_effect_and_biology(screen):
    pytest.importorskip("sklearn")
    sites, biology, shifts, sirnas = screen
    dirty, clean = (diagnosis.measure(x, sites, sirnas) for x in (biology + shifts, biology))
    assert dirty[PROBE][0] > 95 and clean[PROBE][0] < 50
    assert dirty[PROBE][1] == clean[PROBE][1] == 25
    assert dirty[PURITY][0] > 60 > 30 > clean[PURITY][0] and clean[PURITY][1] < 25
    assert dirty[ILISI][0] < 2 < 2.5 < clean[ILISI][0] and 2.5 < clean[ILISI][1] < 4
    assert clean[AGAIN][0] > 0.9 and dirty[AGAIN][0] < 0.3
    assert clean[CONSISTENT] == clean[FOUND] == (100, 0)
    assert clean[PLANTED][0] > 0.9
    shuffled = biology[np.random.default_rng(1).permutation(len(biology))]
    noise = diagnosis.measure(shuffled, sites, sirnas)
    assert noise[CONSISTENT][0] == noise[FOUND][0] == 0 and abs(np.subtract(*noise[AGAIN])) < 0.1
    assert PLANTED not in diagnosis.measure(biology, sites, None)


def test_one_experiment_says_nothing(screen):
    sites, biology, _, _ = screen
    one = sites["experiment"] == "HUVEC-01"
    assert diagnosis.measure(biology[one], sites[one], None) == {}


def test_consistency_says_nothing_where_the_design_cannot_show_it(screen):
    """Perfect replicates of ten siRNAs in two experiments: one permutation in ten is as good."""
    sites, biology, _, sirnas = screen
    two = np.isin(sites["experiment"], ["HUVEC-01", "HUVEC-02"])
    perfect = np.array([sirnas[str(k)]["HUVEC"] for k in sites["sirna_id"]])
    found = diagnosis.measure(perfect[two], sites[two], None)
    assert CONSISTENT not in found and found[FOUND][0] == 100


def test_discoveries_are_those_of_benjamini_and_hochberg():
    p = np.array([0.001, 0.011, 0.02, 0.031, 0.5, 0.9, 0.9, 0.9])
    ranked = [value <= 0.05 * rank / len(p) for rank, value in enumerate(p, 1)]
    assert diagnosis.discovered(p) == (max(np.flatnonzero(ranked)) + 1) / len(p) == 0.25


def test_without_scikit_learn_one_column_is_left_out(screen, monkeypatch, capsys):
    sites, biology, _, _ = screen
    monkeypatch.setitem(sys.modules, "sklearn", None)
    diagnosis._say_once.cache_clear()
    assert set(diagnosis.measure(biology, sites, None)) == {
        PURITY, ILISI, AGAIN, FOUND, CONSISTENT,
    }
    diagnosis.measure(biology, sites, None)
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and "rxrx1_jax[analysis]" in said


def with_treatments(screen):
    """Half of the wells are treatments, of training and test experiments; one site is unused."""
    sites, biology, shifts, _ = screen
    sites = sites.copy()
    treated = np.char.endswith(sites["well_id"], "1")
    sites["well_type"][treated] = "treatment"
    role = np.where(np.isin(sites["experiment"], ["HUVEC-01"]), "test", "train")
    role[~treated] = "other"  # experiments outside the split have controls, too
    x = (biology + shifts).astype(np.float32)
    return Embeddings(sites, x, role=role), treated


def test_a_name_means_what_it_means_in_corrections(screen):
    """ComBat learns from every site, control or not; plate methods from all controls."""
    pytest.importorskip("neuroCombat")
    table, treated = with_treatments(screen)
    found = dict(diagnosis.diagnose(table, None))
    assert list(found) == [
        "none", "centre_scale_plate", "robust_mad_plate", "robust_mad_sphering",
        "sphering_experiment", "tvn_plate", "coral_align_plate", "centre_experiment",
        "regress_out_experiment", "combat_experiment", "harmony_experiment",
    ]  # fmt: skip
    everything = np.full(len(treated), True)
    after = combat(table.x, table.sites, everything)
    assert found["combat_experiment"] == diagnosis.measure(after, table.sites, None)
    only = combat(table.x[~treated], table.sites[~treated], everything[~treated])
    assert found["combat_experiment"] != diagnosis.measure(only, table.sites[~treated], None)
    assert found["none"] == diagnosis.measure(table.x[~treated], table.sites[~treated], None)
    assert found["none"][AGAIN][0] < found["centre_scale_plate"][AGAIN][0]


def test_a_missing_library_leaves_its_line_out(screen, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "harmonypy", None)
    table, _ = with_treatments(screen)
    assert "harmony_experiment" not in dict(diagnosis.diagnose(table, None))
    assert "rxrx1_jax[harmony]" in capsys.readouterr().err


def test_the_command_prints_what_was_measured(screen, monkeypatch, tmp_path):
    table, _ = with_treatments(screen)
    made = SimpleNamespace(embeddings=lambda folder: table, planted_sirnas=lambda: None)
    monkeypatch.setattr(Run, "open", lambda *_: made)
    said = run_command("diagnose", tmp_path).out.splitlines()
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said if line[:1] == "|"]
    assert lines[0] == ["embeddings", *diagnosis.COLUMNS]
    figures = diagnosis.measure(table.x, table.sites, None)
    mean, chance = figures[AGAIN]
    cells = dict(zip(lines[0], lines[2], strict=True))
    assert cells["embeddings"] == "none" and cells[AGAIN] == f"{mean:.3f} ({chance:.3f})"
    assert cells[PLANTED] == "–" and cells[FOUND].endswith(" (0.0)")
    assert [line[0] for line in lines[3:]] == [n for n in diagnosis.TRANSFORMS if n in METHODS]


def test_help_has_a_line_per_column():
    lines = [line.strip() for line in run_command("diagnose", "--help").out.splitlines()]
    for name, about in diagnosis.COLUMNS.items():
        assert any(line.startswith(name) and line.endswith(about) for line in lines)

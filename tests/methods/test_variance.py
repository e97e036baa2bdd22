"""Variance components against an analysis of variance by hand, and against planted ones."""

import math

import numpy as np
import pytest
from commands import run_command
from embedding_tables import FEATURES, IDS, metadata_file, parquet

from rxrx1_jax.methods.variance import Components, components

PLANTED = Components(4.0, 2.0, 1.0, 3.0, 0.5, 1.5)
NOTHING = math.nan


def screen(sirnas=6, experiments=4, plates=3, rows=2):
    """Sites of a crossed design, and the index of each in (siRNA, experiment, plate, row)."""
    shape = sirnas, experiments, plates, rows
    places = np.indices(shape).reshape(4, -1)
    sites = np.zeros(places.shape[1], [("well_id", "U20"), ("experiment", "U4"), ("plate", "i4"),
                                       ("sirna_id", "i4")])  # fmt: skip
    sites["sirna_id"], _, sites["plate"], _ = places
    sites["experiment"] = [f"E{e}" for e in places[1]]
    sites["well_id"] = [f"E{e}_{p}_{s}" for s, e, p, _ in places.T]
    return sites, shape, places


def draw(rng, shape, d):
    """Embeddings in the shape of the design with the components PLANTED, over d features."""
    s, e, p, r = shape
    parts = [(s, 1, 1, 1), (1, e, 1, 1), (1, e, p, 1), (s, e, 1, 1), (s, e, p, 1), (s, e, p, r)]
    return sum(
        math.sqrt(variance / d) * rng.normal(size=(*part, d))
        for variance, part in zip(PLANTED, parts, strict=True)
    )


def mean_squares(x):
    """siRNA, experiment, plate, siRNA x experiment, well, site of a balanced design."""
    s, e, p, r = x.shape[:4]

    def at(*axes):
        return x.mean(tuple({0, 1, 2, 3} - {*axes}), keepdims=True)

    by_plate, by_cell = at(1, 2), at(0, 1)
    squares = [
        (s - 1, e * p * r, at(0) - at()),
        (e - 1, s * p * r, at(1) - at()),
        (e * (p - 1), s * r, by_plate - at(1)),
        ((s - 1) * (e - 1), p * r, by_cell - at(0) - at(1) + at()),
        (e * (p - 1) * (s - 1), r, at(0, 1, 2) - by_cell - by_plate + at(1)),
        (s * e * p * (r - 1), 1, x - at(0, 1, 2)),
    ]
    return [n * np.square(part).sum() / degrees for degrees, n, part in squares]


def test_a_balanced_design_gives_the_analysis_of_variance():
    sites, shape, _ = screen()
    x = draw(np.random.default_rng(0), shape, 5) + 100
    (s, _, p, r), ms = shape, mean_squares(x)
    of_sirna, of_experiment, of_plate, both, well, site = ms
    e = shape[1]
    expected = Components(
        (of_sirna - both) / (e * p * r),
        (of_experiment - of_plate - both + well) / (s * p * r),
        (of_plate - well) / (s * r), (both - well) / (p * r), (well - site) / r, site,
    )  # fmt: skip
    order = np.random.default_rng(1).permutation(len(sites))
    found = components(x.reshape(-1, 5)[order], sites[order])
    assert found == pytest.approx(expected, rel=1e-9)


def test_planted_components_come_out_where_wells_are_missing():
    sites, shape, _ = screen(12, 8, 3)
    rng = np.random.default_rng(2)
    kept = np.repeat(rng.random(len(sites) // 2) < 0.7, 2)
    found = components(draw(rng, shape, 2000).reshape(-1, 2000)[kept], sites[kept])
    assert found == pytest.approx(PLANTED, rel=0.04)


@pytest.mark.parametrize(
    ("keep", "expected"),  # what is left of the design -> what cannot be told apart
    [
        (lambda s, e, p, r: s % 3 == p, PLANTED._replace(sirna_by_experiment=NOTHING, well=3.5)),
        (lambda s, e, p, r: r == 0, PLANTED._replace(well=2.0, site=NOTHING)),
        (lambda s, e, p, r: p == 0, Components(4.0, 3.0, NOTHING, NOTHING, 3.5, 1.5)),
    ],
    ids=["a well per siRNA", "rows are wells", "a plate per experiment"],
)
def test_what_the_design_cannot_tell_stands_in_the_next(keep, expected):
    """Random groups of siRNAs: many draws, since few groups differ by chance."""
    sites, shape, places = screen(30, 8)
    kept, rng = keep(*places), np.random.default_rng(3)
    found = [components(draw(rng, shape, 200).reshape(-1, 200)[kept], sites[kept])
             for _ in range(20)]  # fmt: skip
    assert np.mean(found, 0) == pytest.approx(expected, rel=0.1, abs=0.02, nan_ok=True)


@pytest.mark.parametrize("design", [{"experiments": 1}, {"sirnas": 1}], ids=["experiment", "siRNA"])
def test_one_experiment_or_siRNA_is_refused(design):
    sites, shape, _ = screen(**design)
    with pytest.raises(ValueError, match="two experiments"):
        components(draw(np.random.default_rng(0), shape, 3).reshape(-1, 3), sites)


def test_the_command_prints_a_table_per_cell_type(tmp_path):
    file, metadata = tmp_path / "mine.parquet", metadata_file(tmp_path)
    file.write_bytes(parquet(IDS | FEATURES))
    done = run_command("variance", file, f"--metadata={metadata}")
    assert done.code == 0, done.last
    rows = [line.split("|")[1:-1] for line in done.out.splitlines() if line.startswith("| ")]
    named = [row[0].strip() for row in rows]
    assert {"treatments", "treatments, centred", "positive controls"} < {*named}
    shares = [[cell.strip() for cell in row[1:]] for row in rows[1:] if row[1].strip()]
    for row in shares:
        assert sum(float(cell) for cell in row if cell != "–") == pytest.approx(100, abs=0.4)
    assert run_command("variance", tmp_path / "none.csv").code

"""Made-up runs whose every accuracy is chosen. Tests that change a run make one of their own."""

from pathlib import Path

import pytest
from finished_runs import all_right, make_run, one_screen

from rxrx1_jax.report.runs import group


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> list[Path]:
    """Batch of three folds, random by site of two, random by well and no normalisation of one."""
    folder = tmp_path_factory.mktemp("demo")
    folds = [
        # (right sites of 20, right wells of 10): by site 60, 50, 40 % for HUVEC
        {"HUVEC": (12, 7), "RPE": (8, 5), "HEPG2": (6, 3), "U2OS": (2, 1)},
        {"HUVEC": (10, 6), "RPE": (8, 5), "HEPG2": (8, 4), "U2OS": (2, 1)},
        {"HUVEC": (8, 5), "RPE": (8, 5), "HEPG2": (10, 5), "U2OS": (2, 1)},
    ]
    runs = [make_run(folder / f"batch{i}", right, fold=i) for i, right in enumerate(folds)]
    for fold, sites in ((0, 14), (1, 15)):
        right = all_right(sites, 8)
        runs.append(make_run(folder / f"site{fold}", right, protocol="random_site", fold=fold))
    runs.append(make_run(folder / "well0", all_right(10, 6), protocol="random_well"))
    runs.append(make_run(folder / "none0", all_right(1, 1), normalisation="none"))
    return runs


@pytest.fixture(scope="module")
def groups(demo):
    return group(one_screen(demo)[1])


@pytest.fixture(scope="module")
def methods(tmp_path_factory) -> list[Path]:
    """Three folds of a baseline, of coral and of cutmix, which has a second seed of fold 0."""
    folder = tmp_path_factory.mktemp("methods")
    right = {"base": (8, 10, 9), "coral": (10, 13, 12), "cutmix": (9, 9, 11)}
    changes = {"base": {}, "coral": {"optim__loss": "coral"}, "cutmix": {"augmentation": "cutmix"}}
    runs = [
        make_run(folder / f"{name}{fold}", all_right(sites, 5), fold=fold, **changes[name])
        for name, of in right.items() for fold, sites in enumerate(of)
    ]  # fmt: skip
    more = {"train__seed": 1, "train__log_every": 7, "fold": 0, **changes["cutmix"]}
    return [*runs, make_run(folder / "cutmix-seed", all_right(11, 5), **more)]

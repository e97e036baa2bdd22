"""Predictions in the files that others score: of WILDS and of Kaggle.

WILDS: github.com/p-lambda/wilds at 472677590de3. examples/evaluate.py reads a file whose name
begins with rxrx1_split:SPLIT_seed:SEED and ends with .csv, for each split but train and for the
seeds 0, 1 and 2. It has no head and a predicted class per line, in the order of metadata.csv; the
class is sirna_id. The rest of the name is as in examples/train.py (save_pred_if_needed).

Kaggle, "Recursion Cellular Image Classification": a head id_code,sirna, then a row for each well of
test.csv (kaggle.com/c/recursion-cellular-image-classification, "Evaluation"; make_submission.py of
github.com/maciej-sypetkowski/kaggle-rcic-1st writes the same). id_code is the well_id, sirna one of
0 to 1107, and the score is the accuracy by well. The labels of later copies of the files, sirna_N,
are another numbering, which is not written here.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rxrx1_jax.data import splits
from rxrx1_jax.data.files import write_text
from rxrx1_jax.methods import assignment
from rxrx1_jax.training.log_probs import LogProbs
from rxrx1_jax.training.predictions import well_argmax

if TYPE_CHECKING:
    from rxrx1_jax.training.run import Run  # it imports JAX

TREATMENTS = 1108  # sirna_ids below are treatments
WILDS_SITES = {"val": 9_854, "test": 34_432, "id_test": 40_612}  # of the release
WILDS_SEEDS = (0, 1, 2)
KAGGLE_WELLS = 19_897  # of test.csv
Decide = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
DECISIONS: Mapping[str, Decide] = {
    "assign_once": assignment.assign_once,
    "assign_plate_groups": assignment.assign_plate_groups,
}


def wilds_sets(sites: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of each set that WILDS scores, labelled or not, in the order of its metadata.csv.

    sites: structured with METADATA and release_row. Raises ValueError: that order is not known.
    """
    if (sites["release_row"] < 0).any():
        raise ValueError(
            "the dataset does not know the order of the release's metadata.csv (release_row); build"
            " it from a release that has one"
        )
    labelled = sites.copy()
    labelled["sirna_id"] = np.maximum(sites["sirna_id"], 0)
    split = splits.make_split(labelled, "wilds")
    sets = {"val": split.val, "test": split.test, **split.extra}
    return {name: rows[np.argsort(sites["release_row"][rows])] for name, rows in sets.items()}


def check_wilds(runs: Sequence["Run"]) -> None:
    """Raises ValueError: a run of another protocol, two of one seed, or data in no known order."""
    seeds = dict[int, Path]()
    for run in runs:
        if (protocol := run.config.data.protocol) != "wilds":
            raise ValueError(f"{run.path}: data.protocol={protocol}; expected wilds, for its files")
        if (seed := run.config.train.seed) in seeds:
            raise ValueError(
                f"{seeds[seed]} and {run.path} have train.seed={seed}; expected a seed each: it"
                " names the files"
            )
        seeds[seed] = run.path
    wilds_sets(runs[0].setup.images.sites)


def wilds(folder: Path, runs: Sequence["Run"], files: Sequence[LogProbs]) -> list[str]:
    """Writes the files of each run into `folder`; says what they hold, and what WILDS expects."""
    folder.mkdir(exist_ok=True)
    for run, file in zip(runs, files, strict=True):
        counts = write_wilds(folder, run.config.train.seed, file.sites, file.best())
    seeds = sorted(run.config.train.seed for run in runs)
    said = [f"{folder}: seeds {', '.join(map(str, seeds))}; {_sizes(counts)}."]
    if counts != WILDS_SITES or tuple(seeds) != WILDS_SEEDS:
        said.append(f"WILDS scores seeds 0, 1 and 2; {_sizes(WILDS_SITES)}.")
    return said


def write_wilds(
    folder: Path, seed: int, sites: np.ndarray, predicted: np.ndarray
) -> dict[str, int]:
    """Writes a file for each set into `folder`; returns the number of lines of each.

    predicted: sirna_id [n] of each of `sites` [n].
    """
    sets = wilds_sets(sites)
    for name, rows in sets.items():
        lines = "".join(f"{sirna}\n" for sirna in predicted[rows].tolist())
        write_text(folder / f"rxrx1_split:{name}_seed:{seed}_epoch:last_pred.csv", lines)
    return {name: len(rows) for name, rows in sets.items()}


def check_kaggle(path: Path, sites: np.ndarray, role: np.ndarray, decide: str = "") -> None:
    """Raises ValueError, before anything is predicted, where `kaggle_wells` would be of no use.

    path: of the run. sites: of its dataset; role: of each in its split. Kaggle's test wells must be
    there and not be trained on, and the design must be what `decide` takes it for.
    """
    test = sites["dataset"] == "test"
    if not (test & (sites["well_type"] == "treatment")).any():
        raise ValueError(f"{path}: no treatment well of dataset=test, which Kaggle scores")
    if (role[test] == "train").any():
        raise ValueError(
            f"{path}: trained on sites of Kaggle's test set; expected data.protocol=official, which"
            " leaves them out"
        )
    if decide:
        known = _trained_wells(sites, role)
        try:  # with nothing to assign it looks at the design alone
            _decided(decide, np.zeros((0, 1), np.float32), known[:0], known, np.zeros(1, np.int32))
        except ValueError as error:
            raise ValueError(f"{path}: --decide={decide}: {error}") from error


def kaggle(path: Path, found: LogProbs, decide: str = "") -> list[str]:
    """Writes the file from `kaggle_wells`; says what it holds."""
    wells = kaggle_wells(found, decide)
    lines = (f"{well},{sirna}\n" for well, sirna in wells.items())
    write_text(path, "id_code,sirna\n" + "".join(lines))
    labels = dict(zip(*(found.sites[x].tolist() for x in ("well_id", "sirna_id")), strict=True))
    right = [labels[well] == sirna for well, sirna in wells.items() if labels[well] >= 0]
    said = [f"{path}: {len(wells):,} wells" + (f", by {decide} (design)." if decide else ".")]
    if len(wells) != KAGGLE_WELLS:
        said.append(f"Kaggle expects {KAGGLE_WELLS:,} wells.")
    if right:
        share = 100 * sum(right) / len(right)
        said.append(f"{share:.1f} % of the {len(right):,} wells with a known label are right.")
    return said


def kaggle_wells(found: LogProbs, decide: str = "") -> dict[str, int]:
    """{well_id: sirna_id} of the treatment wells of the release's test set, in order of the ids.

    A well has the treatment of the highest mean log-probability over its sites, or what `decide`,
    one of DECISIONS, says. `check_kaggle` says what cannot be scored.
    """
    sites, columns = found.sites, found.classes < TREATMENTS
    test = (sites["well_type"] == "treatment") & (sites["dataset"] == "test")
    classes, log_probs, rows = found.classes[columns], found.of(test)[:, columns], sites[test]
    if decide:
        best = _decided(decide, log_probs, rows, _trained_wells(sites, found.role), classes)
    else:
        best = classes[well_argmax(rows["well_id"], log_probs)]
    return dict(sorted(zip(rows["well_id"].tolist(), best.tolist(), strict=True)))


def _trained_wells(sites: np.ndarray, role: np.ndarray) -> np.ndarray:
    """A site of each treatment well that was trained on."""
    known = sites[(sites["well_type"] == "treatment") & (role == "train")]
    return known[np.unique(known["well_id"], return_index=True)[1]]


def _decided(
    decide: str, log_probs: np.ndarray, rows: np.ndarray, known: np.ndarray, classes: np.ndarray
) -> np.ndarray:
    """What `decide` says of `rows`; of the training wells, `known`, it takes the design alone."""
    blank = np.zeros((len(known), len(classes)), np.float32)
    role = np.repeat(["test", "train"], [len(rows), len(known)])
    both = np.concatenate([rows, known])
    return DECISIONS[decide](np.concatenate([log_probs, blank]), both, classes, role)[: len(rows)]


def _sizes(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} sites of {name}" for name, n in counts.items())

"""What a training is taught beyond the training sites of its split, or in their place: controls,
pseudo-labels.

The split itself stays as it is: roles, normalisation, methods and scores know nothing of it.
"""

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rxrx1_jax.data import splits
from rxrx1_jax.data.images import CONTROL_TYPES, DatasetError

# Columns of predictions.parquet that are read. None of them knows a label.
COLUMNS = ("site_id", "well_id", "well_prediction", "top5", "top5_probability")
EXPECTED = "expected predictions.parquet of a run, or a file of its corrections"


class Taught(NamedTuple):
    """What samplers draw from, and labels are of.

    sites: those of the dataset; with pseudo-labels, test sites have these or no label.
    split: whose `train` are all rows with a label to learn.
    classes: sirna_ids [K], ascending.
    """

    sites: np.ndarray
    split: splits.Split
    classes: np.ndarray

    def labels(self, rows: np.ndarray, seed: int | None = None) -> np.ndarray:
        """sirna_ids of rows, `train` among them; seed: those of `train` permuted in experiments."""
        labels, own = self.sites["sirna_id"][rows], self.sites[self.split.train]
        if seed is not None:
            labels[np.searchsorted(rows, self.split.train)] = splits.shuffle_within(
                own["sirna_id"], own, "experiment", seed
            )
        return labels

    def about(self, split: splits.Split) -> str:
        """What is taught beyond the split's training sites, for the first lines of a run."""
        further = self.sites["well_type"][np.setdiff1d(self.split.train, split.train)]
        controls = int(np.isin(further, CONTROL_TYPES).sum())
        more = {"control": controls, "pseudo-labelled test": len(further) - controls}
        too = ", too" if np.isin(split.train, self.split.train).all() else " alone"
        return "".join(f", trained on {n:,} {what} sites{too}" for what, n in more.items() if n)

    def fingerprint(self, split: splits.Split) -> dict[str, str]:
        """By which a run knows it again; {} where nothing is."""
        rows = np.setdiff1d(self.split.train, split.train)
        text = "\n".join(map(str, self.sites[["site_id", "sirna_id"]][rows].tolist()))
        return {"taught": hashlib.blake2b(text.encode(), digest_size=8).hexdigest()} if text else {}


def uses(settings: Mapping[str, Any]) -> frozenset[str]:
    """What a training saw beside its training sites, in the words of `Method.uses`.

    settings: flat, those of a run; dataset.*: what it knows its data and first weights by.
    """
    found = {*settings.get("dataset.uses", ())}  # by the run that it began with
    if settings.get("data.pseudo_labels"):
        found.add("test_images")
    if settings.get("data.control_classes") == "all":
        found.add("test_controls")
    if settings.get("dataset.external"):
        found.add("external")
    return frozenset(found)


def taught(data: Mapping[str, Any], sites: np.ndarray, split: splits.Split) -> Taught:
    """What the settings `data` teach. Raises DatasetError: predictions that do not fit, no site.

    Controls of `data.control_classes` are those with a known siRNA and no role in the split.
    """
    train = split.train
    if (whose := data["control_classes"]) != "none":
        control = splits.roles_with_context(sites, split) == "context"
        control &= sites["sirna_id"] >= 0
        if whose != "all":
            control &= np.isin(sites["experiment"], np.unique(sites["experiment"][split.train]))
        further = np.flatnonzero(control)
        train = further if whose == "alone" else np.union1d(train, further)
        if not len(train):
            raise DatasetError(
                f"data.control_classes={whose}: with data.protocol={data['protocol']} no control"
                " well is left to train on; expected train, all or none"
            )
    classes = np.union1d(splits.classes_of(sites, data["protocol"]), sites["sirna_id"][train])
    if path := data["pseudo_labels"]:
        sites, ids = sites.copy(), sites["site_id"][split.test].tolist()
        chosen = surest(path, data["pseudo_share"], ids)
        labels = np.array([chosen.get(name, -1) for name in ids], np.int32)
        if len(unknown := np.setdiff1d(labels, [-1, *classes])):
            raise DatasetError(
                f"data.pseudo_labels={path}: predicts siRNA {unknown[0]}; expected one of the"
                f" {len(classes)} classes of this run (data.control_classes)"
            )
        sites["sirna_id"][split.test], sites["sirna"][split.test] = labels, ""
        train = np.union1d(train, split.test[labels >= 0])
    return Taught(sites, split._replace(train=train), classes)


def surest(path: str, share: float, test: Sequence[str]) -> dict[str, int]:
    """The predicted siRNA of the sites of the surest wells, by site_id.

    A well's siRNA is its `well_prediction`, and its confidence the mean over its sites of the
    probability that each gives that siRNA (0 where it is not among the site's top five). Of equally
    sure wells the first by name are taken.

    Args:
      path: predictions.parquet of a run, or RUN/corrections/METHOD.parquet.
      share: of the wells, rounded up.
      test: site_ids, of all of which the file must tell, and of no others.

    Raises:
      DatasetError: a file of another form, or of other sites.
    """
    where = f"data.pseudo_labels={path}"
    if not 0 < share <= 1:
        raise DatasetError(f"data.pseudo_share={share}: expected above 0, and 1 at most")
    if not os.path.isfile(path):
        there = "a folder" if os.path.isdir(path) else "no such file"
        raise DatasetError(f"{where}: {there}; {EXPECTED}")
    try:
        table = pq.read_table(path, columns=list(COLUMNS))
        site, well, label, top, probability = (table[name].to_pylist() for name in COLUMNS)
        shares = np.array([
            sum(p for sirna, p in zip(*best, strict=True) if sirna == own)
            for own, *best in zip(label, top, probability, strict=True)
        ])  # fmt: skip
    except (OSError, KeyError, ValueError, TypeError, pa.ArrowException) as error:
        said = str(error).splitlines()[0]
        raise DatasetError(f"{where}: {said}; {EXPECTED}") from error
    if sorted(site) != sorted(test):
        differs = sorted(set(site) ^ set(test)) or site
        raise DatasetError(
            f"{where}: of {len(site)} sites, {differs[0]} among those that differ; expected the"
            f" {len(test)} test sites of this split, each once"
        )
    names, of_site = np.unique(np.array(well), return_inverse=True)
    confidence = np.bincount(of_site, shares) / np.bincount(of_site)
    order = np.argsort(-confidence, kind="stable")
    kept = set(order[: math.ceil(share * len(names))].tolist())
    return {
        name: sirna for name, sirna, place in zip(site, label, of_site.tolist(), strict=True)
        if place in kept
    }  # fmt: skip

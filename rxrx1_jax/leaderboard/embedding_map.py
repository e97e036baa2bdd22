"""Maps of embeddings: first two principal components of profiles, before and after a transform.

A profile is the mean embedding of a siRNA in an experiment: wells alone are so noisy that a map of
them shows neither batch nor biology.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rxrx1_jax.methods.embedding_metrics import mean_profiles
from rxrx1_jax.report.figures import TEXT

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#666666")
SHOWN_SIRNAS = 6
GREY = "#CFCFCF"


def principal_components(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores [n, 2] on the first two principal components of x [n, D], and their variance shares.

    The sign of a component is free: its largest loading is positive here.
    """
    centred = x - x.mean(axis=0)
    u, s, vt = np.linalg.svd(centred, full_matrices=False)
    sign = np.sign(vt[np.arange(2), np.abs(vt[:2]).argmax(axis=1)])
    return u[:, :2] * s[:2] * sign, s[:2] ** 2 / (s**2).sum()


def far_apart(profiles: np.ndarray, count: int) -> list[int]:
    """Rows of `profiles` [P, D] far from each other: the farthest from the mean, and then always
    the one whose nearest chosen row is farthest (Gonzalez 1985)."""
    chosen = [int(((profiles - profiles.mean(axis=0)) ** 2).sum(axis=1).argmax())]
    while len(chosen) < min(count, len(profiles)):
        apart = [((profiles - profiles[k]) ** 2).sum(axis=1) for k in chosen]
        chosen.append(int(np.min(apart, axis=0).argmax()))
    return chosen


def figure(
    stages: Sequence[tuple[str, np.ndarray]], sites: np.ndarray, cell_type: str, unseen: set[str]
) -> Figure:
    """A row for each stage: profiles by cell type; those of one by experiment, and by siRNA.

    Large marks are the means of the groups; lines join a siRNA's profiles to their mean.

    Args:
      stages: (title, embeddings [n, D]) of the same sites, such as before and after a transform.
      sites: [n] rows of Records.sites, of siRNAs that are in every experiment.
      cell_type: the one of the second and third column.
      unseen: experiments that the network was not trained on, drawn as crosses.
    """
    out = Figure(figsize=(11, 0.8 + 3.3 * len(stages)), layout="constrained")
    axes = out.subplots(len(stages), 3, squeeze=False)
    mine = sites["cell_type"] == cell_type
    profiles, sirna = mean_profiles(stages[0][1][mine], sites["sirna_id"][mine])
    shown = [int(sirna[k]) for k in far_apart(profiles, SHOWN_SIRNAS)]
    for line, (title, x) in zip(axes, stages, strict=True):
        columns = ("cell_type", "experiment", "sirna_id")
        rows, kind, experiment, label = mean_profiles(x, *(sites[c] for c in columns))
        new = np.isin(experiment, list(unseen))
        _scatter(line[0], rows, kind, list(np.unique(kind)), new)
        of = kind == cell_type
        names = list(np.unique(experiment[of]))
        _scatter(line[1], rows[of], experiment[of], names, new[of])
        _scatter(line[2], rows[of], label[of], shown, new[of], joined=True)
        said = ("all, by cell type", f"{cell_type}, by experiment", f"{cell_type}, by siRNA")
        for axis, text in zip(line, said, strict=True):
            axis.set_title(f"{title}: {text}", fontsize=10, loc="left")
    for axis in axes[0]:
        axis.legend(loc="best", fontsize=7, framealpha=0.85)
    return out


def _scatter(
    axis: Axes, profiles: np.ndarray, groups: np.ndarray, names: Sequence[Any],
    unseen: np.ndarray, joined: bool = False,
) -> None:  # fmt: skip
    scores, share = principal_components(profiles)

    def mark(rows: np.ndarray, colour: str, thin: float = 1.0, alpha: float = 1.0) -> None:
        for part, marker, size, width in ((~unseen, "o", 10, 0.7), (unseen, "x", 22, 1.1)):
            x, y = scores[rows & part].T
            axis.scatter(x, y, size, colour, marker=marker, lw=width * thin, alpha=alpha)

    mark(~np.isin(groups, names), GREY, 0.8)
    for k, name in enumerate(names):
        colour = COLOURS[k % len(COLOURS)]
        of = groups == name
        centre = scores[of].mean(axis=0)
        for point in scores[of] if joined else ():
            axis.plot(*zip(centre, point, strict=True), color=colour, lw=0.7, alpha=0.6)
        mark(of, colour, alpha=0.8)
        label = f"{name} (unseen)" if unseen[of].all() else str(name)
        x, y = centre
        axis.scatter(x, y, 70, colour, edgecolor="#222", lw=1, zorder=3, label=label)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlabel(f"component 1 ({100 * share[0]:.0f} % of variance)", **TEXT)
    axis.set_ylabel(f"component 2 ({100 * share[1]:.0f} %)", **TEXT)

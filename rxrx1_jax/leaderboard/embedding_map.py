"""Maps of embeddings: first two principal components of profiles, raw and corrected.

A profile is the mean embedding of a siRNA in an experiment: wells alone are so noisy that a map of
them shows neither batch nor biology.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from rxrx1_jax.methods.embedding_metrics import mean_profiles
from rxrx1_jax.report.figures import LOOKS, SMALL, TEXT, WIDTH, legend

SHOWN = 6  # groups in colour
GREY = "#CFCFCF"


def principal_components(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores [n, 2] on the first two principal components of x [n, D], and their variance shares.

    The sign of a component is free: its largest loading is positive here.
    """
    centred = x - x.mean(axis=0)
    u, s, vt = np.linalg.svd(centred, full_matrices=False)
    sign = np.sign(vt[np.arange(2), np.abs(vt[:2]).argmax(axis=1)])
    return u[:, :2] * s[:2] * sign, s[:2] ** 2 / (s**2).sum()


def figure(
    stages: Sequence[tuple[str, np.ndarray]], sites: np.ndarray, column: str, unseen: set[str]
) -> Figure:
    """A map for each stage: the profiles, coloured by a column of the sites.

    Args:
      stages: (title, embeddings [n, D]) of the same sites.
      sites: [n] rows of Records.sites, of siRNAs that are in every experiment.
      column: "experiment" or "sirna_id"; of many the first are coloured.
      unseen: experiments that the network was not trained on, drawn hollow.
    """
    shown = np.unique(sites[column])[:SHOWN].tolist()
    out = Figure(figsize=(WIDTH, WIDTH / 2 + 0.5 + 0.19 * len(shown)), layout="constrained")
    for axis, (title, x) in zip(out.subplots(1, len(stages)), stages, strict=True):
        keys = (sites[name] for name in ("experiment", "sirna_id"))
        profiles, experiment, sirna = mean_profiles(x, *keys)
        scores, share = principal_components(profiles)
        new = np.isin(experiment, list(unseen))
        group = experiment if column == "experiment" else sirna
        for name in [None, *shown]:
            colour, shape = (GREY, ".") if name is None else LOOKS[shown.index(name)]
            of = ~np.isin(group, shown) if name is None else group == name
            for rows, face in ((of & ~new, colour), (of & new, "none")):
                axis.plot(*scores[rows].T, shape, color=colour, mfc=face, ms=5, alpha=0.85)
            if name is not None:
                axis.plot([], [], shape, color=colour, ms=6, label=str(name))
        axis.set_title(title, fontsize=SMALL, loc="left")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlabel(f"component 1 ({100 * share[0]:.0f} %)", **TEXT)
        axis.set_ylabel(f"component 2 ({100 * share[1]:.0f} %)", **TEXT)
    legend(out, axis)
    return out

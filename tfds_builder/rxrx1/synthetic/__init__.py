"""A synthetic screen: a release with planted biology and batch effects, and no real data."""

from .screen import DRAWING, Screen, render_site, screen_sites, screen_truth, site_phenotype
from .write import write_release

__all__ = [
    "DRAWING", "Screen", "render_site", "screen_sites", "screen_truth", "site_phenotype",
    "write_release",
]  # fmt: skip

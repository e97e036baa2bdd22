"""`tfds.show_examples` for RxRx1: composites of the channels, with siRNA and experiment."""

import importlib
from typing import Any

import numpy as np
import tensorflow_datasets as tfds


class Composites(tfds.visualization.Visualizer):
    """One contrast for all sites that are shown, so that they can be compared."""

    def match(self, ds_info: tfds.core.DatasetInfo) -> bool:
        return ds_info.name == "rxrx1" and "image" in ds_info.features

    def show(self, ds: Any, ds_info: tfds.core.DatasetInfo, rows: int = 3, cols: int = 3) -> Any:
        from matplotlib import pyplot

        # Not above: `tfds build` imports this folder as a package of its own.
        from ..faux_colours import COMPOSITE_PERCENTILES, composite, contrast_limits, stretch

        sites = list(tfds.as_numpy(ds.take(rows * cols)))
        images = [np.asarray(site["image"]) for site in sites]
        limits = contrast_limits(images, COMPOSITE_PERCENTILES)
        figure, axes = pyplot.subplots(rows, cols, figsize=(3 * cols, 3 * rows), squeeze=False)
        for ax in axes.flat:
            ax.axis("off")
        for ax, site, image in zip(axes.flat, sites, images, strict=False):
            ax.imshow(composite(stretch(image, *limits)))
            place = f"{site['experiment'].decode()}, " if "experiment" in site else ""
            ax.set_title(f"{place}siRNA {site['sirna_id']}", fontsize=8)
        return figure


def register() -> None:
    """Adds it to TFDS's list, which has no public way in."""
    name = "tensorflow_datasets.core.visualization.show_examples"
    importlib.import_module(name)._ALL_VISUALIZERS.append(Composites())

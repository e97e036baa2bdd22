"""The datasets that a leaderboard counts as worlds: independent screens of one design."""

import itertools

import numpy as np

from rxrx1_jax.data import records, splits


def check_worlds(names: str, data_dir: str, flag: str = "--worlds") -> list[str]:
    """The datasets in "NAME,NAME", in this order.

    Raises DatasetError for one that is not there; ValueError for two that must not be averaged:
    with other classes, images of another size, or, since an interval would count them as
    independent, the same images.
    """
    worlds = [name.strip() for name in names.split(",")]
    if not all(worlds):
        raise ValueError(f"{flag}={names}: expected names of datasets, NAME,NAME")
    opened = [records.open_images(data_dir, name) for name in worlds]
    for (first, a), (second, b) in itertools.combinations(zip(worlds, opened, strict=True), 2):
        few, many = sorted((np.unique(one.sites["adler32"]) for one in (a, b)), key=len)
        if np.isin(few, many).mean() > 0.5:
            raise ValueError(
                f"{flag}: {first} and {second} hold the same images: expected independent"
                " screens, as of the synthetic screen with another seed each; leave one out"
            )
        designs = [
            f"{len(splits.classes_of(one.sites, 'batch'))} classes in {one.image_shape} images"
            f" ({one.about['source']})"
            for one in (a, b)
        ]
        if designs[0] != designs[1]:
            raise ValueError(
                f"{flag}: {first} has {designs[0]}, {second} {designs[1]}: expected worlds of one"
                " design; compare them separately"
            )
    return worlds

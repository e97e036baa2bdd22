"""Recipes that the field has published, by name: `--config=recipes:ben`.

    python -m rxrx1_jax.main --config=recipes:ben --workdir=runs/ben
    python -m rxrx1_jax.main --config=recipes:ben,base=demo,fold=1 --workdir=runs/ben-demo

The first has the data and the settings of the source. With `base`, a config of ours or a file, the
recipe is tried on that config's data with its training settings: what is left of the recipe is its
method. Further fields follow, as `fold=1` or `optim.epochs=3`.

Published is accuracy in %: by site on the OOD test set of WILDS's RxRx1, or on Kaggle's private
test set, by well. Ours is by site on the synthetic screen with base=demo, mean of three folds; with
BatchNorm of the test images, where the recipe says so. Nothing was run on real data.
docs/recipes.md has the intervals, what each recipe does at test time, what it may see and what
deviates.

| name | source | published | ours |
|---|---|---|---|
| wilds_erm | WILDS, Koh et al. 2021, arXiv:2012.07421 | 29.9 | 52.5 |
| wilds_coral | the same | 28.4 | 53.1 |
| wilds_group_dro | the same | 23.0 | 51.7 |
| wilds_irm | the same | 8.2 | 32.6 |
| lisa | Yao et al. 2022, arXiv:2201.00299 | not found in a copy we could read | 47.0 |
| arm_bn | Zhang et al. 2021, arXiv:2007.02931 | 31.2 | 71.2 |
| ben | Lin and Lu 2022, bioRxiv 2022.10.14.512286 | "state of the art", figure not found | 67.2 |
| cs_arm_bn | Sanchez-Fernandez et al. 2026, arXiv:2604.20824 | JUMP-CP, 86.2 -> 93.5 | 72.5 |
| adabn_all | Li et al. 2016, arXiv:1603.04779 | none on this split | 66.5 |
| channel_dropout | github.com/inori6/rxrx1 | Kaggle 78.4 | 14.8 |
| pseudo_labels | the same | Kaggle 78.4 -> 90.6 | 52.5 -> 55.9 |
| kaggle_winner | github.com/maciej-sypetkowski/kaggle-rcic-1st | Kaggle 99.7 | 26.2, one fold |
| cell_type_fine_tuning | 26th place, see docs | Kaggle 97.8 | +0.7 to +3.9, one fold |
"""

import re
from typing import Any, NamedTuple

from rxrx1_jax import config


class Recipe(NamedTuple):
    """Fields of a config. `asks`: those that the user has to give."""

    method: dict[str, Any]  # what makes the recipe, on any data
    base: str = "wilds"  # the config that the source's settings change
    training: dict[str, Any] = {}  # the source's, where they are not the base's
    asks: tuple[str, ...] = ()


GROUPS = {"data.sampler": "experiments(count=9, across=True)"}  # WILDS's: 9 experiments a batch

RECIPES = {
    "wilds_erm": Recipe({}),
    "wilds_coral": Recipe(GROUPS | {"optim.loss": "coral(weight=0.1, across=True)"}),
    "wilds_group_dro": Recipe({"optim.loss": "group_dro(step_size=0.01)"}),
    "wilds_irm": Recipe(GROUPS | {"optim.loss": "irm(weight=1.0)"}),
    "lisa": Recipe({
        "data.sampler": "cross_experiment_pairs",
        "data.augmentation": "cutmix(alpha=2.0, within_sirna=True)",
    }),
    "adabn_all": Recipe({}),
    "arm_bn": Recipe({"data.sampler": "experiments(count=1)"}),
    "cs_arm_bn": Recipe({"data.sampler": "experiments(count=1, controls=0.25)"}, "batch_split"),
    "ben": Recipe(
        {"data.sampler": "plates(controls=0.1)", "data.normalisation": "site"},
        training={"optim.batch_size": 75, "optim.warmup_epochs": 10.0},
    ),
    "channel_dropout": Recipe(
        {
            "data.normalisation": "global_control",
            "data.augmentation": "gain_offset_jitter(gain=0.075, offset=0.075),"
            " channel_dropout(probability=0.15), cutmix(alpha=1.0)",
        },
        "batch_split",
        {
            "data.protocol": "official", "optim.name": "adamw", "optim.learning_rate": 6e-5,
            "optim.weight_decay": 1.6e-4, "optim.batch_size": 32, "optim.epochs": 70,
            "optim.warmup_epochs": 3.5,
        },
    ),
    "kaggle_winner": Recipe(
        {
            "data.normalisation": "site",
            "data.augmentation": "gain_offset_jitter(gain=0.1, offset=0.1),"
            " scale_crop(low=1.0, high=2.0), cutmix(alpha=1.0)",
            "data.control_classes": "all",
            "model.head": "linear_and_cosine(neck='two_layers')",
            "optim.loss": "arcface(margin=0.5, beside=0.125)",
        },
        "batch_split",
        {
            "data.protocol": "official", "optim.name": "adam", "optim.learning_rate": 1.5e-4,
            "optim.weight_decay": 1e-5, "optim.batch_size": 48, "optim.warmup_epochs": 0.0,
        },
    ),
    "pseudo_labels": Recipe(
        {"data.pseudo_share": 0.4}, "batch_split", asks=("data.pseudo_labels",)
    ),
    "cell_type_fine_tuning": Recipe(
        {"optim.epochs": 20, "optim.learning_rate": 0.01, "optim.warmup_epochs": 1.0},
        "batch_split", asks=("data.cell_type", "model.init"),
    ),
}  # fmt: skip


# The synthetic screen has eight experiments to train on.
FEWER = {
    name: {"data.sampler": "experiments(count=8, across=True)"}
    for name in ("wilds_coral", "wilds_irm")
}


def get_config(arg=None):
    name, _, fields = (arg or "").partition(",")
    if name not in RECIPES:
        expected = config.nearest(name, RECIPES)
        raise config.ConfigError(f"recipe {name!r}: expected {expected}, as recipes:ben,fold=0")
    recipe = RECIPES[name]
    base = re.search(r"(?:^|,)base=([^,]*)", fields)
    if base:
        fields = (fields[: base.start()] + fields[base.end() :]).lstrip(",")
    c = config.read(base[1] if base else recipe.base)
    config.change(c, recipe.method | ({} if base else recipe.training))
    before = config.flat(config.default())
    config.parse(fields, c)
    for field in recipe.asks:
        if config.flat(c)[field] == before[field]:
            raise config.ConfigError(
                f"recipe {name}: no {field}; expected it, as recipes:{name},{field}=..."
            )
    return c


# Beside each other: `--methods=recipes` of rxrx1_jax.leaderboard. Left out are those that need
# another run, adabn_all, which is a correction of wilds_erm, and kaggle_winner: with the controls
# it trains on four times as many sites.
TRAINED = {
    name: recipe.method | FEWER.get(name, {})
    for name, recipe in RECIPES.items()
    if not recipe.asks and name not in ("adabn_all", "kaggle_winner")
}
CORRECTIONS = {
    "wilds_erm": ["adabn_plate"], "ben": ["adabn_plate"], "arm_bn": ["adabn_experiment"],
    "cs_arm_bn": ["adabn_experiment", "adabn_plate"],
}

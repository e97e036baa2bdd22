"""What `python -m rxrx1_jax.leaderboard` compares: methods, corrections, gaps and controls.

    make leaderboard

A method is what it changes in the config (`python -m rxrx1_jax.main --help` lists the fields; a
plug-in of your own is `my_methods.focal(gamma=2.0)`). To add one, add a line to TRAINED: only its
runs are new. A changed line needs a new name, since its runs hold what the old one gave.
"""

from rxrx1_jax.methods.catalogue import METHODS

# Name -> field of the config -> value. The first is the baseline, with which all are paired.
TRAINED = {
    "baseline": {},  # the paper's: standardised by the controls of the plate
    "raw": {"data.normalisation": "none"},
    "norm_site": {"data.normalisation": "site"},
    "cell_type_film": {"model.head": "cell_type_film"},
    "cutmix": {"data.augmentation": "cutmix(alpha=1.0)"},
    "gain_jitter": {"data.augmentation": "gain_offset_jitter"},
    # On features that are not negative no margin can be met without a neck (`heads.cosine`).
    "arcface_neck": {"model.head": "cosine(neck='layer')", "optim.loss": "arcface(margin=0.2)"},
    "arcface_beside": {  # as the winner of the Kaggle competition
        "model.head": "linear_and_cosine(neck='batch')", "optim.loss": "arcface(beside=0.2)",
    },
    "arm_bn": {"data.sampler": "experiments(count=1)"},  # Zhang et al. 2021; with AdaBN below
    "two_experiments": {"data.sampler": "experiments(count=2)"},  # what the next shares
    "coral": {"data.sampler": "experiments(count=2)", "optim.loss": "coral(weight=1.0)"},
    "coral_wilds": {  # WILDS's weight and pairs; 9 x 8 sites there
        "data.sampler": "experiments(count=8, across=True)",
        "optim.loss": "coral(weight=0.1, across=True)",
    },
    "dann": {"model.head": "domain_adversary(ramp=10.0)", "optim.loss": "dann"},
    "group_dro": {"optim.loss": "group_dro"},
    "bfloat16": {"model.dtype": "bfloat16"},  # no method: what rounding alone does to a run
    "contrastive": {
        "data.sampler": "cross_experiment_pairs", "optim.loss": "cross_experiment_contrastive",
    },
}  # fmt: skip

# Name of TRAINED -> corrections tried on its runs (METHODS); else "none".
CORRECTIONS = {
    "baseline": list(METHODS),
    **{name: ["none", "adabn_experiment"] for name in ("raw", "cutmix", "arm_bn", "coral")},
}

# Trained on the random splits, too, with the first seed, for the gap; on which of them.
GAP = ["baseline"]
PROTOCOLS = ["random_site", "random_well"]

# Name of TRAINED -> what training or input statistics see beyond "inductive", if they do.
BUDGETS: dict[str, str] = {}

# Name -> (what makes it a control, {name of TRAINED: what it must show}), on the batch and the
# random split by site: "no gap" or "gap" between them, or accuracy by "chance".
CONTROLS = {
    "no_batch_effect": ({"data.name": "rxrx1/no_batch_effect"}, {"baseline": "no gap"}),
    "gain_only": ({"data.name": "rxrx1/gain_only"}, {"baseline": "no gap", "raw": "gap"}),
    "shuffled_labels": ({"data.shuffled_labels": True}, {"baseline": "chance"}),
}

# Name of TRAINED -> field -> what `python -m rxrx1_jax.search` draws it from: a list of choices, a
# range (low, high), or (low, high, "log"). All methods share OPTIM; some have a setting of their
# own, for the same number of draws.
OPTIM = {
    "optim.learning_rate": (0.02, 0.8, "log"),
    "optim.weight_decay": (5e-5, 5e-3, "log"),
    "optim.label_smoothing": [0.0, 0.1, 0.2],
    "optim.epochs": [20, 40],
}
SEARCH = {name: OPTIM for name in TRAINED} | {
    "cutmix": OPTIM | {"data.augmentation": ["cutmix(alpha=0.3)", "cutmix(alpha=1.0)"]},
    "arcface_neck": OPTIM | {"optim.loss": [f"arcface(margin={m})" for m in (0.1, 0.2, 0.4)]},
    "coral": OPTIM | {"optim.loss": [f"coral(weight={w})" for w in (0.1, 1.0, 10.0)]},
    "dann": OPTIM | {"model.head": [f"domain_adversary(ramp={r})" for r in (1.0, 10.0)]},
}

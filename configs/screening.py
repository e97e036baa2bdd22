"""The methods of `make screening`: what acceptance asks of a screen, and every correction.

They are few, so that eight worlds of them can be trained on two cores. docs/screens.md says in what
time.
CutMix loses with the 40 epochs of the demo: it learns slowly. So it is judged with 80, beside a
baseline with as many.
"""

from rxrx1_jax.methods.catalogue import METHODS

TRAINED = {
    "baseline": {},
    "norm_site": {"data.normalisation": "site"},
    "gain_jitter": {"data.augmentation": "gain_offset_jitter"},
    "cutmix": {"data.augmentation": "cutmix(alpha=1.0)"},
    "baseline_80": {"optim.epochs": 80},
    "cutmix_80": {"data.augmentation": "cutmix(alpha=1.0)", "optim.epochs": 80},
}
CORRECTIONS = {"baseline": list(METHODS)}
GAP = ["baseline"]
PROTOCOLS = ["random_well"]
SEARCH = {
    name: {
        "optim.learning_rate": (0.02, 0.8, "log"), "optim.weight_decay": (5e-5, 5e-3, "log"),
        "optim.label_smoothing": [0.0, 0.1, 0.2],
        "optim.epochs": [40, 80] if name.endswith("_80") else [20, 40],
    }
    for name in TRAINED
}  # fmt: skip

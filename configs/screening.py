"""The methods of `make screening`: what acceptance asks of a screen, and every correction.

They are few, so that eight worlds of them cost what one world costs of configs/leaderboard.py.
"""

from rxrx1_jax.methods.catalogue import METHODS

TRAINED = {
    "baseline": {},
    "norm_site": {"data.normalisation": "site"},
    "gain_jitter": {"data.augmentation": "gain_offset_jitter"},
    "cutmix": {"data.augmentation": "cutmix(alpha=1.0)"},
}
CORRECTIONS = {"baseline": list(METHODS)}
GAP = ["baseline"]
PROTOCOLS = ["random_well"]

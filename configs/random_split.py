"""The paper's random split: experiment ignored, as many test sites as in the batch split.

    python -m rxrx1_jax.main --config=random_split:fold=0 --workdir=runs/random-0

Paper (real data, ResNet-50, mean ± sd): 52.8 ± 0.0 % by site. `protocol=random_site` (default) is
the paper's wording: the twin site of a test image may be trained on. `protocol=random_well` keeps
the two sites of a well together. Needs what batch_split.py needs.
"""

from rxrx1_jax import config


def get_config(arg=None):
    c = config.default()
    c.data.protocol = "random_site"
    return config.parse(arg, c)

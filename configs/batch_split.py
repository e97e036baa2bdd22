"""The paper's batch split: test experiments that were never trained on.

    python -m rxrx1_jax.main --config=batch_split:fold=0 --workdir=runs/batch-0

Paper (real data, ResNet-50, mean ± sd over three draws): 44.1 ± 5.7 % by site. `fold` is 0, 1 or 2;
`cell_type=HUVEC` trains on one cell type alone (the paper's other columns). Needs the `native`
dataset (about 71 GB) and a GPU or TPU of 80 GB; docs/train.md says what to add for a smaller one.
90 epochs of some 73,000 sites of 512 px: 100 minutes on one H100 at the rate of its step with drawn
images (1,108 per second). Time and cost on real data have not been measured yet.
"""

from rxrx1_jax import config


def get_config(arg=None):
    c = config.default()
    c.data.protocol = "batch"
    return config.parse(arg, c)

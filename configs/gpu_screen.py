"""A synthetic screen of the real proportions, for a GPU: not run on one.

    python -m tfds_builder.rxrx1 build --config=gpu_screen --data_dir=data
    python -m rxrx1_jax.main --config=gpu_screen:fold=0 --workdir=runs/gpu_screen-0
    python -m rxrx1_jax.leaderboard --config=gpu_screen --methods=screening --workdir=runs/gpu_board

33 experiments of 4 plates with 277 treatments: 81,312 sites of 128 px, 8 GB in the device's memory.
"""

from rxrx1_jax import config


def get_config(arg=None):
    c = config.default()
    c.data.name = "rxrx1/gpu_screen"
    c.data.cache = "device"
    c.model.name = "resnet18"
    c.optim.batch_size = 256
    c.optim.epochs = 40
    c.optim.learning_rate = 0.4
    c.optim.warmup_epochs = 4.0
    c.optim.nesterov = True
    c.optim.weight_decay = 5e-4
    return config.parse(arg, c)

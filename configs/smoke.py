"""Half a minute on two CPU cores, from the installed package alone: does everything run here?

    python -m rxrx1_jax.main --config=smoke --workdir=runs/smoke

The data are drawn in memory. They show that the programs run, and nothing about RxRx1.
"""

from rxrx1_jax import config


def get_config(arg=None):
    c = config.default()
    c.data.name = "rxrx1_jax.data.smoke.screen()"
    c.model.name = "resnet_demo"
    c.model.width = 16
    c.optim.batch_size = 16
    c.optim.epochs = 20
    c.optim.learning_rate = 0.1
    c.optim.warmup_epochs = 2.0
    c.train.log_every = 40
    c.train.checkpoint_every = 10
    c.eval.batch_size = 16
    return config.parse(arg, c)

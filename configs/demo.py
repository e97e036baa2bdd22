"""The synthetic screen on two CPU cores: minutes, no GPU, no download.

    python -m rxrx1_jax.main --config=demo:protocol=batch,fold=0 --workdir=runs/mine

`make demo` runs all protocols and prints the table; README.md shows what came out.
"""

from rxrx1_jax import config


def get_config(arg=None):
    c = config.default()
    c.data.name = "rxrx1/synthetic"
    c.model.name = "resnet_demo"
    c.optim.batch_size = 32
    c.optim.epochs = 40
    c.optim.learning_rate = 0.2
    c.optim.warmup_epochs = 4.0
    c.optim.nesterov = True
    c.optim.weight_decay = 5e-4
    c.train.log_every = 100
    c.train.eval_every = 5
    c.train.checkpoint_every = 10
    c.eval.batch_size = 80
    return config.parse(arg, c)

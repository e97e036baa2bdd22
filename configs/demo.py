"""The synthetic screen on two CPU cores: minutes, no GPU, no download.

    python -m rxrx1_jax.main --config=configs/demo.py:protocol=batch,fold=0 --workdir=runs/mine

`make demo` runs all protocols and prints the table; README.md shows what came out.
"""

from configs import default


def get_config(arg=None):
    config = default.get_config()
    config.data.name = "rxrx1/synthetic"
    config.data.threads = 2
    config.model.name = "resnet_demo"
    config.optim.batch_size = 32
    config.optim.epochs = 40
    config.optim.learning_rate = 0.2
    config.optim.warmup_epochs = 4.0
    config.optim.nesterov = True
    config.optim.weight_decay = 5e-4
    config.train.log_every = 100
    config.train.eval_every = 5
    config.train.checkpoint_every = 10
    config.eval.batch_size = 80
    return default.parse(arg, config)

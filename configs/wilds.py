"""RxRx1 as in WILDS v1.0: 256 px, three channels, 1,139 classes, its splits, accuracy by site.

    python -m rxrx1_jax.main --config=wilds --workdir=runs/wilds-0

The run ends with three accuracies by site: `test` (OOD test), `id_test` (ID test) and `val` (OOD
val). In results.json `accuracy` is that of `test`; the other two are below `other_sets`.

| WILDS leaderboard, ResNet-50 | OOD val | ID test | OOD test |
|---|---|---|---|
| ERM, 90 epochs, 11 h on a V100 | 19.4 % | 35.9 % | 29.9 % |
| CORAL | | 34.0 % | 28.4 % |

With all labels train has 40,612 sites, id_test 40,612, val 9,854 and test 34,432. Metadata pieced
together from Kaggle's tables lacks 22,088 labels, all of OOD test treatments: an accuracy on the
12,344 sites that are left is not comparable. The first lines of a run give the counts.

As in WILDS (github.com/p-lambda/wilds at 472677590de3, examples/configs/datasets.py,
examples/transforms.py): Adam, peak learning rate 1e-3, weight decay 1e-5; batches of 72, 90 epochs,
5,415 steps of warm-up, then a cosine; each channel of each image standardised by itself; quarter
turns and mirror images. Different here:

- Random initialisation. WILDS starts from ImageNet weights: --config.model.init=FILE has them
  (docs/weights.md).
- Weight decay on kernels only, where WILDS decays all parameters.
- The last state is evaluated, where WILDS takes the epoch with the best accuracy on `val`; that one
  is kept too (`rxrx1_jax.load_run(run).load("best")`, chosen every `train.eval_every` epochs).

`rxrx1_jax.report` compares such runs, without Table 1 of the paper. Needs the `wilds` dataset (25
GB before compression) and a GPU or TPU. Time, cost and accuracy on real data have not been measured
yet. Six channels: `--config.data.name=rxrx1/native`, the same sites of 512 px; with
`--config.data.crop=256` training cuts at random, where WILDS always takes the centre.
"""

from rxrx1_jax import config


def get_config(arg=None):
    c = config.default()
    c.data.name = "rxrx1/wilds"
    c.data.protocol = "wilds"
    c.data.normalisation = "site"
    c.optim.batch_size = 72
    c.optim.name = "adam"
    c.optim.learning_rate = 1e-3
    c.optim.weight_decay = 1e-5
    c.optim.warmup_epochs = 5_415 * 72 / 40_612  # 5,415 steps
    return config.parse(arg, c)

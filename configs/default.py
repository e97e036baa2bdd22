"""Every setting, with the paper's task on the real release as defaults.

Normalisation, augmentation, sampler, head and loss may name a function of your own
(docs/methods.md).

The other files in this folder change a few lines of it. Any field can be changed on the command
line: `--config.optim.batch_size=128`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()

    c.data = ConfigDict()
    c.data.dir = "data"  # TFDS data directory (where `tfds build --data_dir` wrote)
    c.data.name = "rxrx1/native"  # dataset/config[:version]; the newest version by default
    c.data.protocol = "batch"  # batch | random_site | random_well | official | wilds
    c.data.fold = 0  # 0, 1, 2: which draw of held-out experiments
    c.data.cell_type = "all"  # all | HUVEC | RPE | HEPG2 | U2OS: train and test on one alone
    c.data.seed = 0  # of the split
    # plate_control | plate_negative_control | plate_control_robust | experiment_control |
    # global_control | site | none
    c.data.normalisation = "plate_control"
    c.data.augment = True  # one of the 8 orientations of the square, drawn per site and epoch
    c.data.crop = 0  # px: random crop in training, centre crop in evaluation; 0 = whole image
    c.data.augmentation = ""  # more: cutmix | mixup | gain_offset_jitter | scale_crop, or a list
    c.data.sampler = "shuffled"  # shuffled | experiments(count=2) | cross_experiment_pairs
    c.data.shuffled_labels = False  # control: training labels permuted within each experiment
    c.data.threads = 8  # threads that read and inflate records, per host

    c.model = ConfigDict()
    c.model.name = "resnet50"  # resnet18 | resnet34 | resnet50 | resnet101 | resnet_demo
    c.model.width = 64  # channels of the first stage; 64 is the standard network
    c.model.head = "linear"  # what makes the logits: the factories of rxrx1_jax/model/heads.py
    c.model.dtype = "float32"  # float32 | bfloat16: compute type (parameters stay float32)

    c.optim = ConfigDict()
    c.optim.name = "sgd"  # sgd | adam
    c.optim.batch_size = 256  # sites a step, over all devices and hosts
    c.optim.epochs = 90  # passes over the training sites
    c.optim.learning_rate = 0.1  # peak; linear warm-up, then cosine to zero
    c.optim.warmup_epochs = 5.0  # epochs
    c.optim.momentum = 0.9  # of sgd
    c.optim.nesterov = False
    c.optim.weight_decay = 1e-4  # L2 on kernels; never on BatchNorm and biases
    c.optim.loss = "cross_entropy"  # the factories of rxrx1_jax/model/losses.py
    c.optim.label_smoothing = 0.0  # share of the target spread over all classes, [0, 1)
    c.optim.ema_decay = 0.0  # a step; > 0 evaluates an average of the weights
    c.optim.accumulation = 1  # micro-batches a step; divides batch_size

    c.train = ConfigDict()
    c.train.seed = 0  # of initialisation, data order and augmentation
    c.train.parallelism = "jit"  # jit | pmap: how the one step is spread over devices
    c.train.bn_sync = True  # BatchNorm over the whole batch; False (pmap only) = per device
    c.train.log_every = 50  # steps
    c.train.eval_every = 10  # epochs; 0 = at the end only
    c.train.checkpoint_every = 1  # epochs
    c.train.keep = 2  # checkpoints kept

    c.eval = ConfigDict()
    c.eval.batch_size = 256  # sites, over all devices and hosts
    return c


def parse(arg: str | None, config: ConfigDict) -> ConfigDict:
    """Applies `fold=0,cell_type=HUVEC` (fields of `config.data`) to a config file's argument."""
    for item in filter(None, (arg or "").split(",")):
        field, _, text = item.partition("=")
        if field not in config.data or not text:
            raise ValueError(
                f"config argument {item!r}: expected field=value with a field of "
                f"{sorted(config.data)}, for example fold=0,cell_type=HUVEC"
            )
        old = config.data[field]
        if isinstance(old, bool):
            raise ValueError(f"config argument {item!r}: set it with --config.data.{field}=...")
        try:
            config.data[field] = type(old)(text)
        except ValueError:
            raise ValueError(
                f"config argument {item!r}: expected {type(old).__name__}, found {text!r}"
            ) from None
    return config

"""Every setting of a run: its default, what it means, what is valid."""

import argparse
import math
from typing import Any, NamedTuple

VERSION = 2  # of the settings; raise it when a field is added or changes its meaning
# Settings that change where or how fast a run computes, not what: free to differ on resuming.
FREE = (
    "data.cache", "data.dir", "data.threads", "eval.batch_size", "eval.orientations", "train.keep",
    "train.loggers", "train.parallelism", "train.profile", "train.steps_per_call",
)  # fmt: skip
PATHS = ("data.dir", "data.pseudo_labels", "model.init", "train.parent")  # kept absolute

# Setting -> module of our factories, whose names FIELDS lists.
POINTS = {
    "data.normalisation": "rxrx1_jax.data.normalisation",
    "data.augmentation": "rxrx1_jax.data.augmentations",
    "data.sampler": "rxrx1_jax.data.samplers",
    "model.name": "rxrx1_jax.model.networks",
    "model.head": "rxrx1_jax.model.heads",
    "optim.name": "rxrx1_jax.training.optimizers",
    "optim.schedule": "rxrx1_jax.training.optimizers",
    "optim.loss": "rxrx1_jax.model.losses",
    "train.loggers": "rxrx1_jax.training.loggers",
}


class ConfigError(ValueError):
    """A setting that cannot be worked with; one line: field, value, what is valid."""


class PathError(ConfigError, argparse.ArgumentTypeError):  # argparse adds the option's name
    """A path that cannot be read or written, whatever is there."""


class Field(NamedTuple):
    default: Any  # its type is the type of the field
    about: str
    valid: tuple[str, ...] = ()  # names; a plug-in's may also be a dotted name
    least: float = 0  # of a number
    below: float = math.inf  # of a whole number 2**31


FIELDS = {
    "data.dir": Field("data", "TFDS data directory, where `tfds build --data_dir` wrote"),
    "data.name": Field("rxrx1/native", "dataset/config[:version]; the newest version by default"),
    "data.protocol": Field("batch", "which sites are trained on and which are tested", (
        "batch", "random_site", "random_well", "official", "wilds")),
    "data.fold": Field(0, "0, 1, 2: which draw of held-out experiments"),
    "data.cell_type": Field("all", "all | HUVEC | RPE | HEPG2 | U2OS: train and test on one alone"),
    "data.seed": Field(0, "of the split", below=2**32),
    "data.fraction": Field(1.0, "share of the wells of each set, for a trial"),
    "data.val_experiments": Field(0, "of each cell type, taken from training for choices"),
    "data.normalisation": Field("plate_control", "what gives a channel's mean and deviation", (
        "plate_control", "plate_negative_control", "plate_control_robust", "experiment_control",
        "global_control", "site", "none")),
    "data.augment": Field(True, "one of the 8 orientations of the square per site and epoch"),
    "data.crop": Field(0, "px: random crop in training, centre crop in evaluation; 0 = none"),
    "data.augmentation": Field("", "further ones, a list; may be empty", (
        "cutmix", "mixup", "gain_offset_jitter", "channel_dropout", "scale_crop")),
    "data.sampler": Field(
        "shuffled", "sites of a batch",
        ("shuffled", "experiments", "plates", "cross_experiment_pairs")),
    "data.control_classes": Field(
        "none", "control wells that are trained on, too, as classes: of training experiments, all;"
        " alone: those of training experiments and nothing else, to begin another run with",
        ("none", "train", "all", "alone")),
    "data.pseudo_labels": Field("", "predictions of a run, a .parquet: of test wells, to train on"),
    "data.pseudo_share": Field(0.5, "of the test wells, the surest, that they are taken of"),
    "data.shuffled_labels": Field(False, "control: training labels permuted in each experiment"),
    "data.threads": Field(
        0, "that read and inflate records, per host; 0 = as many as the cores", below=1025),
    "data.cache": Field("auto", "where images are kept: auto = the first of these that fits", (
        "auto", "device", "host", "none")),
    "model.name": Field("resnet50", "the network", (
        "resnet18", "resnet34", "resnet50", "resnet101", "resnet_demo", "vit_tiny", "vit_small",
        "vit_base")),
    "model.width": Field(
        64, "channels of the first stage, of a ViT's head; 64 is the standard network", least=1),
    "model.head": Field("linear", "what makes the logits", (
        "linear", "cosine", "linear_and_cosine", "cell_type_one_hot", "cell_type_film",
        "domain_adversary")),
    "model.dtype": Field("auto", "of the computation; auto: bfloat16 on GPUs and TPUs", (
        "auto", "float32", "bfloat16")),
    "model.init": Field(
        "", "weights to begin with: a .safetensors or .pth file of these names, or a run"),
    "model.remat": Field(False, "blocks are computed twice in a step, and take less memory"),
    "optim.name": Field("sgd", "the optimizer", ("sgd", "adam", "adamw")),
    "optim.batch_size": Field(
        256, "sites per step, over all devices and hosts", least=1, below=65_537),
    "optim.epochs": Field(90, "passes over the training sites", least=1, below=100_001),
    "optim.learning_rate": Field(0.1, "peak, after a linear warm-up"),
    "optim.schedule": Field("cosine", "of the learning rate after the warm-up", (
        "cosine", "linear", "step", "constant")),
    "optim.warmup_epochs": Field(5.0, "epochs of rising learning rate; half of a shorter run"),
    "optim.momentum": Field(0.9, "of sgd", below=1),
    "optim.nesterov": Field(False, "of sgd"),
    "optim.weight_decay": Field(1e-4, "of kernels; never of BatchNorm and biases"),
    "optim.clip_norm": Field(0.0, "largest norm of a gradient; 0 = any"),
    "optim.loss": Field("cross_entropy", "what is minimised", (
        "cross_entropy", "arcface", "coral", "irm", "group_dro", "dann",
        "cross_experiment_contrastive")),
    "optim.label_smoothing": Field(0.0, "share of the target spread over all classes", below=1),
    "optim.ema_decay": Field(0.0, "per step; > 0 evaluates an average of the weights", below=1),
    "optim.accumulation": Field(1, "micro-batches per step; divides batch_size", least=1),
    "train.seed": Field(0, "of initialisation, data order and augmentation", below=2**32),
    "train.max_steps": Field(0, "steps at most, for a trial; 0 = those of optim.epochs"),
    "train.steps_per_call": Field(
        0, "steps that one call of the program runs; 0 = by their time, 1 on CPUs", below=1_025),
    "train.parent": Field("", "path of a run whose last checkpoint this one continues"),
    "train.parallelism": Field("jit", "how a step is spread over devices", ("jit", "pmap")),
    "train.deterministic": Field(True, "GPUs too give the same bits in each run"),
    "train.bn_sync": Field(True, "BatchNorm over the whole batch; False (pmap only): per device"),
    "train.loggers": Field("tensorboard", "who gets the curves, a list", ("tensorboard",)),
    "train.log_every": Field(50, "steps", least=1),
    "train.profile": Field((0, 0), "first and last step of a trace, as (10, 15); (0, 0) = none"),
    "train.eval_every": Field(10, "epochs; 0 = at the end only"),
    "train.checkpoint_every": Field(1, "epochs", least=1),
    "train.keep": Field(2, "checkpoints kept", least=1),
    "eval.batch_size": Field(256, "sites, over all devices and hosts", least=1, below=65_537),
    "eval.orientations": Field(False, "predictions are means over the 8 orientations of an image"),
}  # fmt: skip

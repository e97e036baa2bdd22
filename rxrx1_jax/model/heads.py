"""Heads: what stands between the pooled features of a network and its logits.

Each factory below returns a head, a function (network, features, batch, info) -> logits:

  network: the module whose @nn.compact method calls the head; layers made in the head are its own.
  features: float [N, d], the embedding.
  batch: cell_type and experiment, int32 [N], in training and in evaluation.
  info: an `Info`; the codes of the batch are positions in its vocabulary.
  logits: [N, K] with K = len(info.vocabulary.classes), float32 (float64 for float64 features).

A head hands further outputs to the loss with `network.sow("intermediates", name, value)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rxrx1_jax.data.info import Info

Batch = Mapping[str, jax.Array]
Head = Callable[[nn.Module, jax.Array, Batch, Info], jax.Array]

NECKS, NECK_EPSILON = ("", "layer", "batch", "two_layers"), 1e-5
NECK_WIDTH = 1024  # of the two layers
classifier_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def linear() -> Head:
    """The classifier of torchvision: W x + b, parameters fc/kernel [d, K] and fc/bias [K]."""

    def head(network: nn.Module, features: jax.Array, batch: Batch, info: Info) -> jax.Array:
        return _classify(wide(features), info)

    return head


def cosine(scale: float = 30.0, neck: str = "") -> Head:
    """scale * cos(angle between the features and the vector of the class), fc/kernel [d, K].

    The head of NormFace (Wang et al. 2017, arXiv:1704.06369) and of `losses.arcface`, which reads
    the cosines [N, K], sown as "cosine". The cosine of features that are all zero is 0. Features
    that are none below 0, as means of ReLUs, have cosines in a narrow cone, where no margin can be
    met: they need a neck, "layer" or "batch" for a LayerNorm or BatchNorm of them (neck/scale,
    neck/bias). "two_layers" is that of the Kaggle competition's winner: the cell type, one column
    for each, beside the features, then BatchNorm, linear, ReLU, BatchNorm, linear, BatchNorm, the
    linear layers of NECK_WIDTH and without bias. Raises ValueError unless scale > 0, and for
    another neck.
    """
    if scale <= 0:
        raise ValueError(f"cosine: scale is {scale}; expected more than 0")
    _check_neck("cosine", neck)

    def head(network: nn.Module, features: jax.Array, batch: Batch, info: Info) -> jax.Array:
        x = _through(neck, network, features, batch, info)
        cosines = CosineClassifier(len(info.vocabulary.classes), name="fc")(x)
        network.sow("intermediates", "cosine", cosines)
        return scale * cosines

    return head


def linear_and_cosine(neck: str = "layer") -> Head:
    """The linear classifier, and cosines (arc/kernel) for an ArcFace beside its cross-entropy.

    Both read the neck of `cosine`, as in the winning solution of the Kaggle competition
    (github.com/maciej-sypetkowski/kaggle-rcic-1st). For `losses.arcface(beside=0.2)`.
    """
    _check_neck("linear_and_cosine", neck)

    def head(network: nn.Module, features: jax.Array, batch: Batch, info: Info) -> jax.Array:
        x = _through(neck, network, features, batch, info)
        cosines = CosineClassifier(len(info.vocabulary.classes), name="arc")(x)
        network.sow("intermediates", "cosine", cosines)
        return _classify(x, info)

    return head


def cell_type_one_hot() -> Head:
    """A linear classifier of the features and the cell type, one column for each of the T types.

    It reads [N, d + T], which gives each pair of cell type and class a bias of its own.
    """

    def head(network: nn.Module, features: jax.Array, batch: Batch, info: Info) -> jax.Array:
        return _classify(_with_cell_type(wide(features), batch, info), info)

    return head


def cell_type_film() -> Head:
    """A linear classifier of (1 + scale_c) * x + shift_c, with a scale and a shift per cell type c.

    FiLM (Perez et al. 2018, arXiv:1709.07871) of the pooled features. Parameters film_scale and
    film_shift have one row per cell type. They start at zero, which is the identity.
    """

    def head(network: nn.Module, features: jax.Array, batch: Batch, info: Info) -> jax.Array:
        x = wide(features)
        shape = (len(info.vocabulary.cell_types), x.shape[1])
        scale = network.param("film_scale", nn.initializers.zeros, shape, jnp.float32)
        shift = network.param("film_shift", nn.initializers.zeros, shape, jnp.float32)
        x, scale, shift = nn.dtypes.promote_dtype(x, scale, shift, dtype=x.dtype)
        cell_type = batch["cell_type"]
        return _classify((1 + scale[cell_type]) * x + shift[cell_type], info)

    return head


def domain_adversary(hidden: int = 256, reversal: float = 1.0, ramp: float = 0.0) -> Head:
    """The linear classifier, and a classifier of the experiment behind a gradient reversal.

    Domain-adversarial training (Ganin et al. 2016, arXiv:1505.07818), with `losses.dann`. The
    experiment classifier has one hidden layer (domain_hidden, ReLU, domain_fc). It learns to find
    the experiment; the features receive its gradient times -strength. The strength is `reversal`,
    or with ramp > 0 reversal * (2 / (1 + exp(-ramp * progress)) - 1), which rises from 0 (the
    paper's lambda, with ramp 10). Its logits [N, experiments] are sown as "domain_logits".
    Raises ValueError unless hidden >= 1, reversal >= 0 and ramp >= 0.
    """
    if hidden < 1 or reversal < 0 or ramp < 0:
        raise ValueError(
            f"domain_adversary: hidden is {hidden}, reversal {reversal} and ramp {ramp}; expected "
            "at least 1, 0 and 0"
        )

    def head(network: nn.Module, features: jax.Array, batch: Batch, info: Info) -> jax.Array:
        x = wide(features)
        strength: jax.Array | float = reversal
        if ramp:
            progress = jnp.asarray(info.progress).astype(x.dtype)
            strength = reversal * (2 / (1 + jnp.exp(-ramp * progress)) - 1)
        dense = nn.Dense(hidden, dtype=x.dtype, name="domain_hidden")
        y = nn.relu(dense(reverse_gradient(x, strength)))
        domains = nn.Dense(
            len(info.vocabulary.experiments), dtype=x.dtype, kernel_init=classifier_init,
            name="domain_fc",
        )  # fmt: skip
        network.sow("intermediates", "domain_logits", domains(y))
        return _classify(x, info)

    return head


class CosineClassifier(nn.Module):
    """Cosines between rows [N, d] and the columns of kernel [d, features]: [N, features]."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", classifier_init, (x.shape[1], self.features), jnp.float32)
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=x.dtype)
        return normalise(x, 1) @ normalise(kernel, 0)


def normalise(x: jax.Array, axis: int) -> jax.Array:
    """x divided by its Euclidean norm along the axis; zeros stay zeros, with a finite gradient."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis, keepdims=True), 1e-12))


def reverse_gradient(x: jax.Array, strength: jax.Array | float) -> jax.Array:
    """x, whose gradient is multiplied by -strength on the way back (Ganin et al. 2016, eq. 12)."""
    constant = jax.lax.stop_gradient(x)
    return constant - strength * (x - constant)


def wide(features: jax.Array) -> jax.Array:
    """Heads run in float32 (float64 in tests) whatever the dtype of the network."""
    return features.astype(np.promote_types(features.dtype, np.float32))


def _check_neck(head: str, neck: str) -> None:
    if neck not in NECKS:
        raise ValueError(f"{head}: neck is {neck!r}; expected one of {', '.join(map(repr, NECKS))}")


def _through(
    neck: str, network: nn.Module, features: jax.Array, batch: Batch, info: Info
) -> jax.Array:
    x = wide(features)

    def norm(x: jax.Array, name: str) -> jax.Array:
        axis = getattr(network, "bn_axis_name", None)
        own: dict[str, Any] = {"epsilon": NECK_EPSILON, "dtype": x.dtype, "name": name}
        return nn.BatchNorm(not info.train, momentum=0.9, axis_name=axis, **own)(x)

    def dense(x: jax.Array, name: str) -> jax.Array:
        return nn.Dense(NECK_WIDTH, use_bias=False, dtype=x.dtype, name=name)(x)

    with jax.numpy_dtype_promotion("standard"):  # Flax multiplies float64 by its parameters
        if neck == "layer":
            return nn.LayerNorm(epsilon=NECK_EPSILON, dtype=x.dtype, name="neck")(x)
        if neck == "batch":
            return norm(x, "neck")
        if neck == "two_layers":
            x = norm(_with_cell_type(x, batch, info), "neck_in")
            x = norm(nn.relu(dense(x, "neck_first")), "neck_middle")
            return norm(dense(x, "neck_second"), "neck")
    return x


def _with_cell_type(x: jax.Array, batch: Batch, info: Info) -> jax.Array:
    cell_types = len(info.vocabulary.cell_types)
    return jnp.concatenate([x, jax.nn.one_hot(batch["cell_type"], cell_types, dtype=x.dtype)], 1)


def _classify(x: jax.Array, info: Info) -> jax.Array:
    classes = len(info.vocabulary.classes)
    return nn.Dense(classes, dtype=x.dtype, kernel_init=classifier_init, name="fc")(x)

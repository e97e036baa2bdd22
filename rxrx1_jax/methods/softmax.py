"""Softmax regression on embeddings, a stage `classify`: the linear probe of the literature.

JAX computes the objective, on the device that it finds; SciPy's L-BFGS descends. How much the
weights are held back matters more than how they are found, so the penalty is chosen, on
experiments that are held out of the training experiments.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from rxrx1_jax.methods.classifiers import per_cell_type
from rxrx1_jax.methods.evidence import Evidence
from rxrx1_jax.methods.transforms import mean_and_whitening

PENALTIES = (0.1, 0.03, 0.01, 0.003, 0.001, 3e-4, 1e-4, 3e-5, 1e-5)  # large to small
UNCHOSEN = 0.01  # where no cell type has two training experiments
CHUNK = 8192  # rows at a time: [CHUNK, K] logits are all that is kept
STEPS = 50  # of L-BFGS, at most, per penalty
CLOSE = 1e-5  # it ends where a step lowers the objective by less than this share


def _fit(train: Evidence, label: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    return Regression(train.x, label).descend(chosen_penalty(train, label)).log_probs


softmax = per_cell_type(_fit)
"""Softmax regression of each cell type's training sites.

It minimises the mean cross-entropy + penalty / 2 * sum of squared weights, the intercepts left out,
of embeddings whitened on the training sites (as in `transforms.sphering`): scikit-learn's
LogisticRegression with C = 1 / (penalty * sites). On embeddings that are scaled and not whitened
the penalty hits small directions that tell siRNAs apart, and L-BFGS is slow. `chosen_penalty` says
how the penalty is found.
"""


def chosen_penalty(train: Evidence, label: np.ndarray) -> float:
    """The one of PENALTIES with the best accuracy on `inner_split`, fitted on the other sites.

    They are tried from large to small, each from the weights of the one before, until two in a row
    are worse than the best.
    """
    held_out = inner_split(train, label)
    if not held_out.any():
        return UNCHOSEN
    regression = Regression(train.x[~held_out], label[~held_out])
    found: dict[float, float] = {}
    for penalty in PENALTIES:
        predicted = regression.descend(penalty).log_probs(train.x[held_out]).argmax(1)
        found[penalty] = float((predicted == label[held_out]).mean())
        if len(found) > 2 and max(list(found.values())[-2:]) < max(found.values()):
            break
    return max(found, key=lambda penalty: found[penalty])


def inner_split(train: Evidence, label: np.ndarray) -> np.ndarray:
    """bool [n]: sites of the last experiment of each cell type that has two.

    Sites of a class that only these experiments hold are left out.
    """
    held_out = np.full(len(label), False)
    for cell_type in np.unique(train.sites["cell_type"]):
        here = train.sites["cell_type"] == cell_type
        names = np.unique(train.sites["experiment"][here])
        if len(names) > 1:
            held_out |= here & (train.sites["experiment"] == names[-1])
    return held_out & np.isin(label, label[~held_out])


class Regression:
    """Of rows x [n, d] with their label [n]; it is fitted by `descend`."""

    def __init__(self, x: np.ndarray, label: np.ndarray):
        import jax

        self.mean, self.whitening = mean_and_whitening(x)
        self.weights = np.zeros((x.shape[1] + 1, int(label.max()) + 1))  # the last: intercepts
        chunks = -(-len(x) // CHUNK)
        rows = -(-len(x) // chunks)
        pad = chunks * rows - len(x)
        share = np.pad(np.full(len(x), 1 / len(x), np.float32), (0, pad)).reshape(chunks, rows)
        labels = np.pad(label.astype(np.int32), (0, pad)).reshape(chunks, rows)
        white = np.pad(self._white(x), ((0, pad), (0, 0))).reshape(chunks, rows, -1)
        self.data = jax.device_put((white, labels, share))

    def descend(self, penalty: float) -> "Regression":
        """Fits with this penalty, from the weights that are there."""
        from scipy.optimize import minimize  # here: the commands' --help needs none

        options = {"maxiter": STEPS, "ftol": CLOSE}
        found = minimize(
            self.objective, self.weights.ravel(), (penalty,), "L-BFGS-B", jac=True, options=options
        )
        self.weights = found.x.reshape(self.weights.shape)
        return self

    def objective(self, weights: np.ndarray, penalty: float) -> tuple[float, np.ndarray]:
        """Its value and its gradient, at weights f64 [(d + 1) k]."""
        weights = weights.reshape(self.weights.shape)
        value, gradient = _program()(weights.astype(np.float32), *self.data)
        held = np.vstack([weights[:-1], np.zeros_like(weights[:1])])
        total = float(value) + penalty / 2 * float((held**2).sum())
        return total, (np.asarray(gradient, np.float64) + penalty * held).ravel()

    def log_probs(self, x: np.ndarray) -> np.ndarray:
        from scipy.special import log_softmax

        weights = self.weights.astype(np.float32)
        return log_softmax(self._white(x) @ weights[:-1] + weights[-1], axis=1)

    def _white(self, x: np.ndarray) -> np.ndarray:
        return ((x - self.mean) @ self.whitening).astype(np.float32)


@functools.cache
def _program() -> Any:
    """(weights, x, label, share) -> (sum of share * cross-entropy, its gradient), compiled."""
    import jax
    import jax.numpy as jnp

    def loss(weights, x, label, share):
        logits = jnp.matmul(x, weights[:-1], precision="highest") + weights[-1:]
        of_label = jnp.take_along_axis(logits, label[:, None], 1)[:, 0]
        return share @ (jax.nn.logsumexp(logits, 1) - of_label)

    @jax.jit
    def whole(weights, *chunks):
        def add(total, part):
            return jax.tree.map(jnp.add, total, jax.value_and_grad(loss)(weights, *part)), None

        zero = jnp.zeros((), jnp.float32), jnp.zeros_like(weights)
        return jax.lax.scan(add, zero, chunks)[0]

    return whole

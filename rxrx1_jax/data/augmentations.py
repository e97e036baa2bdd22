"""Augmentations of training batches on the device, after normalisation and orientation.

A factory returns `augment(keys, batch, info) -> batch`, a function to be traced under jit:

    keys: [N] PRNG keys, one per row, of (seed, epoch, site): all draws come from them
    batch: image [N, H, W, C], normalised, float32 or bfloat16; label and more [N]
    info: an `Info`; `info.progress` is the part of the training that is done

It replaces the image. An augmentation that mixes two rows adds other_label int32 [N] and share
float32 [N]: the target is `share` on label and 1 - `share` on other_label. Each row draws its own
share, and its partner among the other rows whose mask is set. With within_sirna=True it is one of
the rows of the same siRNA and cell type in another experiment, and a row without any is left alone:
LISA, Yao et al. 2022, arXiv:2201.00299, for which the sampler `cross_experiment_pairs` brings
partners. The arithmetic is float32, the image keeps its dtype.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from rxrx1_jax.data.info import Info

Batch = Mapping[str, jax.Array]
Augment = Callable[[jax.Array, Batch, Info], dict[str, jax.Array]]


def cutmix(
    alpha: float = 1.0, probability: float = 1.0, within_sirna: bool = False
) -> Augment:
    """A box of another row's image in the same place: CutMix, Yun et al. 2019, arXiv:1905.04899.

    The box has the image's proportions, 1 - Beta(alpha, alpha) of its area and a uniform centre,
    and is cut off at the edges (as in github.com/clovaai/CutMix-PyTorch, there one box per batch);
    `share` is the part of the pixels outside of what remains. A row is left alone with
    1 - `probability`.
    """
    if alpha <= 0 or not 0 <= probability <= 1:
        raise ValueError(
            f"alpha {alpha}, probability {probability}: expected alpha above 0, probability 0 to 1"
        )
    partners = _of_sirna if within_sirna else _others

    def augment(keys: jax.Array, batch: Batch, info: Info) -> dict[str, jax.Array]:
        image = batch["image"]
        size = jnp.array(image.shape[1:3])

        def box(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            size_key, centre_key, whether_key = jax.random.split(key, 3)
            side = jnp.sqrt(1 - jax.random.beta(size_key, alpha, alpha))  # of the image's
            side = jnp.where(jax.random.bernoulli(whether_key, probability), side, 0)
            half = jnp.floor(side * size.astype(jnp.float32)).astype(size.dtype) // 2
            centre = jax.random.randint(centre_key, (2,), 0, size)
            return jnp.maximum(centre - half, 0), jnp.minimum(centre + half, size)

        start, stop = jax.vmap(box)(keys)  # row and column, int32 [N, 2]
        place = jnp.arange(image.shape[1])[None], jnp.arange(image.shape[2])[None]
        row, column = (
            (start[:, axis, None] <= place[axis]) & (place[axis] < stop[:, axis, None])
            for axis in (0, 1)
        )
        cut = (row[:, :, None] & column[:, None, :])[..., None]
        area = jnp.prod(stop - start, 1).astype(jnp.float32)
        share = 1 - area / (image.shape[1] * image.shape[2])
        partner = partners(keys, batch)
        return _mixed(batch, partner, jnp.where(cut, image[partner], image), share)

    return augment


def mixup(alpha: float = 0.2, within_sirna: bool = False) -> Augment:
    """share * image + (1 - share) * another image, share from Beta(alpha, alpha) for each row.

    Zhang et al. 2018, arXiv:1710.09412.
    """
    if alpha <= 0:
        raise ValueError(f"alpha {alpha}: expected above 0")
    partners = _of_sirna if within_sirna else _others

    def augment(keys: jax.Array, batch: Batch, info: Info) -> dict[str, jax.Array]:
        image = batch["image"].astype(jnp.float32)
        share = jax.vmap(lambda key: jax.random.beta(key, alpha, alpha))(keys)
        # One product: which of two is fused with their sum, unrounded, XLA chooses
        # again for each number of devices.
        partner = partners(keys, batch)
        other = image[partner]
        image = other + share[:, None, None, None] * (image - other)
        return _mixed(batch, partner, image.astype(batch["image"].dtype), share)

    return augment


def gain_offset_jitter(gain: float = 0.1, offset: float = 0.1) -> Augment:
    """x * exp(gain * g) + offset * o, g and o standard normal for each row and channel.

    The unit of `offset` is that of the normalised image: standard deviations of the pixels that
    normalise it. The gain is about its zero, their mean.
    """
    if gain < 0 or offset < 0:
        raise ValueError(f"gain {gain}, offset {offset}: expected 0 or more")

    def augment(keys: jax.Array, batch: Batch, info: Info) -> dict[str, jax.Array]:
        image = batch["image"].astype(jnp.float32)
        shape = (2, image.shape[-1])
        normal = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)[:, :, None, None]
        image = image * jnp.exp(gain * normal[:, 0]) + offset * normal[:, 1]
        return {**batch, "image": image.astype(batch["image"].dtype)}

    return augment


def channel_dropout(probability: float = 0.15) -> Augment:
    """One channel of a row, each equally likely, becomes 0, the mean of what normalises it.

    A row is left alone with 1 - `probability`. As github.com/inori6/rxrx1 trains on RxRx1.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability {probability}: expected 0 to 1")

    def augment(keys: jax.Array, batch: Batch, info: Info) -> dict[str, jax.Array]:
        image = batch["image"]

        def kept(key: jax.Array) -> jax.Array:
            whether_key, channel_key = jax.random.split(key)
            channel = jax.random.randint(channel_key, (), 0, image.shape[-1])
            dropped = jax.random.bernoulli(whether_key, probability)
            return ~(dropped & (jnp.arange(image.shape[-1]) == channel))

        keep = jax.vmap(kept)(keys)[:, None, None, :]
        return {**batch, "image": jnp.where(keep, image, jnp.zeros_like(image))}

    return augment


def scale_crop(low: float = 0.8, high: float = 1.25) -> Augment:
    """Zooms each row by a factor from `low` to `high`, uniform in its logarithm; size kept.

    The fixed point is uniform over the image, row and column. Bilinear between pixel centres;
    what lies beyond the edges is the mirror image.
    """
    if not 0 < low <= high:
        raise ValueError(f"low {low}, high {high}: expected 0 < low <= high")

    def zoom(key: jax.Array, image: jax.Array) -> jax.Array:
        scale_key, place_key = jax.random.split(key)
        bounds = jnp.log(jnp.array([low, high], jnp.float32))
        factor = jnp.exp(jax.random.uniform(scale_key, (), jnp.float32, *bounds))
        place = jax.random.uniform(place_key, (2,))
        # Separable, by gathering: on a CPU 1.6 (64 px) to 10 times (512 px) faster than the matrix
        # products of jax.image.scale_and_translate.
        for axis in (0, 1):
            side = image.shape[axis]
            pixel = jnp.arange(side, dtype=jnp.float32)
            source = pixel + (1 / factor - 1) * (pixel - (place[axis] * side - 0.5))
            source = (source + 0.5) % (2 * side)  # from the image's edge; two sides is a period
            source = jnp.clip(jnp.minimum(source, 2 * side - source) - 0.5, 0, side - 1)
            lower = jnp.minimum(jnp.floor(source), side - 2)
            weight = jnp.expand_dims(source - lower, (1 - axis, 2))
            index = lower.astype(jnp.int32)
            image = (
                jnp.take(image, index, axis) * (1 - weight)
                + jnp.take(image, index + 1, axis) * weight
            )
        return image

    def augment(keys: jax.Array, batch: Batch, info: Info) -> dict[str, jax.Array]:
        image = jax.vmap(zoom)(keys, batch["image"].astype(jnp.float32))
        return {**batch, "image": image.astype(batch["image"].dtype)}

    return augment


def _others(keys: jax.Array, batch: Batch) -> jax.Array:
    """int32 [N]: for each row another one, each of those with mask set equally likely.

    The next row would be of the same siRNA or experiment under samplers that group them.
    """
    mask = batch["mask"]
    valid = jnp.sum(mask)
    order = jnp.argsort(~mask, stable=True)  # those with mask set first
    place = jnp.argsort(order)
    step = jax.vmap(
        lambda key: jax.random.randint(jax.random.fold_in(key, 0), (), 1, jnp.maximum(valid, 2))
    )(keys)
    return order[(place + step) % jnp.maximum(valid, 1)]


def _of_sirna(keys: jax.Array, batch: Batch) -> jax.Array:
    """int32 [N]: for each row one of its siRNA and cell type in another experiment, each equally
    likely; itself where there is none, or where its mask is not set."""

    def pairs(column: jax.Array) -> jax.Array:
        return column[:, None] == column[None, :]

    rows, mask = len(keys), batch["mask"]
    able = pairs(batch["label"]) & pairs(batch["cell_type"]) & ~pairs(batch["experiment"])
    able &= mask[:, None] & mask[None, :]
    draws = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 0), (rows,)))(keys)
    chosen = jnp.argmax(jnp.where(able, draws, -1), axis=1)
    return jnp.where(able.any(axis=1), chosen, jnp.arange(rows))


def _mixed(
    batch: Batch, partner: jax.Array, image: jax.Array, share: jax.Array
) -> dict[str, jax.Array]:
    if "other_label" in batch:
        raise ValueError(
            "two augmentations that mix rows (cutmix, mixup): a target has two labels, not three or"
            " four; keep one of them"
        )
    return {**batch, "image": image, "other_label": batch["label"][partner], "share": share}

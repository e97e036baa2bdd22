"""Split + records -> device batches.

Two halves. The host (`host_batches`) reads and inflates uint8 planes in threads. The device
crops, orients, normalises and transposes them in one jitted function; it is the faster of the two
at that, and bytes are four times less to ship than floats. `benchmarks/loaders.py` times both.

The order and the augmentation are functions of (seed, epoch, record): not of time, threads or
hosts. The sampler gives the sites of step k, so the state of the pipeline is the number of the
step. Host h of n takes the h-th part of them, so the rows of a batch do not depend on n.
"""

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rxrx1_jax.data import reuse, samplers
from rxrx1_jax.data.augmentations import Augment
from rxrx1_jax.data.host_batches import SHUFFLED, Batch, host_eval_batches, host_train_batches
from rxrx1_jax.data.images import Vocabulary
from rxrx1_jax.data.info import Info
from rxrx1_jax.data.normalisation import NORMALISATIONS, STD_FLOOR, pixel_statistics
from rxrx1_jax.data.records import Records
from rxrx1_jax.data.splits import Split

__all__ = [
    "NORMALISATIONS", "eval_batches", "host_train_batches", "memory_bytes", "pixel_statistics",
    "prepare", "train_batches",
]  # fmt: skip

DeviceBatch = dict[str, jax.Array]
# (batch, epoch, progress) -> batch, compiled, and the progress at each step; None: no augmentation.
_Augmentations = tuple[Callable[..., DeviceBatch], Iterator[float]] | None
ON_DEVICE = ("label", "experiment", "plate", "cell_type", "site_index", "mask")  # passed through


def train_batches(
    records: Records,
    split: Split,
    *,
    batch_size: int,
    seed: int,
    normalisation: str,
    start_step: int = 0,
    end_step: int | None = None,
    augment: bool = True,
    crop: int = 0,
    augmentations: Sequence[Augment] = (),
    vocabulary: Vocabulary | None = None,
    sampler: samplers.Sampler = SHUFFLED,
    shuffled_labels: bool = False,
    dtype: jax.typing.DTypeLike = jnp.float32,
    sharding: jax.sharding.NamedSharding | None = None,
    threads: int = 8,
    prefetch: int = 4,
    host: int | None = None,
    hosts: int | None = None,
) -> Iterator[DeviceBatch]:
    """Batches of `split.train` as the sampler draws them, without end or to `end_step`.

    Yields dicts of arrays on the device(s), N = batch_size (over all hosts):
      image: `dtype` [N, H, W, 6], normalised; H = W = crop if given.
      label: int32 [N], position in split.classes.
      experiment, cell_type: int32 [N], position among the sorted names in the dataset.
      plate, site_index: int32 [N]; site_index is the record's index.
      mask: bool [N], here all true.
      and what the augmentations add: other_label int32 [N], share float32 [N].

    Args:
      records, split: the data.
      batch_size: sites a batch, over all hosts.
      seed: of order and augmentation.
      normalisation: one of NORMALISATIONS.
      start_step: number of the first batch; a resumed run passes the step it stands at.
      end_step: number after the last batch, beyond which nothing is read; None: no end.
      augment: one of the 8 orientations of the square at random, and the crop at random.
      crop: side of the crop, pixels; 0 takes the whole image.
      augmentations: applied in turn to the normalised and oriented images; they are told the
        vocabulary (None: that of the records and the split) and the part of end_step that is done.
      sampler: which sites make up a batch.
      shuffled_labels: permutes the labels within each experiment, a control.
      dtype: of the images; the arithmetic is float32.
      sharding: over the first axis; None: the default device.
      threads: of the host half.
      prefetch: batches read ahead.
      host, hosts: this host's number and how many there are; default: of the JAX processes.

    Raises:
      ValueError: a setting out of range, with the valid ones. Raised by the call itself.
      DatasetError: from the iterator, a damaged image; from the call, controls missing.
    """
    host, hosts = _hosts(host, hosts)
    _check(records, split.train, batch_size, crop, sharding, hosts)
    if start_step < 0:
        raise ValueError(f"start_step {start_step}: expected 0 or more")
    if end_step is not None and end_step < start_step:
        raise ValueError(f"end_step {end_step}: expected start_step {start_step} or more")
    height, width = records.image_shape[1:]
    if augment and not crop and height != width:
        raise ValueError(f"augment of {height}x{width} images: orientations need a square; crop")
    batches = host_train_batches(
        records, split, batch_size=batch_size, seed=seed, normalisation=normalisation,
        sampler=sampler, shuffled_labels=shuffled_labels, start_step=start_step,
        end_step=end_step, threads=threads, prefetch=prefetch, host=host, hosts=hosts,
    )  # fmt: skip
    methods: _Augmentations = None
    if augmentations:
        vocabulary = vocabulary or Vocabulary.of(records.sites, split.classes)
        progress = (step / end_step if end_step else 0.0 for step in itertools.count(start_step))
        augmented = partial(_augmented, augmentations, vocabulary, seed, sharding)
        methods = jax.jit(augmented, donate_argnums=0), progress
    return _to_device(batches, seed, augment, crop, dtype, sharding, methods)


def eval_batches(
    records: Records,
    rows: np.ndarray,
    split: Split,
    *,
    batch_size: int,
    normalisation: str,
    crop: int = 0,
    dtype: jax.typing.DTypeLike = jnp.float32,
    sharding: jax.sharding.NamedSharding | None = None,
    threads: int = 8,
    prefetch: int = 4,
    host: int | None = None,
    hosts: int | None = None,
) -> Iterator[DeviceBatch]:
    """Batches of `rows` (record indices), each once and in order; centre crop.

    As `train_batches`, but finite, and the last batch is filled up with blank images whose mask is
    false and whose site_index is -1. Every host yields equally many batches. `split` gives the
    classes, and the training sites for `global_control`; a site of no class has label -1.
    """
    host, hosts = _hosts(host, hosts)
    rows = np.asarray(rows)
    _check(records, rows, batch_size, crop, sharding, hosts)
    batches = host_eval_batches(
        records, rows, split, batch_size=batch_size, normalisation=normalisation,
        threads=threads, prefetch=prefetch, host=host, hosts=hosts,
    )  # fmt: skip
    return _to_device(batches, 0, False, crop, dtype, sharding, None)


def memory_bytes(image_shape: tuple[int, int, int], batch_size: int, prefetch: int) -> int:
    """Most bytes the images of one iterator over float32 batches hold on a CPU, all told.

    As planes, 6*H*W bytes a site: `prefetch` batches being read, a finished one, and one on the
    device. As floats, four times as large: the consumer's batch, the next, and the one being made
    (or the one whose memory that takes). With another `dtype` or a crop it is less; an accelerator
    holds the floats in its own memory.
    """
    return math.prod(image_shape) * batch_size * (prefetch + 2 + 3 * 4)


def prepare(
    batch: Mapping[str, jax.Array],
    key: jax.Array,
    augment: bool,
    crop: int,
    dtype: jax.typing.DTypeLike,
) -> jax.Array:
    """The device half; to be jitted. Host batch -> images of `train_batches`.

    Args:
      batch: image uint8 [N, 6, H, W], site_index and epoch int32 [N]; mean and std float32 [N, 6],
        absent if every image is to be normalised by its own.
      key: scalar PRNG key. Every row draws from (key, epoch, site_index) alone.
      augment, crop, dtype: as in `train_batches`; without augment the crop is the centre.
    """
    images = batch["image"]
    if "mean" in batch:
        mean, std = batch["mean"], batch["std"]
    else:
        pixels = images.astype(jnp.float32)
        mean, std = pixels.mean((2, 3)), jnp.maximum(pixels.std((2, 3)), STD_FLOOR)
    if augment:
        keys = _row_keys(key, batch["epoch"], batch["site_index"])
        images = jax.vmap(partial(_augment, crop=crop))(images, keys)
    elif crop:
        top, left = ((side - crop) // 2 for side in images.shape[2:])
        images = images[:, :, top : top + crop, left : left + crop]
    images = (images.astype(jnp.float32) - mean[:, :, None, None]) / std[:, :, None, None]
    return jnp.transpose(images.astype(dtype), (0, 2, 3, 1))


def _row_keys(key: jax.Array, epoch: jax.Array, site_index: jax.Array) -> jax.Array:
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, epoch)
    return jax.vmap(jax.random.fold_in)(keys, site_index)


def _augment(image: jax.Array, key: jax.Array, crop: int) -> jax.Array:
    """uint8 [6, H, W] -> [6, crop, crop], cut and oriented at random.

    Transposing or not, then mirroring either axis or not, are the 8 symmetries of the square.
    """
    crop_key, orientation_key = jax.random.split(key)
    if crop:
        space = jnp.array(image.shape[1:]) - (crop - 1)
        top, left = jax.random.randint(crop_key, (2,), 0, space)
        image = jax.lax.dynamic_slice(image, (0, top, left), (image.shape[0], crop, crop))
    transpose, mirror_rows, mirror_columns = jax.random.bernoulli(orientation_key, shape=(3,))
    image = jnp.where(transpose, jnp.swapaxes(image, 1, 2), image)
    image = jnp.where(mirror_rows, image[:, ::-1], image)
    return jnp.where(mirror_columns, image[:, :, ::-1], image)


def _to_device(
    batches: Iterator[Batch],
    seed: int,
    augment: bool,
    crop: int,
    dtype: jax.typing.DTypeLike,
    sharding: jax.sharding.NamedSharding | None,
    methods: _Augmentations,
) -> Iterator[DeviceBatch]:
    """One batch ahead of the consumer, so that transfer and preparation overlap its computation.

    Each host batch is freshly allocated and never written to again: on the CPU a device array may
    be the very memory of the NumPy array. The floats may take that of an earlier batch: `reuse`.
    """
    images = reuse.Images()

    def put(batch: Batch) -> DeviceBatch:
        place = partial(jax.make_array_from_process_local_data, sharding)
        on_device = jax.device_put(batch) if sharding is None else jax.tree.map(place, batch)
        memory = images.memory(on_device["image"], crop, jnp.dtype(dtype), sharding)
        image = _prepare_seeded(on_device, seed, augment, crop, jnp.dtype(dtype), sharding, memory)
        ready = {"image": image, **{name: on_device[name] for name in ON_DEVICE}}
        if methods:
            augmented, progress = methods
            ready = augmented(ready, on_device["epoch"], np.float32(next(progress)))
        return ready

    ahead: deque[DeviceBatch] = deque()
    for batch in batches:
        ahead.append(put(batch))
        if len(ahead) > 1:
            images.handed_out(ahead[0]["image"])
            yield ahead.popleft()
    yield from ahead


@partial(jax.jit, static_argnums=(1, 2, 3, 4, 5), donate_argnums=6, keep_unused=True)
def _prepare_seeded(
    batch: Mapping[str, jax.Array],
    seed: int,
    augment: bool,
    crop: int,
    dtype: jax.typing.DTypeLike,
    sharding: jax.sharding.NamedSharding | None,
    memory: jax.Array | None = None,  # to be written over
) -> jax.Array:
    # The key is made in here: as an argument it would be an implicit transfer between devices.
    # The images are the only output: with another beside them XLA's CPU backend does not fuse the
    # transposition into the arithmetic, and writes the floats twice.
    images = prepare(batch, jax.random.key(seed), augment, crop, dtype)
    return images if sharding is None else jax.lax.with_sharding_constraint(images, sharding)


def _augmented(
    augmentations: Sequence[Augment],
    vocabulary: Vocabulary,
    seed: int,
    sharding: jax.sharding.NamedSharding | None,
    batch: DeviceBatch,
    epoch: jax.Array,
    progress: jax.Array,
) -> DeviceBatch:
    info = Info(vocabulary, True, progress)
    keys = _row_keys(jax.random.key(seed), epoch, batch["site_index"])
    for number, augment in enumerate(augmentations):
        # 0 and 1 would be the keys that `_augment` splits off.
        batch = augment(jax.vmap(jax.random.fold_in, (0, None))(keys, 2 + number), batch, info)
    return batch if sharding is None else jax.lax.with_sharding_constraint(batch, sharding)


def _hosts(host: int | None, hosts: int | None) -> tuple[int, int]:
    host = jax.process_index() if host is None else host
    hosts = jax.process_count() if hosts is None else hosts
    if not 0 <= host < hosts:
        raise ValueError(f"host {host} of {hosts}: expected 0 to {hosts - 1}")
    return host, hosts


def _check(
    records: Records,
    rows: np.ndarray,
    batch_size: int,
    crop: int,
    sharding: jax.sharding.NamedSharding | None,
    hosts: int,
) -> None:
    if not len(rows):
        raise ValueError("no sites to read: expected at least one row")
    if min(rows) < 0 or max(rows) >= len(records):
        raise ValueError(
            f"rows {min(rows)} to {max(rows)}: expected record indices 0 to {len(records) - 1}"
        )
    devices = sharding.num_devices if sharding is not None else 1
    for name, divisor in (("hosts", hosts), ("devices", devices)):
        if batch_size < 1 or batch_size % divisor:
            raise ValueError(
                f"batch_size {batch_size}: expected a positive multiple of the {divisor} {name}"
            )
    if not 0 <= crop <= min(records.image_shape[1:]):
        raise ValueError(
            f"crop {crop}: expected 0 (none) to {min(records.image_shape[1:])} pixels, the image"
        )

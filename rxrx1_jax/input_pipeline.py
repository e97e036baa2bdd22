"""Split + records -> device batches.

Two halves. The host reads, inflates and batches uint8 planes in threads (Grain). The device
crops, orients, normalises and transposes them in one jitted function; it is the faster of the two
at that, and bytes are four times less to ship than floats.

The order and the augmentation are functions of (seed, epoch, record): not of time, threads or
hosts. Step k is positions [k * batch_size, (k + 1) * batch_size) of an endless order in which
every epoch is a new permutation, so a batch may straddle two epochs and the state of the pipeline
is the number of the step. Host h of n takes every n-th position, starting at the h-th.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import grain
import jax
import jax.numpy as jnp
import numpy as np

from rxrx1_jax.records import DatasetError, Records
from rxrx1_jax.splits import Split

# Whose pixels give the mean and std. Controls: positive and negative wells pooled.
#   plate_control: the controls of the site's plate (the paper's)
#   experiment_control: the controls of the site's experiment
#   global_control: the controls of all experiments with a training site
#   site: the site itself
#   none: mean 0, std 255
NORMALISATIONS = ("plate_control", "experiment_control", "global_control", "site", "none")
CONTROL_TYPES = ("positive_control", "negative_control")

# Counts. Rounding to 8 bits alone gives a std of 1/sqrt(12); less is a constant channel.
STD_FLOOR = np.float32(12**-0.5)

Batch = dict[str, np.ndarray]
DeviceBatch = dict[str, jax.Array]
ON_DEVICE = ("label", "experiment", "plate", "cell_type", "site_index", "mask")  # passed through


def train_batches(
    records: Records,
    split: Split,
    *,
    batch_size: int,
    seed: int,
    normalisation: str,
    start_step: int = 0,
    augment: bool = True,
    crop: int = 0,
    dtype: jax.typing.DTypeLike = jnp.float32,
    sharding: jax.sharding.NamedSharding | None = None,
    threads: int = 8,
    prefetch: int = 4,
    host: int | None = None,
    hosts: int | None = None,
) -> Iterator[DeviceBatch]:
    """Endless shuffled batches of `split.train`, from `start_step` on.

    Yields dicts of arrays on the device(s), N = batch_size (over all hosts):
      image: `dtype` [N, H, W, 6], normalised; H = W = crop if given.
      label: int32 [N], position in split.classes.
      experiment, cell_type: int32 [N], position among the sorted names in the dataset.
      plate, site_index: int32 [N]; site_index is the record's index.
      mask: bool [N], here all true.

    Args:
      records, split: the data.
      batch_size: sites a batch, over all hosts.
      seed: of order and augmentation.
      normalisation: one of NORMALISATIONS.
      start_step: number of the first batch; a resumed run passes the step it stands at.
      augment: one of the 8 orientations of the square at random, and the crop at random.
      crop: side of the crop, pixels; 0 takes the whole image.
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
    height, width = records.image_shape[1:]
    if augment and not crop and height != width:
        raise ValueError(f"augment of {height}x{width} images: orientations need a square; crop")
    load = _loader(records, split.train, split, normalisation)
    count = len(split.train)
    order = grain.MapDataset.range(count).shuffle(_shuffle_seed(seed)).repeat()
    sites = order.map_with_index(lambda position, i: load(i, position // count))
    mine = sites[start_step * batch_size + host :: hosts]
    host_batches = _read(mine, batch_size // hosts, threads, prefetch)
    return _to_device(host_batches, seed, augment, crop, dtype, sharding)


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
    load = _loader(records, rows, split, normalisation)
    padded = -(-len(rows) // batch_size) * batch_size
    sites = grain.MapDataset.range(padded).map(lambda i: load(i, 0))
    host_batches = _read(sites[host::hosts], batch_size // hosts, threads, prefetch)
    return _to_device(host_batches, 0, False, crop, dtype, sharding)


def pixel_statistics(
    records: Records, rows: np.ndarray, kind: str
) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean and std, float32 [n, 6] each in counts, that normalise the records `rows` [n].

    `global_control` pools the controls of the experiments that contain `rows`: pass training rows.
    None for "site", whose statistics are the image's own. A std is at least STD_FLOOR. Sums are
    exact integers: mean = S1/n, std = sqrt(n*S2 - S1^2) / n.

    Raises ValueError for an unknown kind, DatasetError where an experiment has no controls.
    """
    if kind not in NORMALISATIONS:
        raise ValueError(f"normalisation {kind!r}: expected one of {', '.join(NORMALISATIONS)}")
    shape = (len(rows), records.image_shape[0])
    if kind == "site":
        return None
    if kind == "none":
        return np.zeros(shape, np.float32), np.full(shape, 255, np.float32)
    if kind == "plate_control":
        mean, std = (records.sites[field][rows] for field in ("control_mean", "control_std"))
        return mean, np.maximum(std, STD_FLOOR)
    experiments, codes = np.unique(records.sites["experiment"][rows], return_inverse=True)
    names = experiments.tolist()
    groups = [[name] for name in names] if kind == "experiment_control" else [names] * len(names)
    statistics = np.array([_pooled(records, group) for group in groups], np.float32)  # [e, 2, 6]
    return statistics[codes, 0], np.maximum(statistics[codes, 1], STD_FLOOR)


def prepare(
    batch: Mapping[str, jax.Array],
    key: jax.Array,
    augment: bool,
    crop: int,
    dtype: jax.typing.DTypeLike,
) -> DeviceBatch:
    """The device half; to be jitted. Host batch -> device batch (see `train_batches`).

    Args:
      batch: image uint8 [N, 6, H, W], the fields of ON_DEVICE and epoch, int32 [N]; mean and std
        float32 [N, 6], absent if every image is to be normalised by its own.
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
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["epoch"])
        keys = jax.vmap(jax.random.fold_in)(keys, batch["site_index"])
        images = jax.vmap(partial(_augment, crop=crop))(images, keys)
    elif crop:
        top, left = ((side - crop) // 2 for side in images.shape[2:])
        images = images[:, :, top : top + crop, left : left + crop]
    # Transposing last costs XLA's CPU backend half of what transposing the bytes first does.
    images = (images.astype(jnp.float32) - mean[:, :, None, None]) / std[:, :, None, None]
    images = jnp.transpose(images.astype(dtype), (0, 2, 3, 1))
    return {"image": images, **{name: batch[name] for name in ON_DEVICE}}


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


def _loader(
    records: Records, rows: np.ndarray, split: Split, normalisation: str
) -> Callable[[int, int], Batch]:
    """load(i, epoch) -> host half of one site: rows[i], or blank padding beyond the last.

    A dict of image uint8 [6, H, W], mean and std float32 [6] (not for "site"), and scalars: label,
    experiment, plate, cell_type, site_index, epoch int32, mask bool.
    """
    sites = records.sites
    # global_control is one mean and std, that of the training sites; rows may be test sites.
    population = split.train if normalisation == "global_control" else rows
    statistics = pixel_statistics(records, population, normalisation)

    sirna_id = sites["sirna_id"][rows]
    label = np.minimum(np.searchsorted(split.classes, sirna_id), len(split.classes) - 1)
    label[split.classes[label] != sirna_id] = -1
    experiment = np.unique(sites["experiment"], return_inverse=True)[1][rows]
    cell_type = np.unique(sites["cell_type"], return_inverse=True)[1][rows]
    columns = {
        "label": label, "experiment": experiment, "cell_type": cell_type,
        "plate": sites["plate"][rows], "site_index": rows,
    }  # fmt: skip
    columns = {name: column.astype(np.int32) for name, column in columns.items()}
    if statistics is not None:
        mean, std = statistics
        if normalisation == "global_control":
            shape = (len(rows), records.image_shape[0])
            mean, std = (np.broadcast_to(part[0], shape) for part in statistics)
        columns |= {"mean": mean, "std": std}

    def load(i: int, epoch: int) -> Batch:
        real = i < len(rows)
        site = {name: column[i if real else 0] for name, column in columns.items()}
        site |= {"mask": np.bool_(real), "epoch": np.int32(epoch)}
        if real:
            return {**site, "image": records[rows[i]]}
        padding = {"image": np.zeros(records.image_shape, np.uint8), "site_index": np.int32(-1)}
        return {**site, **padding}

    return load


def _read(sites: grain.MapDataset, size: int, threads: int, prefetch: int) -> Iterator[Batch]:
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch * size)
    return iter(sites.to_iter_dataset(options).batch(size, drop_remainder=True))


def _to_device(
    batches: Iterator[Batch],
    seed: int,
    augment: bool,
    crop: int,
    dtype: jax.typing.DTypeLike,
    sharding: jax.sharding.NamedSharding | None,
) -> Iterator[DeviceBatch]:
    """One batch ahead of the consumer, so that transfer and preparation overlap its computation.

    Each host batch is freshly allocated and never written to again: on the CPU a device array may
    be the very memory of the NumPy array.
    """

    def put(batch: Batch) -> DeviceBatch:
        if sharding is None:
            on_device = jax.device_put(batch)
        else:
            on_device = {
                name: jax.make_array_from_process_local_data(sharding, array)
                for name, array in batch.items()
            }
        return _prepare_seeded(on_device, seed, augment, crop, jnp.dtype(dtype), sharding)

    ahead: DeviceBatch | None = None
    for batch in batches:
        current, ahead = ahead, put(batch)
        if current is not None:
            yield current
    if ahead is not None:
        yield ahead


@partial(jax.jit, static_argnums=(1, 2, 3, 4, 5))
def _prepare_seeded(
    batch: Mapping[str, jax.Array],
    seed: int,
    augment: bool,
    crop: int,
    dtype: jax.typing.DTypeLike,
    sharding: jax.sharding.NamedSharding | None,
) -> DeviceBatch:
    # The key is made in here: as an argument it would be an implicit transfer between devices.
    batch = prepare(batch, jax.random.key(seed), augment, crop, dtype)
    return batch if sharding is None else jax.lax.with_sharding_constraint(batch, sharding)


def _pooled(records: Records, experiments: list[str]) -> tuple[list[float], list[float]]:
    """Mean and std [6] of all control pixels of the experiments, rounded once."""
    tree = records.metadata.get("control_pixels", {})
    parts = []
    for name in experiments:
        plates = tree.get(name, {}).values()
        found = [plate[kind] for plate in plates for kind in CONTROL_TYPES if kind in plate]
        if not found:
            raise DatasetError(
                f"{records.path}/metadata.json: no control pixels of experiment {name}; expected"
                " count, sum and sum_of_squares a plate: choose normalisation plate_control, or"
                " build the dataset again"
            )
        parts += found
    n = sum(part["count"] for part in parts)
    first = [sum(values) for values in zip(*(part["sum"] for part in parts), strict=True)]
    second = [sum(values) for values in zip(*(p["sum_of_squares"] for p in parts), strict=True)]
    std = [((n * s2 - s1 * s1) / (n * n)) ** 0.5 for s1, s2 in zip(first, second, strict=True)]
    return [s1 / n for s1 in first], std


def _shuffle_seed(seed: int) -> int:
    """Grain seeds epoch e with seed + e: without a hash, seed 1 repeats seed 0 an epoch later."""
    return int.from_bytes(hashlib.blake2b(str(seed).encode(), digest_size=4).digest(), "big")


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

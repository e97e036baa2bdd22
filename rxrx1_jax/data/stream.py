"""How sites become the input of a network.

Two halves. The host decides for each step which rows come, how often they came before and which
count, and reads their planes (`reading`): a `Draw`. The device builds the batch from the Draw and a
`Store`, which holds labels and statistics per row: gather, crop, orientation, normalisation,
transpose, augmentation. That half is traced, so it runs in the same program as the step, or alone.

The order and the augmentation are functions of (seed, epoch, site): not of time, threads or hosts.
Host h of n takes the h-th part of each batch, so the rows of a batch do not depend on n.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rxrx1_jax.data import normalisation, reading
from rxrx1_jax.data.augmentations import Augment
from rxrx1_jax.data.images import Images, Vocabulary
from rxrx1_jax.data.info import Info
from rxrx1_jax.data.samplers import Order
from rxrx1_jax.data.splits import Split

Batch = dict[str, jax.Array]
Array = Any  # jax.Array, or in its place its shape, or an axis of it


class Store(NamedTuple):
    """What a run or an evaluation keeps on every device. Row m of each array is a blank site.

    columns: label, experiment, cell_type, plate, site_index int32 [m + 1]; mean and std float32
      [m + 1, C], absent where each image is normalised by its own pixels.
    planes: uint8 [m + 1, C, H, W] where the data are kept on the device, else None.
    """

    columns: dict[str, Array]
    planes: Array  # or None


class Draw(NamedTuple):
    """k steps as the host decides them: row and epoch int32, mask bool, [k, N] each."""

    row: Array  # of the store
    epoch: Array  # how often the row came before
    mask: Array  # false: the row counts nothing
    planes: Array  # uint8 [k, N, C, H, W], or None where they are in the store
    count: Array  # int32 []: steps to run, 1 to k


@dataclass(frozen=True)
class Host:
    """How this process reads, and where its arrays go.

    mesh: of all devices, the rows of a batch lie along its first axis; None: the default device.
    number, count: of this host, and how many there are; None: of the JAX processes.
    """

    threads: int = 8
    prefetch: int = 4  # draws
    mesh: Mesh | None = None
    number: int | None = None
    count: int | None = None

    def place(self) -> tuple[int, int]:
        number = jax.process_index() if self.number is None else self.number
        count = jax.process_count() if self.count is None else self.count
        if not 0 <= number < count:
            raise ValueError(f"host {number} of {count}: expected 0 to {count - 1}")
        return number, count

    def put(self, tree: Any, by_row: bool) -> Any:
        """The arrays on the devices: axis 1 over all of them, or a copy on each."""
        if self.mesh is None:
            return jax.device_put(tree)
        spec = PartitionSpec(None, *self.mesh.axis_names) if by_row else PartitionSpec()
        sharding = NamedSharding(self.mesh, spec)
        return jax.tree.map(partial(jax.make_array_from_process_local_data, sharding), tree)


@dataclass(frozen=True)
class Augmentation:
    """What training does to an image.

    orient: one of the 8 orientations of the square at random, and the crop at random.
    crop: side of the crop, pixels; in evaluation and without `orient` the centre. 0: whole images.
    further: applied in turn to the normalised and oriented images.
    """

    seed: int = 0
    orient: bool = True
    crop: int = 0
    further: tuple[Augment, ...] = ()


@dataclass(frozen=True)
class Stream:
    """How sites become input; made once per run, checks itself. Raises ValueError."""

    images: Images
    split: Split
    vocabulary: Vocabulary
    normalise: normalisation.Normalise
    augment: Augmentation = Augmentation()
    dtype: jax.typing.DTypeLike = jnp.float32
    host: Host = Host()

    def __post_init__(self) -> None:
        height, width = self.images.image_shape[1:]
        crop = self.augment.crop
        if not 0 <= crop <= min(height, width):
            raise ValueError(
                f"crop {crop}: expected 0 (none) to {min(height, width)} pixels, the image"
            )
        if self.augment.orient and not crop and height != width:
            raise ValueError(
                f"augment of {height}x{width} images: orientations need a square; crop"
            )

    @cached_property
    def _blind(self) -> normalisation.Blind:
        return normalisation.Blind(self.images)

    def store(self, rows: np.ndarray, sirna_id: np.ndarray | None = None) -> Store:
        """What the device needs to know of the sites `rows` [m], on the devices.

        A site of no class of the vocabulary has label -1. sirna_id [m]: in place of their own.
        """
        rows = self._checked(rows)
        sites, codes = self.images.sites[rows], self.vocabulary.codes
        columns = {
            "label": codes("sirna_id", sites["sirna_id"] if sirna_id is None else sirna_id),
            "experiment": codes("experiment", sites["experiment"]),
            "cell_type": codes("cell_type", sites["cell_type"]),
            "plate": sites["plate"].astype(np.int32),
            "site_index": rows.astype(np.int32),
        }
        training = self.split.train
        found = normalisation.statistics(self.normalise, self._blind, rows, training)
        if found is not None:
            columns |= {"mean": found[0], "std": found[1]}
        # The blank site is a copy of the first one, with site_index -1.
        columns = {name: np.concatenate([column, column[:1]]) for name, column in columns.items()}
        columns["site_index"][-1] = -1
        return Store(self.host.put(columns, by_row=False), None)

    def draws(self, order: Order, rows: np.ndarray, start: int, stop: int) -> Iterator[Draw]:
        """The steps `start` to `stop` - 1 of the order, one per draw, on the devices.

        Args:
          rows: those of the store, ascending; the order may ask for no others.

        Raises:
          ValueError: from the call itself, a batch that hosts or devices cannot share; from the
            iterator, a row that is not in the store.
          DatasetError: from the iterator, a damaged image.
        """
        rows = self._checked(rows)
        number, count = self.host.place()
        if not 0 <= start <= stop:
            raise ValueError(f"steps {start} to {stop}: expected 0 <= start <= stop")
        size = len(order(start)[0]) if start < stop else 0
        devices = 1 if self.host.mesh is None else self.host.mesh.size
        for name, divisor in (("hosts", count), ("devices", devices)):
            if size % divisor:
                raise ValueError(f"a batch of {size} rows: expected a multiple of {divisor} {name}")

        def choices() -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
            for step in range(start, stop):
                # In a row, as the rows of the global batch are: pairs of rows stay together.
                row, epoch, mask = (np.split(part, count)[number][None] for part in order(step))
                place = np.searchsorted(rows, row)
                wrong = (row >= 0) & (rows[np.minimum(place, len(rows) - 1)] != row)
                if wrong.any():
                    raise ValueError(f"step {step} draws row {row[wrong][0]}, which is not stored")
                place = np.where(row < 0, len(rows), place).astype(np.int32)
                yield row, {"row": place, "epoch": epoch, "mask": mask}

        host = self.host
        read = reading.planes(self.images, choices(), host.threads, host.prefetch)
        return self._ahead(read)

    def _ahead(self, read: Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]) -> Iterator[Draw]:
        """One draw ahead of the consumer, so that its transfer overlaps a computation.

        The planes are fresh memory and never written to again: on the CPU a device array may be the
        very memory of the NumPy array.
        """
        one = self.host.put(np.int32(1), by_row=False)
        ahead: deque[Draw] = deque()
        for planes, chosen in read:
            ahead.append(Draw(**self.host.put({**chosen, "planes": planes}, True), count=one))
            if len(ahead) > 1:
                yield ahead.popleft()
        yield from ahead

    def batch(
        self, store: Store, draw: Draw, i: jax.Array | int, train: bool,
        progress: jax.Array | float = 1.0,
    ) -> Batch:  # fmt: skip
        """The batch of step i of the draw; to be traced. N rows:

          image: [N, H, W, C] in `dtype`, normalised; the arithmetic is float32.
          label: int32 [N], position among the classes of the vocabulary; -1 of none.
          experiment, cell_type: int32 [N], positions in the vocabulary; -1 of a name not in it.
          plate, site_index: int32 [N]; site_index is the row in the table of sites, -1 of none.
          mask: bool [N].
          and what the augmentations add: other_label int32 [N], share float32 [N].

        train: augments. progress: part of the training that is done, which augmentations may use.
        """
        row, epoch = draw.row[i], draw.epoch[i]
        batch = {name: column[row] for name, column in store.columns.items()}
        planes = draw.planes[i] if draw.planes is not None else store.planes[row]
        keys = _row_keys(jax.random.key(self.augment.seed), epoch, batch["site_index"])
        if "mean" in batch:
            mean, std = batch.pop("mean"), batch.pop("std")
        else:
            pixels = planes.astype(jnp.float32)
            std = jnp.maximum(pixels.std((2, 3)), normalisation.STD_FLOOR)
            mean = pixels.mean((2, 3))
        crop = self.augment.crop
        if train and self.augment.orient:
            planes = jax.vmap(partial(_window, self.augment))(planes, keys)
        elif crop:
            top, left = ((side - crop) // 2 for side in planes.shape[2:])
            planes = planes[:, :, top : top + crop, left : left + crop]
        image = (planes.astype(jnp.float32) - mean[:, :, None, None]) / std[:, :, None, None]
        batch["image"] = jnp.transpose(image.astype(self.dtype), (0, 2, 3, 1))
        batch["mask"] = draw.mask[i]
        for number, further in enumerate(self.augment.further if train else ()):
            # 0 and 1 would be the keys that `_window` splits off.
            own = jax.vmap(jax.random.fold_in, (0, None))(keys, 2 + number)
            batch = dict(further(own, batch, Info(self.vocabulary, train, progress)))
        return batch

    def _checked(self, rows: np.ndarray) -> np.ndarray:
        rows = np.asarray(rows)
        if not len(rows):
            raise ValueError("no sites to read: expected at least one row")
        if rows[0] < 0 or rows[-1] >= len(self.images) or (np.diff(rows) <= 0).any():
            raise ValueError(
                f"rows {min(rows)} to {max(rows)}: expected ascending rows of 0 to"
                f" {len(self.images) - 1}, each once"
            )
        return rows


def one_pass(rows: np.ndarray, batch_size: int, host: Host) -> tuple[Order, int]:
    """Each of `rows` once, in order, padded at the end; and the number of steps.

    Every host has as many rows as any other, but for one.
    """
    _, hosts = host.place()
    if batch_size < 1 or batch_size % hosts:
        raise ValueError(f"batch_size {batch_size}: expected a positive multiple of {hosts} hosts")
    steps = -(-len(rows) // batch_size)
    padded = np.full(steps * batch_size, -1, np.int64)
    padded[: len(rows)] = rows

    def batch(step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        row = padded[step * batch_size :][:batch_size]
        row = row.reshape(-1, hosts).T.reshape(-1)  # so that the padding is shared
        return row, np.zeros(batch_size, np.int32), row >= 0

    return Order(steps, batch), steps


def _row_keys(key: jax.Array, epoch: jax.Array, site_index: jax.Array) -> jax.Array:
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, epoch)
    return jax.vmap(jax.random.fold_in)(keys, site_index)


def _window(augment: Augmentation, image: jax.Array, key: jax.Array) -> jax.Array:
    """uint8 [C, H, W] -> [C, crop, crop], cut and oriented at random.

    Transposing or not, then mirroring either axis or not, are the 8 symmetries of the square.
    """
    crop_key, orientation_key = jax.random.split(key)
    if augment.crop:
        crop = augment.crop
        space = jnp.array(image.shape[1:]) - (crop - 1)
        top, left = jax.random.randint(crop_key, (2,), 0, space)
        image = jax.lax.dynamic_slice(image, (0, top, left), (image.shape[0], crop, crop))
    transpose, mirror_rows, mirror_columns = jax.random.bernoulli(orientation_key, shape=(3,))
    image = jnp.where(transpose, jnp.swapaxes(image, 1, 2), image)
    image = jnp.where(mirror_rows, image[:, ::-1], image)
    return jnp.where(mirror_columns, image[:, :, ::-1], image)

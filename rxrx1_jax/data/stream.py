"""How sites become the input of a network.

Two halves. The host decides for each step which rows come, how often they came before and which
count, and reads their planes (`reading`): a `Draw`. The device builds the batch from the Draw and a
`Store`, which holds labels and statistics per row: gather, crop, orientation, normalisation,
transpose, augmentation. That half is traced, so it runs in the same program as the step, or alone.

The order and the augmentation are functions of (seed, epoch, site): not of time, threads or hosts.
Host h of n takes the h-th part of each batch, so the rows of a batch do not depend on n.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rxrx1_jax.data import normalisation, reading
from rxrx1_jax.data.augmentations import Augment
from rxrx1_jax.data.cache import Kept, fill, kept
from rxrx1_jax.data.images import Images, Vocabulary
from rxrx1_jax.data.info import Info
from rxrx1_jax.data.orders import Order
from rxrx1_jax.data.reading import Host
from rxrx1_jax.data.splits import Split

Batch = dict[str, jax.Array]
Array = Any  # jax.Array, or in its place its shape, or an axis of it


class Store(NamedTuple):
    """What a run or an evaluation keeps on every device. Row m of each array is a blank site.

    columns: label, experiment, cell_type, plate, site_index int32 [m + 1]; mean and std float32
      [m + 1, C], absent where each image is normalised by its own pixels.
    planes: uint8 [n, C, H, W] where images are kept on the device, else None. With them
      columns["place"], int32 [m + 1], is the row of planes.
    numbers: scalars that programs take as arguments: seed, uint32, of the augmentation; and what a
      training adds, so that another value needs no other program.
    """

    columns: dict[str, Array]
    planes: Array  # or None
    numbers: dict[str, Array] = {}


class Draw(NamedTuple):
    """Up to k steps as the host decides them."""

    # int32 [k, N, 3]: row of the store; epoch, how often it came before; mask, 0: it counts nothing
    chosen: Array
    planes: Array  # uint8 [k, N, C, H, W], or None where they are in the store
    count: Array  # int32 []: steps to run, 1 to k; what follows them is blank


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
    """How sites become input; made once per run, checks itself. Raises ValueError.

    cache: where images are kept, as `cache.choose` gives it.
    kept: rows that the device keeps together; None: those of a store, until the next one.
    """

    images: Images
    split: Split
    vocabulary: Vocabulary
    normalise: normalisation.Normalise
    augment: Augmentation = Augmentation()
    dtype: jax.typing.DTypeLike = jnp.float32
    host: Host = Host()
    cache: str = "none"
    kept: np.ndarray | None = None

    def __post_init__(self) -> None:
        height, width = self.images.image_shape[1:]
        crop, seed = self.augment.crop, self.augment.seed
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed {seed}: expected 0 to 2**32 - 1")
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

    @cached_property
    def _reader(self) -> Images:
        return Kept(self.images) if self.cache == "host" else self.images

    @cached_property
    def _on_device(self) -> dict[str, Any]:
        """rows and planes of the images that the device keeps; those of another run only where
        they are the same, so that programs fit."""
        held = kept(self.images, "device")
        if held and not np.array_equal(held["rows"], [] if self.kept is None else self.kept):
            held.clear()
        return held

    def _planes(self, rows: np.ndarray) -> tuple[np.ndarray, jax.Array]:
        """The images that the device keeps, `rows` among them: their rows, and `cache.fill`."""
        held = self._on_device
        if not held or not np.isin(rows, held["rows"]).all():
            held.clear()  # before the next ones take memory
            wanted = rows if self.kept is None else np.union1d(rows, self.kept)
            held.update(rows=wanted, planes=fill(self.images, wanted, self.host))
        return held["rows"], held["planes"]

    def store(self, rows: np.ndarray, sirna_id: np.ndarray | None = None) -> Store:
        """What the device needs to know of the sites `rows` [m], on the devices.

        A site of no class of the vocabulary has label -1. sirna_id [m]: in place of their own.
        """
        rows = self._checked(rows)
        columns, planes = self._columns(rows, sirna_id), None
        if self.cache == "device":
            held, planes = self._planes(rows)
            columns["place"] = np.append(np.searchsorted(held, rows), len(held)).astype(np.int32)
        seed = np.uint32(self.augment.seed)
        return Store(self.host.put(columns), planes, self.host.put({"seed": seed}))

    def _columns(self, rows: np.ndarray, sirna_id: np.ndarray | None) -> dict[str, np.ndarray]:
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
        return columns

    def shapes(self, rows: int, batch_size: int, k: int = 1) -> tuple[Store, Draw]:
        """What `store` of so many rows and `draws` give, as shapes: to trace and to plan with."""
        shape, image = jax.ShapeDtypeStruct, self.images.image_shape
        one = self._columns(self.split.train[:1], None)
        columns = {name: shape((rows + 1, *x.shape[1:]), x.dtype) for name, x in one.items()}
        draw = Draw(shape((k, batch_size, 3), jnp.int32), None, shape((), jnp.int32))
        numbers = {"seed": shape((), jnp.uint32)}
        if self.cache != "device":
            sent = shape((k, batch_size, *image), jnp.uint8)
            return Store(columns, None, numbers), draw._replace(planes=sent)
        kept = max(rows, 0 if self.kept is None else len(self.kept)) + 1
        columns["place"] = columns["label"]
        return Store(columns, shape((kept, *image), jnp.uint8), numbers), draw

    def draws(
        self, order: Order, rows: np.ndarray, start: int, stop: int, k: int = 1,
        cuts: Iterable[int] = (),
    ) -> Iterator[Draw]:  # fmt: skip
        """The steps `start` to `stop` - 1 of the order, up to k per draw, on the devices.

        Args:
          rows: those of the store, ascending; the order may ask for no others.
          cuts: steps that a draw may begin with, but not run past.

        Raises:
          ValueError: from the call itself, a batch that hosts or devices cannot share; from the
            iterator, a row that is not in the store.
          DatasetError: from the iterator, a damaged image.
        """
        rows = self._checked(rows)
        number, count = self.host.place()
        if not 0 <= start <= stop or k < 1:
            raise ValueError(f"steps {start} to {stop}, {k} a draw: expected 0 <= start <= stop")
        size = len(order(start)[0]) if start < stop else 0
        devices = 1 if self.host.mesh is None else self.host.mesh.size
        for name, divisor in (("hosts", count), ("devices", devices)):
            if size % divisor:
                raise ValueError(f"a batch of {size} rows: expected a multiple of {divisor} {name}")
        calls = reading.calls(start, stop, k, cuts)
        return self._ahead(reading.choices(order, rows, calls, (k, size // count, number)), k)

    def _ahead(self, choices: Iterator[Any], k: int) -> Iterator[Draw]:
        """One draw ahead of the consumer, so that its transfer overlaps a computation.

        The planes are fresh memory and never written to again: on the CPU a device array may be the
        very memory of the NumPy array.
        """
        host, counts = self.host, {c: self.host.put(np.int32(c)) for c in range(1, k + 1)}
        ahead: deque[Draw] = deque()
        read = ((None, *rest) for _, *rest in choices)
        if self.cache != "device":
            given = ((images, rest) for images, *rest in choices)
            found = reading.planes(self._reader, given, host.threads, host.prefetch)
            read = ((planes, *rest) for planes, rest in found)
        for planes, chosen, count in read:
            chosen, planes = host.put((chosen, planes), by_row=True)
            ahead.append(Draw(chosen, planes, counts[count]))
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
        row, epoch, mask = jnp.moveaxis(draw.chosen[i], 1, 0)
        batch = {name: column[row] for name, column in store.columns.items()}
        planes = store.planes[batch.pop("place")] if draw.planes is None else draw.planes[i]
        if train:
            keys = _row_keys(jax.random.key(store.numbers["seed"]), epoch, batch["site_index"])
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
        batch["mask"] = mask != 0
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

"""The host half of the input pipeline: records -> batches of uint8 planes and what goes with them.

Threads read and inflate sites and copy each to its place in the batch while it is in the
processor's cache. The batch starts where a CPU device takes it over as it is. A sampler
(`samplers`) gives the order.
"""

import itertools
import math
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from rxrx1_jax.data import samplers
from rxrx1_jax.data.normalisation import pixel_statistics
from rxrx1_jax.data.records import Records
from rxrx1_jax.data.splits import Split, shuffle_within

SHUFFLED = samplers.shuffled()

ALIGNMENT = 64  # bytes; the CPU backend takes over a NumPy array that starts at a multiple of it

Choice = tuple[np.ndarray, np.ndarray]  # positions in the rows and epochs, [sites of this host]
Batch = dict[str, np.ndarray]


def host_train_batches(
    records: Records,
    split: Split,
    *,
    batch_size: int,
    seed: int,
    normalisation: str,
    sampler: samplers.Sampler = SHUFFLED,
    shuffled_labels: bool = False,
    start_step: int = 0,
    end_step: int | None = None,
    threads: int = 8,
    prefetch: int = 4,
    host: int = 0,
    hosts: int = 1,
) -> Iterator[Batch]:
    """The host half of `train_batches`: batches as `prepare` takes them, in NumPy arrays.

    Arguments as there; they are checked there. Each batch is memory of its own, never written to
    again.
    """
    columns = _columns(records, split.train, split, normalisation)
    sites = records.sites[split.train]
    if shuffled_labels:
        columns["label"][:-1] = shuffle_within(columns["label"][:-1], sites, "experiment", seed)
    order = sampler(sites, batch_size, seed)
    steps = itertools.count(start_step) if end_step is None else range(start_step, end_step)

    def choices() -> Iterator[Choice]:
        for step in steps:
            # In a row, as the rows of the global batch are: pairs of rows stay together.
            positions, epochs = (np.split(part, hosts)[host] for part in order(step))
            yield positions, epochs

    return _read(records, columns, choices(), threads, prefetch)


def host_eval_batches(
    records: Records,
    rows: np.ndarray,
    split: Split,
    *,
    batch_size: int,
    normalisation: str,
    threads: int = 8,
    prefetch: int = 4,
    host: int = 0,
    hosts: int = 1,
) -> Iterator[Batch]:
    """The host half of `eval_batches`; arguments as there."""
    columns = _columns(records, rows, split, normalisation)

    def choices() -> Iterator[Choice]:
        for start in range(0, len(rows), batch_size):
            positions = np.arange(start + host, start + batch_size, hosts)
            yield positions, np.zeros_like(positions)

    return _read(records, columns, choices(), threads, prefetch)


def _columns(
    records: Records, rows: np.ndarray, split: Split, normalisation: str
) -> dict[str, np.ndarray]:
    """What a batch holds beside images, for each of `rows` [n], and blank padding as row n.

    mean and std float32 [n + 1, 6] (not for "site"); label, experiment, plate, cell_type,
    site_index int32 [n + 1]; mask bool [n + 1].
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
    columns["mask"] = np.ones(len(rows), np.bool_)
    if statistics is not None:
        mean, std = statistics
        if normalisation == "global_control":
            shape = (len(rows), records.image_shape[0])
            mean, std = (np.broadcast_to(part[0], shape) for part in statistics)
        columns |= {"mean": mean, "std": std}
    columns = {name: np.concatenate([column, column[:1]]) for name, column in columns.items()}
    columns["site_index"][-1], columns["mask"][-1] = -1, False
    return columns


def _read(
    records: Records,
    columns: Mapping[str, np.ndarray],
    choices: Iterator[Choice],
    threads: int,
    prefetch: int,
) -> Iterator[Batch]:
    """One batch a choice, in order; `prefetch` further ones are being read meanwhile."""
    pool = ThreadPoolExecutor(threads, "read")
    waiting: deque[tuple[Batch, list[Future]]] = deque()

    def start(position: np.ndarray, epoch: np.ndarray) -> tuple[Batch, list[Future]]:
        row = np.minimum(position, len(columns["mask"]) - 1)  # beyond the last: padding
        batch = {name: column[row] for name, column in columns.items()}
        images = _aligned((len(row), *records.image_shape))

        def fill(part: range) -> None:
            for k in part:
                images[k] = records[batch["site_index"][k]] if batch["mask"][k] else 0

        # A task for each thread, not for each site: at 64 px those took a seventh of this half.
        done = [pool.submit(fill, range(k, len(row), threads)) for k in range(threads)]
        return {**batch, "epoch": epoch.astype(np.int32), "image": images}, done

    def finish() -> Batch:
        batch, done = waiting.popleft()
        for future in done:
            future.result()  # raises what the reading raised
        return batch

    try:
        for choice in choices:
            waiting.append(start(*choice))
            if len(waiting) > prefetch:
                yield finish()
        while waiting:
            yield finish()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Fresh uint8 memory that a CPU device takes over without a copy."""
    size = math.prod(shape)
    memory = np.empty(size + ALIGNMENT - 1, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].reshape(shape)

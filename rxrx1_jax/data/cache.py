"""Where the images that a run reads again and again are kept: the setting data.cache.

    device   their planes lie in the memory of every device; the host sends numbers of rows alone
    host     in RAM, each from its first reading on
    none     nowhere: each is read and inflated every time

The batches are the same, bit for bit.
"""

import math
import os
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from rxrx1_jax.config import ConfigError
from rxrx1_jax.data import reading
from rxrx1_jax.data.images import Images

MARGIN = 0.1  # of a device's memory that stays free beside the step
PART = 2**26  # bytes that are sent to the devices at once


class Kept:
    """Images that stay in RAM once they were read. Any thread may read; none may write to them."""

    def __init__(self, images: Images):
        self.sites, self.image_shape, self.about = images.sites, images.image_shape, images.about
        self._images = images
        self._known: dict[int, np.ndarray] = kept(images, "host")

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, row: int) -> np.ndarray:
        if row not in self._known:  # two threads may read the same one: either will do
            self._known[row] = self._images[row]
        return self._known[row]


def kept(images: Images, where: str) -> dict[Any, Any]:
    """What is in memory of the images: of a process of many runs, by the runs before, too."""
    found: dict[str, dict] = getattr(images, "kept_images", {})
    return found.get(where, {})


def choose(asked: str, images: Images, rows: int, step: int | None = None) -> str:
    """"device", "host" or "none": what `asked` means for `rows` images. "auto" takes the first that
    fits; where devices are CPUs, their memory and that of the host are one, and host is first.

    Args:
      step: bytes of a device that training needs beside the images; None: half of its memory.

    Raises ConfigError: images that do not fit where they shall be kept.
    """
    size, copies = rows * math.prod(images.image_shape), jax.local_device_count()
    host, *device = least(*free())
    # What the runs before left is taken over.
    host += len(kept(images, "host")) * math.prod(images.image_shape)
    device = [x + getattr(kept(images, "device").get("planes"), "nbytes", 0) for x in device]
    room = {"host": host // 2, "device": host // 2 // copies, "none": size, "auto": size}
    for limit in device:
        room["device"] = int((1 - MARGIN) * limit) - step if step is not None else limit // 2
    if size > room[asked]:
        raise ConfigError(
            f"data.cache={asked}: {rows:,} images are {size / 1e9:,.1f} GB, with room for"
            f" {max(room[asked], 0) / 1e9:,.1f} GB; expected auto, or a dataset of smaller images"
        )
    in_memory = hasattr(images, "planes")  # a user's own arrays: host has nothing to add
    if asked == "host" and in_memory:
        return "none"
    if asked != "auto":
        return asked
    wanted = [*(["device"] if device else []), *([] if in_memory else ["host"])]
    return next((mode for mode in wanted if size <= room[mode]), "none")


def free() -> list[int]:
    """Bytes that are free: of this host and, unless devices are CPUs, of the fullest device.

    Of a host whose cores are shared out among several runs each counts on its share alone.
    """
    ram = _free_ram() * reading.cores() // (os.cpu_count() or 1)
    if jax.default_backend() == "cpu":
        return [ram]
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    return [ram, min(s.get("bytes_limit", 0) - s.get("bytes_in_use", 0) for s in stats)]


def least(*mine: int) -> list[int]:
    """The least of all processes, so that all choose the same."""
    if jax.process_count() == 1:
        return [*mine]
    mebibytes = (np.array(mine) // 2**20).astype(np.int32)  # bytes need more than 32 bits
    return [x * 2**20 for x in multihost_utils.process_allgather(mebibytes).min(0).tolist()]


def _free_ram(root: Path = Path("/")) -> int:
    """Bytes that this process may still take, by the machine and by the limit of its container."""

    def number(path: str, pattern: str = r"(\d+)") -> int | None:
        file = root / path
        found = re.search(pattern, file.read_text(), re.MULTILINE) if file.is_file() else None
        return int(found[1]) if found else None

    machine = (number("proc/meminfo", r"^MemAvailable: +(\d+)") or 2**30) * 1024
    group = "sys/fs/cgroup/memory"
    limit, used = number(f"{group}.max"), number(f"{group}.current")
    if limit is None or used is None:
        return machine
    files = number(f"{group}.stat", r"^inactive_file (\d+)") or 0  # given up when it is needed
    return min(machine, limit - used + files)


def fill(images: Images, rows: np.ndarray, host: reading.Host) -> jax.Array:
    """Planes of the rows, on every device: uint8 [n, C, H, W], n > len(rows), blank beyond them."""
    size = math.prod(images.image_shape)
    part = max(1, min(len(rows) + 1, PART // size))
    padded = np.full(-(-(len(rows) + 1) // part) * part, -1, np.int64)
    padded[: len(rows)] = rows
    shape, place = (len(padded), *images.image_shape), host.replicated
    zeros: Any = jax.jit(lambda: jnp.zeros(shape, jnp.uint8), out_shardings=place)
    insert = jax.jit(
        lambda planes, new, at: jax.lax.dynamic_update_slice_in_dim(planes, new, at, 0),
        donate_argnums=0, out_shardings=place,
    )  # fmt: skip
    planes = zeros()
    choices = ((padded[at : at + part], at) for at in range(0, len(padded), part))
    with tqdm(total=len(rows), desc="Images to the device", unit=" sites", disable=None) as bar:
        for new, at in reading.planes(images, choices, host.threads, 2):
            planes = insert(planes, host.put(new), host.put(np.int32(at)))
            bar.update(min(part, len(rows) - at))
    return planes

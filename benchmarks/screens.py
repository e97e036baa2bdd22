"""Synthetic screens for the benchmarks of training, drawn and built once into a folder and kept."""

import multiprocessing
import os
from pathlib import Path
from typing import Any

# Parameters of tfds_builder.rxrx1.synthetic.Screen by image size: few sites, as their content does
# not matter here.
SCREENS: dict[int, dict[str, int]] = {
    64: {"positive_controls": 2},  # 1,320 sites, 15 experiments
    224: {
        "huvec": 3, "rpe": 0, "hepg2": 0, "u2os": 0,
        "plates": 1, "treatments": 32, "positive_controls": 2,
    },  # 210 sites
}  # fmt: skip


def use_screen(config: Any, work: Path, size: int) -> None:
    """Points config.data at the screen of `size` px below `work`, built if it is not there."""
    config.data.dir, config.data.name = str(work), f"rxrx1/screen_{size}"
    if not list(work.glob(f"rxrx1/screen_{size}/*/dataset_info.json")):
        # In a process of its own: TensorFlow stays out of the one that is measured.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            pool.apply(_build, (work, size))


def _build(work: Path, size: int) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from tfds_builder.rxrx1 import Builder, Rxrx1Config

    settings = Rxrx1Config(name=f"screen_{size}", size=size, screen=SCREENS[size])
    Builder(config=settings, data_dir=work).download_and_prepare()

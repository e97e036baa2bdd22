"""The RxRx1 dataset. Importing this package makes `tfds.load("rxrx1/...")` known to TFDS."""

from . import visualizer
from .rxrx1_dataset_builder import Builder, Rxrx1Config

visualizer.register()

__all__ = ["Builder", "Rxrx1Config"]

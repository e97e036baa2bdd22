"""The RxRx1 dataset. Importing this package makes `tfds.load("rxrx1/...")` known to TFDS."""

from .rxrx1_dataset_builder import Builder, Rxrx1Config

__all__ = ["Builder", "Rxrx1Config"]

"""Ways to store a site: bytes, encode and decode cost, checked to be lossless.

    python -m benchmarks.encoding [--images DIR] [--rounds 3]

Every way gives back the same uint8 [6, H, W] in one thread. "Stock TFDS" says whether a feature
type that ships with TFDS decodes it with none of our code. zstandard and imagecodecs (JPEG XL) are
compared if they are installed.
"""

import argparse
import gzip
import io
import os
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import deflate
import numpy as np
from PIL import Image

from benchmarks.timing import compare, describe

DRAWN_SIZE, DRAWN_SITES = 512, 8  # pixels; synthetic sites, where no folder is given
LEVELS = (1, 6, 9, 12)  # of libdeflate
STOCK = "zlib, TFDS Tensor feature"
BASELINE = "six PNG files, Pillow"


def read_images(folder: Path | None) -> list[list[bytes]]:
    """The six PNG files of each site below `folder`; None: of sites that are drawn.

    A site is six files *_w1.png to *_w6.png. Raises ValueError where there is none.
    """
    if folder is None:
        return _drawn_images()
    stems = [str(path)[: -len("1.png")] for path in sorted(folder.rglob("*_w1.png"))]
    if not stems:
        raise ValueError(f"{folder}: no *_w1.png; expected six PNG files *_w1 to *_w6 per site")
    return [[Path(f"{stem}{c}.png").read_bytes() for c in range(1, 7)] for stem in stems]


def _drawn_images() -> list[list[bytes]]:
    from tfds_builder.rxrx1 import synthetic

    screen = synthetic.Screen(size=DRAWN_SIZE, field=DRAWN_SIZE)
    sites = synthetic.screen_sites(screen)
    chosen = sites[:: len(sites) // DRAWN_SITES][:DRAWN_SITES]
    planes = [synthetic.render_site(screen, site) for site in chosen]
    return [[cv2.imencode(".png", plane)[1].tobytes() for plane in six] for six in planes]


class Coding(NamedTuple):
    """encode: uint8 [6, H, W] -> stored; decode: stored -> uint8 [6, H, W]."""

    encode: Callable[[np.ndarray], Any]
    decode: Callable[[Any], np.ndarray]
    stock: bool  # a TFDS feature reads it


def codings(shape: tuple[int, int, int], png: Callable[[np.ndarray], list[bytes]]) -> dict:
    """All codings of images of a shape; `png` finds the release's own files of an image."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf
    import tensorflow_datasets as tfds

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    cv2.setNumThreads(1)
    feature = tfds.features.Tensor(shape=shape, dtype=np.uint8, encoding="zlib")
    channels, height, width = shape
    size = channels * height * width

    def planes(data: bytes) -> np.ndarray:
        return np.frombuffer(data, np.uint8).reshape(shape)

    def open_cv(data: bytes) -> np.ndarray:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)

    def tall_png(image: np.ndarray) -> bytes:
        return cv2.imencode(".png", image.reshape(-1, width))[1].tobytes()

    def hwc(image: np.ndarray) -> bytes:
        return np.ascontiguousarray(np.moveaxis(image, 0, -1)).tobytes()

    def chw(data: bytes) -> np.ndarray:
        pixels = np.frombuffer(data, np.uint8).reshape(height, width, channels)
        return np.ascontiguousarray(np.moveaxis(pixels, -1, 0))

    def webp(image: np.ndarray) -> list[bytes]:  # two RGB images: WebP knows no other depth
        files = []
        for part in (image[:3], image[3:]):
            file = io.BytesIO()
            Image.fromarray(np.moveaxis(part, 0, -1)).save(file, "webp", lossless=True)
            files.append(file.getvalue())
        return files

    def from_webp(files: list[bytes]) -> np.ndarray:
        return np.concatenate([np.moveaxis(pillow(data), -1, 0) for data in files])

    def pillow(data: bytes) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(data)))

    def tf_png(files: list[bytes]) -> np.ndarray:
        return np.stack([tf.io.decode_png(data).numpy()[..., 0] for data in files])

    def tf_zlib(data: bytes) -> np.ndarray:
        plain = tf.io.decode_compressed(data, "ZLIB")
        return tf.reshape(tf.io.decode_raw(plain, tf.uint8), shape).numpy()

    def libdeflate(data: bytes) -> np.ndarray:
        return planes(deflate.zlib_decompress(data, size))

    found = {
        BASELINE: Coding(png, lambda files: np.stack([pillow(data) for data in files]), True),
        "six PNG files, OpenCV": Coding(png, lambda f: np.stack([open_cv(d) for d in f]), True),
        "six PNG files, TensorFlow": Coding(png, tf_png, True),
        "raw bytes": Coding(np.ndarray.tobytes, lambda data: planes(data).copy(), True),
        f"{STOCK}, TensorFlow": Coding(feature.encode_example, tf_zlib, True),
        f"{STOCK}, standard library": Coding(
            feature.encode_example, lambda data: planes(zlib.decompress(data, bufsize=size)), True
        ),
        f"{STOCK}, libdeflate": Coding(feature.encode_example, libdeflate, True),
    }
    for level in LEVELS:
        found[f"zlib by libdeflate {level}, libdeflate"] = Coding(
            lambda image, n=level: deflate.zlib_compress(image.tobytes(), n), libdeflate, True
        )
    found |= {
        "gzip of [H, W, 6] (rxrx1-utils)": Coding(
            lambda image: gzip.compress(hwc(image), 6), lambda d: chw(gzip.decompress(d)), False
        ),
        "one tall PNG, OpenCV": Coding(tall_png, lambda d: open_cv(d).reshape(shape), True),
        "WebP lossless, Pillow": Coding(webp, from_webp, False),
    }
    try:
        import zstandard

        found["zstd 3"] = Coding(
            zstandard.ZstdCompressor(3).compress,
            lambda data: planes(zstandard.ZstdDecompressor().decompress(data)), False,
        )  # fmt: skip
    except ImportError:
        print("zstd: not compared, zstandard is not installed")
    try:
        import imagecodecs

        found["JPEG XL lossless, effort 3"] = Coding(
            lambda image: imagecodecs.jpegxl_encode(
                image.reshape(-1, width), lossless=True, effort=3, numthreads=1
            ),
            lambda data: imagecodecs.jpegxl_decode(data, numthreads=1).reshape(shape), False,
        )  # fmt: skip
    except ImportError:
        print("JPEG XL: not compared, imagecodecs is not installed")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder with *_w1.png to *_w6.png files")
    parser.add_argument("--rounds", type=int, default=3, help="of decoding; encoding runs once")
    options = parser.parse_args()
    files = read_images(options.images)
    images = [np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in six]) for six in files]
    side = images[0].shape[-1]
    packages = (
        "numpy", "deflate", "pillow", "opencv-python-headless", "tensorflow", "tensorflow-datasets",
    )  # fmt: skip
    print(describe(packages, data=f"{len(files)} sites of {side} px", rounds=options.rounds))
    released = {image.tobytes(): six for image, six in zip(images, files, strict=True)}
    found = codings(images[0].shape, lambda image: released[image.tobytes()])
    stored: dict[str, list] = {}

    def encode(name: str) -> None:
        stored[name] = [found[name].encode(image) for image in images]

    def decode(name: str) -> None:
        for data in stored[name]:
            found[name].decode(data)

    encoding = {name: partial(encode, name) for name in found}
    decoding = {name: partial(decode, name) for name in found}
    encoded = compare(encoding, len(images), BASELINE, rounds=1, warm_up=False)
    decoded = compare(decoding, len(images), BASELINE, options.rounds)
    print("| stored as, read with | KB/site | encode CPU ms | decode CPU ms | decode, times faster"
          " | stock TFDS | lossless |")  # fmt: skip
    print("|---|---|---|---|---|---|---|")
    for name, e, d in zip(found, encoded, decoded, strict=True):
        size = np.mean([sum(map(len, s)) if isinstance(s, list) else len(s) for s in stored[name]])
        same = all(
            np.array_equal(found[name].decode(data), image)
            for data, image in zip(stored[name], images, strict=True)
        )
        cost = "0 (as released)" if name.startswith("six PNG") else f"{e.cpu_ms:.1f}"
        stock, lossless = ("yes" if flag else "no" for flag in (found[name].stock, same))
        print(
            f"| {name} | {size / 1000:.0f} | {cost} | {d.cpu_ms:.2f} | {d.ratio:.1f} |"
            f" {stock} | {lossless} |"
        )


if __name__ == "__main__":
    main()

"""The images of a release: checked whole before a build, decoded site by site."""

import contextlib
import dataclasses
import struct
import zlib

import cv2
import numpy as np
from tqdm import tqdm

from .machine import map_in_order, usable_cpus
from .release.metadata import CHANNELS, ReleaseError, Site
from .release.release import Release, places

RGB_CHANNELS = 3  # of CHANNELS, in the WILDS layout's images, as red, green, blue
RGB_SIZE = 256  # side of the WILDS layout's images, pixels

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GRAY, _RGB = 0, 2  # PNG colour types
# Chunks that add pixels or take some away. What tells a viewer of colours, such as gAMA, changes no
# count, and OpenCV leaves it out.
_OTHER_PIXELS = {
    b"acTL": "several frames",
    b"fcTL": "several frames",
    b"fdAT": "several frames",
    b"tRNS": "transparent pixels",
}
_FAULTS_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class View:
    """How a stored image is made from the release's: an area average or a centre crop.

    Attributes:
      size: height and width of the stored image, pixels.
      source_size: height and width of the release's images: 512 (official, Kaggle), 256 (WILDS).
      crop: takes the centre `size` x `size` pixels. Else each stored pixel is the mean of a square
        block, rounded half up; `source_size` must then be a multiple of `size`.
      channels: the first so many of `CHANNELS` are kept, 3 or 6.

    Raises:
      ReleaseError: names the field.
    """

    size: int
    source_size: int
    crop: bool = False
    channels: int = len(CHANNELS)

    def __post_init__(self) -> None:
        size, source = self.size, self.source_size
        if self.channels not in (RGB_CHANNELS, len(CHANNELS)):
            expected = f"{RGB_CHANNELS} or {len(CHANNELS)}"
            raise ReleaseError(f"View.channels: found {self.channels}, expected {expected}")
        if not 1 <= size <= source:
            raise ReleaseError(f"View.size: found {size}, expected 1 to source_size ({source})")
        if not self.crop and source % size:
            raise ReleaseError(
                f"View.size: found {size}, expected a divisor of source_size ({source}) for an area"
                " average, or crop=True"
            )


def check_images(release: Release, view: View) -> None:
    """Reads every image file of the view whole, so that no broken one stops a build hours later.

    Each file must exist and be a PNG of `source_size` x `source_size` 8-bit grayscale pixels (RGB
    in the WILDS layout) whose chunks all agree with their checksums, from the signature to IEND
    with nothing after it. Pixels are not inflated: only a file written wrong, checksums included,
    is left for `read_image` to refuse.

    Raises:
      ReleaseError: names the tables' lines, sites and files at fault (the first ten, and how
        many); or the release cannot give this view.
    """
    _check_view(release, view)

    def check(site: Site) -> list[tuple[str, str, str]]:
        return [
            (site.site_id, name, fault)
            for name in release.image_names(site)[: view.channels]
            if (fault := _read(release, name, view)[1])
        ]

    count = 0
    first: list[tuple[str, str, str]] = []
    # Both what threads wait for, the disk, and what they compute, the CRC, leave the GIL free.
    results = map_in_order(check, release.sites, 4 * usable_cpus())
    bar = tqdm(total=len(release.sites), desc="Checking images", unit=" sites")
    with bar, contextlib.closing(results):
        for found in results:
            count += len(found)
            first += found[: _FAULTS_SHOWN - len(first)]
            bar.update()
    if count:
        place = places(release, {site_id for site_id, _, _ in first})
        shown = "\n  ".join(
            f"{place[site_id]}, site {site_id}: {release.storage.describe(name)} {fault}"
            for site_id, name, fault in first
        )
        raise ReleaseError(
            f"{count} image file(s) listed by the tables cannot be used:\n  {shown}"
            + ("\n  ..." if count > len(first) else "")
            + "\nGet them again, remove the rows of these sites, or select other sites."
        )


def read_image(release: Release, site: Site, view: View) -> np.ndarray:
    """Decodes one site: uint8 [view.channels, view.size, view.size], channels as in `CHANNELS`.

    The bytes that are decoded are those whose checksums are compared here, so that a file that
    changes after `check_images` is found (the decoder itself takes some wrong checksums).

    Raises:
      ReleaseError: names the site and the file.
    """
    _check_view(release, view)
    planes: list[np.ndarray] = []
    for name in release.image_names(site)[: view.channels]:
        pixels = _decode(release, site, name, view)
        if pixels.ndim == 3:
            planes += [pixels[..., channel] for channel in (2, 1, 0)]  # OpenCV decodes to BGR
        else:
            planes.append(pixels)
    image = np.empty((view.channels, view.size, view.size), np.uint8)
    for plane, pixels in zip(image, planes, strict=True):
        plane[:] = _centre(pixels, view.size) if view.crop else _area_mean(pixels, view.size)
    return image


def _check_view(release: Release, view: View) -> None:
    if release.layout == "wilds" and view != View(RGB_SIZE, RGB_SIZE, view.crop, RGB_CHANNELS):
        raise ReleaseError(
            f"the release in {release.storage.root} is of the WILDS layout, whose images hold"
            f" {RGB_CHANNELS} channels of {RGB_SIZE} px; {view.channels} channels of {view.size} px"
            f" (of images of {view.source_size} px) cannot be made from it: build config wilds, or"
            " get the official release or the Kaggle data"
        )


def _decode(release: Release, site: Site, name: str, view: View) -> np.ndarray:
    """Pixels of one file, uint8 [source_size, source_size] or, RGB as BGR, [..., 3]."""
    where = f"site {site.site_id}: {release.storage.describe(name)}"
    data, fault = _read(release, name, view)
    if fault:
        raise ReleaseError(f"{where} {fault}")
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ReleaseError(f"{where} cannot be decoded ({error})") from error
    if pixels is None:
        raise ReleaseError(
            f"{where} cannot be decoded, its data is broken; get it again, or remove the row of"
            " this site from the table"
        )
    shape = (view.source_size,) * 2 + ((RGB_CHANNELS,) if release.layout == "wilds" else ())
    if pixels.shape != shape:
        raise ReleaseError(f"{where} decodes to shape {pixels.shape}, expected {shape}")
    return pixels


def _centre(pixels: np.ndarray, size: int) -> np.ndarray:
    """The centre of [H, W] pixels; of an odd remainder, one more is cut at the end."""
    start = (len(pixels) - size) // 2
    return pixels[start : start + size, start : start + size]


def _area_mean(pixels: np.ndarray, size: int) -> np.ndarray:
    """Mean of k x k blocks, rounded half up: uint8 [k * size, k * size] -> [size, size].

    Sums are integers, so that the result is exact; cv2.INTER_AREA rounds half up for k = 2 but
    half to even for others.
    """
    k = len(pixels) // size
    if k == 1:
        return pixels
    rows = pixels.reshape(size, k, -1).sum(axis=1, dtype=np.uint32)
    sums = sum((rows[:, column::k] for column in range(1, k)), start=rows[:, ::k])
    return ((sums + k * k // 2) // (k * k)).astype(np.uint8)


def _read(release: Release, name: str, view: View) -> tuple[bytes, str]:
    """A file, and what is wrong with it short of inflating its pixels; "" if nothing is."""
    try:
        data = release.storage.read(name)
    except FileNotFoundError:
        return b"", "is missing"
    except ReleaseError as error:
        return b"", str(error).removeprefix(f"{release.storage.describe(name)} ")
    return data, _png_fault(data, view.source_size, _RGB if release.layout == "wilds" else _GRAY)


def _png_fault(data: bytes, size: int, colour: int) -> str:
    """What is wrong with a file; every chunk must agree with its checksum.

    PNG: signature, then chunks of uint32 length, type [4], data, uint32 CRC of type and data, big
    endian (https://www.w3.org/TR/png-3/#5DataRep). The first is IHDR, the last IEND.
    """
    if not data.startswith(_PNG_SIGNATURE):
        return "is not a PNG file"
    view = memoryview(data)
    position = len(_PNG_SIGNATURE)
    kinds: set[bytes] = set()
    while b"IEND" not in kinds:
        if len(data) < position + 8:
            return f"is cut off (ends at byte {len(data)}, before the IEND chunk)"
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        if len(data) < end + 4:
            return f"is cut off (within the chunk at byte {position})"
        if zlib.crc32(view[position + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            return f"is damaged (wrong checksum of the chunk at byte {position})"
        if not kinds:
            if kind != b"IHDR" or length != 13:
                return "is not a PNG file (does not begin with an IHDR chunk)"
            width, height, depth, found = struct.unpack_from(">IIBB", data, position + 8)
            if (width, height) != (size, size):
                return f"is {width}x{height} pixels, expected {size}x{size}"
            if (depth, found) != (8, colour):
                return (
                    f"has bit depth {depth} and PNG colour type {found}, expected 8 and {colour}"
                    f" ({'RGB' if colour == _RGB else 'grayscale'})"
                )
        if kind in _OTHER_PIXELS:
            return f"has {_OTHER_PIXELS[kind]} ({kind.decode()} chunk), expected one opaque image"
        kinds.add(kind)
        position = end + 4
    if len(data) > position:
        return f"goes on after its IEND chunk, which ends at byte {position}"
    return "" if b"IDAT" in kinds else "holds no pixels (no IDAT chunk)"

"""images.py against Pillow, NumPy, and real images where they are at hand."""

import dataclasses
import io
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_release import (
    COLUMNS,
    image_path,
    read_pngs,
    tiny_rows,
    tiny_wilds_rows,
    wilds_path,
    write_metadata,
    write_tiny_release,
    write_tiny_wilds,
    zip_files,
)

from tfds_builder.rxrx1 import images
from tfds_builder.rxrx1.images import View, check_images, read_image
from tfds_builder.rxrx1.release.metadata import ReleaseError
from tfds_builder.rxrx1.release.release import open_release
from tfds_builder.rxrx1.release.selection import Selection

SIZE = 16
NATIVE = View(SIZE, SIZE)
REAL = Path(__file__).parents[3] / "shared" / "realdata" / "images"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return write_tiny_release(tmp_path_factory.mktemp("release"), SIZE)


def one_site(root: Path, seed: int = 0, size: int = SIZE) -> dict[str, str]:
    """Writes a release of one site, on line 6 of its table; returns the row."""
    rows = tiny_rows()[:5]
    rng = np.random.default_rng(seed)
    for channel in range(1, 7):
        path = image_path(root, rows[4], channel)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (size, size), np.uint8)).save(path)
    write_metadata(root, rows)
    return rows[4]


def open_one(root: Path):
    return open_release(root, Selection(wells=("D04",), sites=(1,)))


def test_images_equal_pillow(tiny):
    release = open_release(tiny)
    check_images(release, NATIVE)
    rows = {row["site_id"]: row for row in tiny_rows()}
    for site in release.sites[::7]:
        row = rows[site.site_id]
        paths = [image_path(tiny, row, channel) for channel in range(1, 7)]
        assert [tiny / name for name in release.image_names(site)] == paths
        image = read_image(release, site, NATIVE)
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, read_pngs(tiny, row))


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16, 24])
def test_area_average_is_the_block_mean_rounded_half_up(tmp_path, size):
    side = 48 if size == 24 or size == 16 else 32  # k = 32, 16, 8, 4, 3, 2
    row = one_site(tmp_path, seed=size, size=side)
    release = open_one(tmp_path)
    k = side // size
    for channel in range(1, 7):  # halves occur, and so do the extremes
        pixels = np.random.default_rng(channel).integers(0, 4, (side, side), np.uint8)
        pixels = {1: pixels * 0 + 255, 2: pixels * 85}.get(channel, pixels)
        Image.fromarray(pixels).save(image_path(tmp_path, row, channel))
    blocks = read_pngs(tmp_path, row).reshape(6, size, k, size, k)
    expected = np.floor(blocks.astype(np.float64).mean(axis=(2, 4)) + 0.5)
    for channels in (6, 3):
        image = read_image(release, release.sites[0], View(size, side, channels=channels))
        assert image.dtype == np.uint8 and image.shape == (channels, size, size)
        np.testing.assert_array_equal(image, expected[:channels])


@pytest.mark.parametrize("size", [16, 8, 7, 1])
def test_centre_crop(tmp_path, size):
    row = one_site(tmp_path)
    release = open_one(tmp_path)
    cut = slice((SIZE - size) // 2, (SIZE - size) // 2 + size)
    image = read_image(release, release.sites[0], View(size, SIZE, crop=True))
    np.testing.assert_array_equal(image, read_pngs(tmp_path, row)[:, cut, cut])


def test_three_channels_need_three_files(tmp_path):
    row = one_site(tmp_path)
    expected = read_pngs(tmp_path, row)[:3]
    for channel in (4, 5, 6):
        image_path(tmp_path, row, channel).write_bytes(b"")
    release = open_one(tmp_path)
    view = View(SIZE, SIZE, channels=3)
    check_images(release, view)
    np.testing.assert_array_equal(read_image(release, release.sites[0], view), expected)
    with pytest.raises(ReleaseError, match="^3 image file"):
        check_images(release, NATIVE)


def test_wilds_is_rgb(tmp_path):
    release = open_release(write_tiny_wilds(tmp_path))
    view = View(256, 256, channels=3)
    check_images(release, view)
    rows = {row["site_id"]: row for row in tiny_wilds_rows()}
    for site in release.sites[::20]:
        pixels = np.asarray(Image.open(wilds_path(tmp_path, rows[site.site_id])))
        for same in (view, View(256, 256, crop=True, channels=3)):
            image = read_image(release, site, same)
            np.testing.assert_array_equal(image, np.moveaxis(pixels, -1, 0))
    path = wilds_path(tmp_path, rows[site.site_id])
    Image.fromarray(pixels).save(path, transparency=(1, 2, 3))
    for use in (check_images, lambda r, v: read_image(r, site, v)):
        with pytest.raises(ReleaseError, match=rf"{path} .*transparent.*tRNS"):
            use(release, view)
    Image.fromarray(pixels[..., 0]).save(path)
    with pytest.raises(ReleaseError, match="colour type 0, expected 8 and 2 .RGB"):
        check_images(release, view)


def drawn(change=lambda pixels: pixels, mode=None, **options) -> Callable[[bytes], bytes]:
    """Saves the changed pixels as a PNG of their own."""

    def save(data: bytes) -> bytes:
        written = io.BytesIO()
        image = Image.fromarray(change(np.asarray(Image.open(io.BytesIO(data)))))
        image.convert(mode or image.mode).save(written, "png", **options)
        return written.getvalue()

    return save


def chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data).to_bytes(4, "big")
    return len(data).to_bytes(4, "big") + kind + data + checksum


def without_half_of_the_rows(data: bytes) -> bytes:
    """Every chunk is well formed."""
    start = data.index(b"IDAT")
    length = int.from_bytes(data[start - 4 : start], "big")
    raw = zlib.decompress(data[start + 4 : start + 4 + length])
    pixels = chunk(b"IDAT", zlib.compress(raw[: len(raw) // 2]))
    return data[: start - 4] + pixels + data[start + 8 + length :]


def replaced(data: bytes, at: int, byte: int) -> bytes:
    return data[:at] + bytes([byte]) + data[at + 1 :]


KINDS = {  # of a broken file: its bytes (None: it is missing, or a folder), what is said of it
    "missing": (None, "is missing"),
    "folder": (None, "cannot be read"),
    "empty": (lambda data: b"", "is not a PNG file"),
    "text": (lambda data: b"not found" * 20, "is not a PNG file"),
    "cut": (lambda data: data[:-30], "is cut off"),
    "end lost": (lambda data: data[:-12], "is cut off"),
    "middle lost": (lambda data: data[:50] + data[-16:], "is cut off"),  # the tail is right
    "trailing": (lambda data: data + b"\n", "goes on after its IEND chunk"),
    "length": (lambda data: replaced(data, data.index(b"IDAT") - 3, 0x7F),
               "is cut off .within the chunk at byte 33"),
    "no pixels": (lambda data: data[: data.index(b"IDAT") - 4] + data[-12:], "holds no pixels"),
    "pixels": (lambda data: replaced(data, (at := data.index(b"IDAT") + 30), data[at] ^ 0xFF),
               "is damaged .wrong checksum of the chunk at byte 33"),
    "16 bit": (drawn(lambda pixels: pixels.astype(np.uint16)), "has bit depth 16"),
    "rgb": (drawn(lambda pixels: np.stack([pixels] * 3, axis=-1)), "PNG colour type 2"),
    "palette": (drawn(mode="P"), "PNG colour type 3"),
    "frames": (drawn(save_all=True, append_images=[Image.new("L", (SIZE, SIZE))]), "acTL"),
    "frames behind a first image": (
        drawn(save_all=True, default_image=True, append_images=[Image.new("L", (SIZE, SIZE))] * 2),
        "acTL"),
    "transparent": (drawn(transparency=5), "tRNS"),
    "size": (drawn(lambda pixels: pixels[:, :-1]), "is 15x16 pixels, expected 16x16"),
    "short": (without_half_of_the_rows, None),  # only decoding finds it
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_broken_image_names_line_site_and_path(tmp_path, kind):
    row = one_site(tmp_path)
    release = open_one(tmp_path)
    site = release.sites[0]
    check_images(release, NATIVE)
    path = image_path(tmp_path, row, 5)
    change, says = KINDS[kind]
    if change:
        path.write_bytes(change(path.read_bytes()))
    else:
        path.unlink()
        if kind == "folder":
            path.mkdir()
    if says:
        with pytest.raises(ReleaseError, match=says) as error:
            check_images(release, NATIVE)
        assert f"metadata.csv, line 6, site {row['site_id']}: {path} " in str(error.value)
    with pytest.raises(ReleaseError, match=says) as error:  # and so does reading
        read_image(release, site, NATIVE)
    assert row["site_id"] in str(error.value) and str(path) in str(error.value)


def test_interlaced_image_of_another_gamma_equals_pillow(tmp_path):
    """Adam7: seven passes of (first column, first row, step of columns, step of rows)."""
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
              (0, 1, 1, 2)]  # fmt: skip
    row = one_site(tmp_path)
    path = image_path(tmp_path, row, 2)
    pixels, data = np.asarray(Image.open(path)), path.read_bytes()
    lines = [line for x, y, dx, dy in passes for line in pixels[y::dy, x::dx]]
    packed = zlib.compress(b"".join(b"\0" + line.tobytes() for line in lines))
    header = chunk(b"IHDR", data[16:28] + b"\1") + chunk(b"gAMA", (90_000).to_bytes(4, "big"))
    path.write_bytes(data[:8] + header + chunk(b"IDAT", packed) + chunk(b"IEND", b""))
    np.testing.assert_array_equal(np.asarray(Image.open(path)), pixels)
    release = open_one(tmp_path)
    check_images(release, NATIVE)
    np.testing.assert_array_equal(read_image(release, release.sites[0], NATIVE)[1], pixels)


def test_any_flipped_bit_and_any_cut_is_found(tmp_path):
    """Also by `read_image`, whose decoder takes some of them: the file may change after a check."""
    row = one_site(tmp_path)
    release = open_one(tmp_path)
    path = image_path(tmp_path, row, 6)
    data = path.read_bytes()
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        for bad in (bytes(flipped), data[:position]):
            path.write_bytes(bad)
            with pytest.raises(ReleaseError, match=str(path)):
                read_image(release, release.sites[0], NATIVE)
            if position % 5 == 0:
                with pytest.raises(ReleaseError, match="^1 image file"):
                    check_images(release, NATIVE)


def test_damage_in_an_archive_names_archive_and_member(tiny, tmp_path):
    path = zip_files(tmp_path / "a.zip", tiny, ["metadata.csv", "images"])
    data = bytearray(path.read_bytes())
    member = b"rxrx1/images/HUVEC-01/Plate1/B02_s1_w3.png"
    data[data.index(member) + len(member) + 20] ^= 1
    path.write_bytes(data)
    release = open_release(path)
    with pytest.raises(ReleaseError, match="^1 image file") as error:
        check_images(release, NATIVE)
    assert f"site HUVEC-01_1_B02_1: {path}: {member.decode()} cannot" in str(error.value)


@pytest.mark.skipif(not REAL.exists(), reason="the real images are not at hand")
def test_real_images(tmp_path):
    (tmp_path / "images").symlink_to(REAL)
    wells = [(e, p, f"{e}_{p}_B02") for e in ("HUVEC-01", "RPE-01", "U2OS-01") for p in (1, 2)]
    rows = [
        (f"{well}_1", well, e[:-3], "train", e, p, "B02", 1, "negative_control", "EMPTY", 1138)
        for e, p, well in wells
    ]
    write_metadata(tmp_path, [dict(zip(COLUMNS, map(str, row), strict=True)) for row in rows])
    release = open_release(tmp_path)
    check_images(release, View(512, 512))
    with pytest.raises(ReleaseError, match="is 512x512 pixels, expected 256x256"):
        check_images(release, View(256, 256))
    folder = REAL / "HUVEC-01" / "Plate1"
    expected = np.stack([np.asarray(Image.open(folder / f"B02_s1_w{c}.png")) for c in range(1, 7)])
    np.testing.assert_array_equal(read_image(release, release.sites[0], View(512, 512)), expected)
    blocks = expected.reshape(6, 128, 4, 128, 4).astype(np.float64)
    small = read_image(release, release.sites[0], View(128, 512))
    np.testing.assert_array_equal(small, np.floor(blocks.mean(axis=(2, 4)) + 0.5))
    wilds = read_image(release, release.sites[0], View(256, 512, crop=True, channels=3))
    np.testing.assert_array_equal(wilds, expected[:3, 128:384, 128:384])


def test_interrupted_check_ends_soon(tmp_path, monkeypatch):
    """Ctrl-C in the bar's own code, too: what has not begun is not read."""
    one_site(tmp_path)
    release = open_one(tmp_path)
    release = dataclasses.replace(release, sites=release.sites * 3200)
    read = []

    def count(_release, name, _view):
        read.append(name)
        return b"", ""

    class Stopped(images.tqdm):
        def update(self, n=1):
            raise KeyboardInterrupt

    monkeypatch.setattr(images, "_read", count)
    monkeypatch.setattr(images, "tqdm", Stopped)
    with pytest.raises(KeyboardInterrupt):
        check_images(release, NATIVE)
    assert 0 < len(read) < 6 * 3200 / 2

"""Each benchmark at a tiny setting, the loaders against each other, the arithmetic of ratios."""

import subprocess
import sys
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("tensorflow_datasets", reason="needs the extra `build`")
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # `benchmarks` is no installed package

from benchmarks import build, loaders, timing, train_step  # noqa: E402

SIZE, SITES = 64, 16


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Two sites of six PNG files."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for site in ("B02_s1", "B03_s1"):
        for channel in range(1, 7):
            plane = rng.gamma(2, 3 * channel, (SIZE, SIZE)).astype(np.uint8)
            cv2.imwrite(str(folder / f"{site}_w{channel}.png"), plane)
    return folder


def run(module: str, images: Path, *options: str) -> str:
    command = [sys.executable, "-m", f"benchmarks.{module}", "--images", str(images), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("Machine: ") and "2 sites of 64 px" in done.stdout
    return done.stdout


def rows(text: str) -> list[list[str]]:
    """The cells of the Markdown table's lines below its head."""
    table = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def test_encoding_command(images):
    found = rows(run("encoding", images, "--rounds", "1"))
    assert all(row[-1] == "yes" for row in found)  # lossless
    stock = {row[0]: row[-2] for row in found}
    assert stock["zlib by libdeflate 6, libdeflate"] == "yes"
    assert stock["gzip of [H, W, 6] (rxrx1-utils)"] == "no"
    raw = next(float(row[1]) for row in found if row[0] == "raw bytes")
    assert raw == round(6 * SIZE**2 / 1000)


@pytest.mark.long
def test_build_command(images):
    out = run("build", images, "--sites", "4", "--rounds", "1", "--cores", "1")
    assert [row[0] for row in rows(out)] == ["copy, 1 core(s)", "tfds build, 1 core(s)"]
    assert "125,510 sites would take" in out


@pytest.mark.long
def test_memory_command(images):
    out = run("memory", images, "--sites", "8", "--minutes", "0.02", "--settings", "2x1")
    ((setting, minute, read, rss, most, formula),) = rows(out)
    assert (setting, float(minute)) == ("2 x 1", 0.02)
    assert int(read.replace(",", "")) > 0 and 0 < int(rss) <= int(most)
    total, base, images_of_it = map(int, formula.replace("=", "+").split(" + "))
    assert abs(total - base - images_of_it) <= 1 and images_of_it == 1  # 2*(1+10)*24,576 bytes


@pytest.fixture(scope="module")
def data(images, tmp_path_factory):
    """(files of each site, our dataset, gzip shards)."""
    work = tmp_path_factory.mktemp("work")
    files = build.write_release(work / "release", build.read_images(images), SITES)
    dataset = build.build_dataset(work / "release", work / "data", SIZE)
    return files, dataset, loaders.write_gzip(dataset, work)


def in_order(images: np.ndarray) -> np.ndarray:
    """Sorted by the sum of the first plane; sites that share it hold the same image."""
    first = images[:, 0].reshape(len(images), -1)
    return images[np.argsort(first.sum(1, dtype=np.float64))]


def test_all_loaders_deliver_the_same_floats(data):
    from rxrx1_jax.data.records import Records

    files, dataset, shards = data
    records = Records(dataset)
    mean, std = (records.sites[name][0] for name in ("control_mean", "control_std"))
    images = np.stack([records[i] for i in range(SITES)])
    expected = (images - mean[:, None, None]) / std[:, None, None]  # [n, 6, H, W]
    passes = {
        "Pillow": loaders.torch_passes(files, mean, std, "Pillow", 0),
        "OpenCV": loaders.torch_passes(files, mean, std, "OpenCV", 0),
        "gzip": loaders.gzip_passes(shards, records.image_shape, mean, std),
        "float32": loaders.our_passes(dataset, "float32"),
        "augmented": loaders.our_passes(dataset, "augmented"),
    }
    for name, one_pass in passes.items():
        got = np.concatenate([np.asarray(batch) for batch in one_pass()])
        assert got.dtype == np.float32
        if name not in ("Pillow", "OpenCV"):
            got = np.moveaxis(got, -1, 1)
        wanted = expected
        if name == "augmented":  # orientations move the pixels of a plane about
            got, wanted = (np.sort(x.reshape(SITES, 6, -1)) for x in (got, wanted))
        np.testing.assert_allclose(in_order(got), in_order(wanted), rtol=1e-4, atol=1e-4)
        again = np.concatenate([np.asarray(batch) for batch in one_pass()])
        assert len(again) == SITES
    planes = np.concatenate(list(loaders.our_passes(dataset, "planes")()))
    assert sorted(map(bytes, planes)) == sorted(map(bytes, images))


def test_number_of_sites_is_checked(images):
    for sites in (0, 24, 320):
        with pytest.raises(ValueError, match="expected a multiple of 16 up to 308"):
            loaders.prepare(build.read_images(images), sites, images / "unused")
    with pytest.raises(ValueError, match="no .*w1.png"):
        build.read_images(images.parent / "absent")


def test_ratios_are_of_the_same_round(monkeypatch):
    """A fake clock: the machine is half as fast in the second of three rounds."""
    speed = iter([1, 1, 1, 1, 2, 2, 1, 1])  # of each turn: warm-up, then three rounds of two tasks
    clock = {"now": 0.0}

    def task(seconds):
        def run():
            clock["now"] += seconds * next(speed)

        return run

    monkeypatch.setattr(timing, "cpu_seconds", lambda: clock["now"])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: 3 * clock["now"])
    fast, slow = timing.compare({"fast": task(1), "slow": task(4)}, 10, "slow", rounds=3)
    assert (fast.cpu_ms, slow.cpu_ms, fast.wall_ms) == (100, 400, 300)
    assert (fast.cpu_ratio, fast.cpu_spread, fast.wall_ratio) == (4, (4, 4), 4)
    assert slow.cpu_ratio == 1


def _burn(seconds: float):
    import time

    def task():
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    return task


def _fail():
    raise ValueError("no such data")


def test_cpu_time_of_other_processes_counts():
    (there,) = timing.compare({"there": timing.remote(_burn, 0.2)}, 1, "there", rounds=1)
    assert there.cpu_ms > 150
    with pytest.raises(RuntimeError, match="no such data"):
        timing.remote(_fail)()


@pytest.mark.parametrize("name", ["ours", "linen"])
def test_both_networks_take_the_training_step(name):
    step, state, batch = train_step.jax_step(name, 32, 2, "float32")
    after, metrics = jax.eval_shape(step, state, batch)  # traced, not compiled: that takes minutes
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert metrics.shape == (4,)

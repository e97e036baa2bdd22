"""Each benchmark at a tiny setting, and the arithmetic of ratios and of FLOPs."""

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from unittest import mock

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rxrx1_jax.model import resnet

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # `benchmarks` is no installed package

from benchmarks import accelerator, encoding, implementations, methods, timing  # noqa: E402

SIZE = 64


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


def run(module: str, *options: object) -> list[list[str]]:
    """The cells of the Markdown table that a benchmark prints, without its head."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, options)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("Machine: ")
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def test_encoding_command(images):
    pytest.importorskip("tensorflow_datasets", reason="needs the extra `build`")
    found = run("encoding", "--images", images, "--rounds", 1)
    assert all(row[-1] == "yes" for row in found)  # lossless
    stock = {row[0]: row[-2] for row in found}
    assert stock["zlib by libdeflate 6, libdeflate"] == "yes"
    assert stock["gzip of [H, W, 6] (rxrx1-utils)"] == "no"
    raw = next(float(row[1]) for row in found if row[0] == "raw bytes")
    assert raw == round(6 * SIZE**2 / 1000)


@pytest.mark.long
def test_tables_command():
    found = run("tables", "--experiments", 1, "--features", 3)
    assert [row[0] for row in found] == ["csv", "zip", "parquet", "h5ad"]
    assert {row[2] for row in found} == {f"{4 * 308 * 2:,} x 3"}
    assert all(0 < float(row[4]) < 2 for row in found)  # GB


@pytest.mark.long
def test_many_runs_command():
    ((runs, sites, cpu, _, peak),) = run("many_runs", "--runs", 7, "--experiments", 3)
    assert (runs, sites) == ("7", f"{3 * 277 * 2:,}")
    assert 0 < float(cpu) < 20 and 0 < float(peak) < 1


def test_images_are_looked_for(images):
    with pytest.raises(ValueError, match="w1.png"):
        encoding.read_images(images.parent / "absent")


@pytest.mark.long
def test_host_path_command(tiny):
    options = ("--devices", 2, "--network", "resnet_demo", "--rounds", 4)
    *parts, together = run("host_path", "--data", tiny.dataset.parents[2], *options)
    each = [float(us) for _, us, _ in parts]
    assert len(each) == 3 and min(each) > 0
    assert float(together[1]) == pytest.approx(sum(each), abs=0.02)
    share = float(together[2].rstrip("%")) / 100
    assert share == pytest.approx(float(together[1]) * 2 * 1200 / 1e6, abs=1e-3)


@pytest.mark.long
def test_methods_command():
    """Ours beside libraries, in processes of their own; copairs finds what ours finds."""
    for name in ("sklearn", "copairs"):
        pytest.importorskip(name)
    options = ("--treatments", 1, "--features", 4, "--methods", "lda", methods.MAP)
    found = {(row[0], row[1]): row[2:] for row in run("methods", *options)}
    assert list(found) == [
        ("lda", "ours"), ("lda", "scikit-learn, shrinkage by class"),
        (methods.MAP, "ours"), (methods.MAP, "copairs"),
    ]  # fmt: skip
    assert all(float(cell) >= 0 for row in found.values() for cell in row)
    assert found[methods.MAP, "ours"][3] == found[methods.MAP, "copairs"][3]
    assert float(found["lda", "ours"][3]) > 25  # chance: one of four


def test_a_made_up_screen_is_laid_out_as_the_real_one():
    sites, role, x, _, classes = methods.screen(treatments=277, features=1)
    assert len(sites) == len(x) == 125_664 and len(classes) == 1108
    assert len(np.unique(sites["experiment"])) == 51 and len(np.unique(sites["site_id"])) == len(x)
    treated = sites[sites["well_type"] == "treatment"]
    once = np.unique(treated[["experiment", "sirna_id", "site"]])
    assert len(once) == len(treated) == 51 * 1108 * 2
    assert set(np.unique(sites["experiment"][role == "test"])).isdisjoint(
        sites["experiment"][role == "train"]
    )


@pytest.mark.long
def test_train_step_command():
    options = ("--rounds", 1, "--sizes", 16, "--network", "resnet_demo")
    ours, xla = run("train_step", *options, "--implementations", "ours", "xla")
    assert (ours[0], ours[1], xla[1]) == ("resnet_demo, 16, 8", "ours", "xla")
    assert ours[3].startswith("1.00 ") and float(xla[2]) > 0


def test_flops_are_those_that_pytorch_counts():
    from torch import zeros
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.plain_torch import plain_resnet50

    case = implementations.Case("resnet50", 32, 2)
    network = plain_resnet50(implementations.CLASSES)
    with FlopCounterMode(display=False) as counted:
        network(zeros(2, 6, 32, 32)).sum().backward()
    for name in ("ours", "linen"):
        assert 2 * implementations.model_flops(name, case) == counted.get_total_flops()


@pytest.mark.parametrize("sides", [(16, 16), (20, 14)])
def test_the_stem_on_blocks_is_the_same_convolution_with_the_same_gradients(sides):
    rng, given = np.random.default_rng(0), resnet.convolve
    x = rng.standard_normal((2, *sides, 6), np.float32)
    kernel = rng.standard_normal((7, 7, 6, 8), np.float32)
    forms = given, partial(implementations.stem_on_blocks, given)
    expected, found = (jax.vjp(partial(form, stride=2), x, kernel) for form in forms)
    dy = rng.standard_normal(expected[0].shape, np.float32)
    for one, two in zip((expected[0], *expected[1](dy)), (found[0], *found[1](dy)), strict=True):
        np.testing.assert_allclose(two, one, rtol=0, atol=1e-5 * np.abs(one).max())
    small = jnp.ones((3, 3, 6, 8))
    np.testing.assert_array_equal(forms[1](x, small, 2), given(x, small, 2))


@pytest.mark.parametrize("name", ["ours", "linen", "torch"])
def test_each_implementation_takes_steps(name, capsys):
    case = implementations.Case("resnet_demo", 32, 2, blocks=(1,))
    take = implementations.make(name, case)
    take(2)
    assert name == "torch" or "MB" in capsys.readouterr().out


def test_ratios_are_of_the_same_round(monkeypatch):
    """A fake clock: the machine is half as fast in the second of three rounds."""
    speed = iter([1, 1, 1, 1, 2, 2, 1, 1])  # of each turn: warm-up, then three rounds of two tasks
    clock = {"now": 0.0}

    def task(seconds):
        def run():
            clock["now"] += seconds * next(speed)

        return run

    monkeypatch.setattr(timing, "cpu_seconds", lambda: clock["now"])
    fast, slow = timing.compare({"fast": task(1), "slow": task(4)}, 10, "slow", rounds=3)
    assert (fast.cpu_ms, slow.cpu_ms, slow.ratio) == (100, 400, 1)
    assert (fast.ratio, fast.spread) == (4, (4, 4))


def _burn(seconds: float):
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


def in_process(part, data, seconds):
    """In place of `accelerator.start`."""
    if part.kind in (accelerator.DETERMINISM, "ours", accelerator.STEM):
        return {"failed": "no such part"}
    return accelerator.measure(part, data)


def test_accelerator_in_miniature(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(accelerator, "start", in_process)
    with mock.patch.dict(os.environ):
        assert accelerator.main([f"--out={tmp_path}", "--small"]) == 0
    saved = json.loads((tmp_path / "accelerator.json").read_text())["parts"]
    found = {result["part"]["kind"]: result["found"] for result in saved.values()}
    assert set(found) == {"run", "linen", "torch", "determinism", "ours", "stem"}
    ours = found["run"]
    names = ("step", "loop", "forward", "evaluation", "flops", "planned_bytes")
    assert all(ours[name] > 0 for name in names)
    text = (tmp_path / "accelerator.md").read_text()
    assert text in capsys.readouterr().out
    assert f"| {ours['step']:,.0f} |" in text and "no such part" in text


def test_tables_of_an_accelerator():
    part = accelerator.Part("run", px=224)
    found = {"step": 5000.0, "loop": 4900.0, "forward": 16000.0, "evaluation": 12000.0,
             "flops": 24e9, "first_step_seconds": 31.0, "peak_bytes": 11e9, "planned_bytes": 12e9,
             "device": "NVIDIA H100 80GB HBM3"}  # fmt: skip
    of = {"run": found, "torch": {"step": 4000.0}, "torch.compile": {"step": 4800.0},
          "determinism": {"equal": False, "differs": "metrics"}, "ours": {"step": 5000.0},
          "stem": {"step": 5250.0}}  # fmt: skip
    results = {
        kind: {"part": vars(part) | {"kind": kind}, "found": one} for kind, one in of.items()
    }
    text = accelerator.markdown({"about": "here", "parts": results})
    # 5,000 images/s of 24 GFLOP are 120 of 989 TFLOP/s.
    assert "| 0.980 | 12,000 | 0.75 | 12.1% | 12.0 | 11.0 |" in text
    assert "| 224 | 5,000 | – | 4,000 | 4,800 | 1.042 |" in text and "metrics" in text
    assert "1.050 of ours" in text


@pytest.mark.long
def test_accelerator_command(tmp_path):
    """Its parts in processes of their own, two cold runs among them."""
    command = ["-m", "benchmarks.accelerator", "--small", f"--out={tmp_path}", "--minutes=20"]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    saved = json.loads((tmp_path / "accelerator.json").read_text())["parts"]
    assert not [result for result in saved.values() if "failed" in result["found"]]
    (twice,) = (r for r in saved.values() if r["part"]["kind"] == "determinism")
    assert twice["found"] == {"equal": True}

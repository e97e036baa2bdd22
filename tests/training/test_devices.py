"""What a device decides: the type of the computation, and that it is deterministic."""

import json
import os

import jax
import pytest
from commands import run_command
from screens import tiny_config, tiny_images

from rxrx1_jax.config import change
from rxrx1_jax.training import parallel, run_dir, setup, train


@pytest.mark.parametrize(
    "platform, dtype", [("cpu", "float32"), ("gpu", "bfloat16"), ("tpu", "bfloat16")]
)
def test_the_type_of_the_computation_suits_the_device(monkeypatch, platform, dtype):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(setup, "_try_plug_ins", lambda _: None)
    config = tiny_config()
    assert config.model.dtype == "auto"
    assert setup.prepare(config, tiny_images()).config.model.dtype == dtype
    assert config.model.dtype == "auto"


def test_a_run_keeps_its_type_on_another_device(tmp_path):
    """Begun where auto is bfloat16."""
    config, images = tiny_config(), tiny_images()
    with jax.numpy_dtype_promotion("standard"):
        change(config, {"model.dtype": "bfloat16"})
        train.train_and_evaluate(config, tmp_path / "run", images)
        saved = json.loads((tmp_path / "run" / "config.json").read_text())
        assert saved["model"]["dtype"] == saved["made_with"]["dtype"] == "bfloat16"
        change(config, {"model.dtype": "auto"})
        (tmp_path / "run" / "results.json").unlink()
        train.train_and_evaluate(config, tmp_path / "run", images)
        child = tiny_config(train__parent=str(tmp_path / "run"))
        assert train.set_up(child, tmp_path / "child", images).config.model.dtype == "bfloat16"
    change(config, {"model.dtype": "float32"})
    with pytest.raises(run_dir.RunError, match="model.dtype='bfloat16'.*'float32'"):
        train.train_and_evaluate(config, tmp_path / "run", images)


def test_gpus_are_deterministic_unless_told_otherwise(monkeypatch):
    given = {}
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "jit", lambda *_, **options: given.update(options))
    for deterministic, expected in ((True, {"xla_gpu_deterministic_ops": True}), (False, None)):
        devices = parallel.Devices("jit", deterministic)
        for make in (devices.trainer, devices.evaluator):
            make(None, None)
            assert given.pop("compiler_options") == expected
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    parallel.Devices("pmap", deterministic=False)
    with pytest.raises(run_dir.RunError, match=parallel.DETERMINISTIC):
        parallel.Devices("pmap")
    monkeypatch.setenv("XLA_FLAGS", f"{parallel.DETERMINISTIC}=true")
    parallel.Devices("pmap")


def test_xla_knows_the_option():
    options = {"xla_gpu_deterministic_ops": True}
    assert jax.jit(lambda x: x + 1, compiler_options=options)(1) == 2


@pytest.mark.parametrize("deterministic, flags", [(True, "--a=1 "), (False, "--a=1")])
def test_the_command_sets_the_flag_first(monkeypatch, tmp_path, deterministic, flags):
    seen = []
    note = lambda *_: seen.append(os.environ["XLA_FLAGS"])  # noqa: E731
    monkeypatch.setattr(train, "train_and_evaluate", note)
    monkeypatch.setenv("XLA_FLAGS", "--a=1")
    monkeypatch.setenv("JAX_PLATFORMS", "")
    field = f"--config.train.deterministic={deterministic}"
    assert run_command("main", "--config=smoke", field, f"--workdir={tmp_path}/run").code == 0
    assert seen == [flags + f"{parallel.DETERMINISTIC}=true" * deterministic]

"""The Python API, on arrays in memory: what a notebook does."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from embedding_tables import FEATURES, IDS, TRUTH, X, metadata_file, text

import rxrx1_jax as rx
from rxrx1_jax.data import images as images_lib

ROOT = Path(__file__).parents[1]
SIRNAS = 4
EXPERIMENTS = tuple(f"{cell}-{i:02}" for cell in ("HUVEC", "RPE") for i in range(1, 4))


@pytest.fixture(scope="module")
def images():
    """Sites of 16 px: 6 experiments, one plate each, 4 treatments and a control, two sites."""
    rows = [
        (experiment, well, site)
        for experiment in EXPERIMENTS
        for well in range(SIRNAS + 1)
        for site in (1, 2)
    ]
    sites = {
        "site_id": [f"{e}_1_B{w:02}_{s}" for e, w, s in rows],
        "well_id": [f"{e}_1_B{w:02}" for e, w, s in rows],
        "experiment": [e for e, _, _ in rows],
        "cell_type": [e.partition("-")[0] for e, _, _ in rows],
        "site": [s for _, _, s in rows],
        "well_type": ["treatment" if w < SIRNAS else "negative_control" for _, w, _ in rows],
        "sirna_id": [w if w < SIRNAS else 1138 for _, w, _ in rows],
    }
    planes = np.random.default_rng(0).integers(0, 256, (len(rows), 6, 16, 16), np.uint8)
    return rx.InMemory(planes, sites)


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    config = rx.config.read("demo:optim.epochs=2,optim.batch_size=8,optim.warmup_epochs=1.0")
    config.model.width, config.eval.batch_size = 8, 8
    return rx.train(config, tmp_path_factory.mktemp("run") / "a", images)


def test_import_is_light_and_names_are_there():
    program = (
        "import sys, rxrx1_jax; names = dir(rxrx1_jax); assert 'train' in names;"
        "assert not {'jax', 'tensorflow', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert all(getattr(rx, name) is not None for name in rx.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        rx.nothing  # noqa: B018


@pytest.mark.parametrize(("module", "kind"), [("rxrx1_jax.main", ""), ("", "ImportError: ")])
def test_windows_is_refused_in_one_line(tmp_path, module, kind):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.platform = 'win32'")
    command = ["-m", module] if module else ["-c", "import rxrx1_jax"]
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
    )  # fmt: skip
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"{kind}error: ") and "WSL" in last and done.returncode == 1
    assert kind or len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda path: rx.open_dataset("rxrx1/tiny", path), rx.load_run, rx.score, rx.read_embeddings,
        lambda path: rx.train("smoke", path),
    ],
)  # fmt: skip
def test_every_path_is_expanded_and_urls_are_refused(call, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a[1]").write_text("")  # a file: each of them stops there, and names it
    for given, said in (("~/a[1]", str(tmp_path / "a[1]")), ("gs://b/d", "mount"), ("", "path")):
        with pytest.raises((ValueError, OSError)) as error:
            call(given)
        assert said in str(error.value)


def test_embeddings_of_any_model_are_read_and_written(tmp_path):
    metadata = metadata_file(tmp_path)
    table = IDS | FEATURES | {"sirna_id": TRUTH["sirna_id"]}
    (tmp_path / "e.csv").write_bytes(text(table))
    with pytest.warns(UserWarning, match="sirna_id") as warned:
        found = rx.read_embeddings(tmp_path / "e.csv", metadata)
    assert len(warned) == 1 and warned[0].filename == __file__
    rx.write_embeddings(found, tmp_path / "e.parquet", "pycytominer")
    again = rx.read_embeddings(tmp_path / "e.parquet")
    np.testing.assert_array_equal(again.x, X)
    np.testing.assert_array_equal(again.sites, found.sites)


def test_batches_are_normalised_sites_of_the_training_set(images):
    split = rx.make_split(images, "batch", fold=0)
    found = list(rx.batches(images, split, 8, augment=False))
    assert len(found) == round(len(split.train) / 8)
    rows = np.concatenate([b["site_index"] for b in found])
    assert len(set(rows.tolist())) == len(rows) and set(rows.tolist()) <= set(split.train.tolist())
    first, row = found[0], int(found[0]["site_index"][0])
    site = images.sites[row]
    assert split.train.size and first["label"][0] == site["sirna_id"]
    mean, std = (site[name][:, None, None] for name in ("control_mean", "control_std"))
    expected = ((images[row].astype(np.float32) - mean) / std).transpose(1, 2, 0)
    np.testing.assert_allclose(first["image"][0], expected, rtol=1e-5, atol=1e-5)
    assert len(list(rx.batches(images, split, 8, steps=3))) == 3


def test_a_network_in_a_loop_of_ones_own_learns(images):
    split = rx.make_split(images, "batch", fold=0)
    network = rx.create_network("resnet_demo", images, split, width=8)
    assert network.vocabulary.classes.tolist() == list(range(SIRNAS))
    tx, losses = optax.sgd(0.3), []
    batch = next(rx.batches(images, split, 8, steps=1))
    variables = network.init(jax.random.key(0), batch)
    state = tx.init(variables["params"])

    @jax.jit
    def step(variables, state, batch):
        def loss(params):
            logits, new = network(
                {**variables, "params": params}, batch, train=True, mutable=["batch_stats"]
            )
            nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
            return jnp.mean(nll), new

        (value, new), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        updates, state = tx.update(grads, state)
        return {"params": optax.apply_updates(variables["params"], updates), **new}, state, value

    for _ in range(40):
        variables, state, value = step(variables, state, batch)
        losses.append(float(value))
    assert losses[-1] < 0.5 * losses[0]
    assert jax.eval_shape(network, variables, batch).shape == (8, SIRNAS)


def test_a_run_predicts_and_scores_its_data_and_ones_own(images, run, capfd):
    found = rx.load_run(run.path).predict(images)
    assert found.x.shape == (len(images), 2 * 8) and found.log_probs.shape == (60, SIRNAS)
    scored = rx.score(found, role="test")
    assert scored == rx.score(run.path / "predictions.parquet")
    assert set(scored["site"]["cell_type"]) == {"HUVEC", "RPE"}
    label, best = found.sites["sirna_id"], found.classes[found.log_probs.argmax(1)]
    treated = label < SIRNAS
    assert rx.score(found)["site"]["all"] == (label == best)[treated].mean()

    site = images.sites[3]
    mine = rx.InMemory(
        images.planes[3:4], control_mean=site["control_mean"], control_std=site["control_std"]
    )
    alone = run.predict(mine)
    np.testing.assert_allclose(alone.x[0], found.x[3], rtol=1e-4, atol=1e-4)
    assert alone.role is None
    assert "WARNING" not in "".join(capfd.readouterr())  # nothing that reads like damage
    for arguments, word in [((alone,), "label"), ((alone, "test"), "role"),
                            ((found, "nowhere"), "nowhere")]:  # fmt: skip
        with pytest.raises(ValueError, match=word):
            rx.score(*arguments)


def test_a_built_dataset_opens_by_name(tiny):
    records = rx.open_dataset("rxrx1/tiny", tiny.dataset.parents[2])
    assert len(records) == len(tiny.rows) and records[0].shape == (6, 16, 16)
    with pytest.raises(images_lib.DatasetError, match="rxrx1/other"):
        rx.open_dataset("rxrx1/other", tiny.dataset.parents[2])


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    """A folder with data/rxrx1/synthetic, as the examples expect it, of 16 px."""
    pytest.importorskip("tensorflow_datasets", reason="needs the extra `build`")
    from tfds_builder.rxrx1 import Builder, Rxrx1Config

    folder = tmp_path_factory.mktemp("first_look")
    small = {"huvec": 3, "rpe": 0, "hepg2": 0, "u2os": 0, "plates": 1}
    screen = Rxrx1Config(name="few", size=16, screen=small)
    Builder(config=screen, data_dir=folder / "data").download_and_prepare()
    (folder / "data/rxrx1/few").rename(folder / "data/rxrx1/synthetic")
    return folder


@pytest.mark.parametrize(
    "name", ["first_look.py", pytest.param("first_look.ipynb", marks=pytest.mark.long)]
)
def test_examples_run_as_they_are(name, synthetic, monkeypatch, capsys):
    text = (ROOT / "examples" / name).read_text()
    cells = [text]
    if name.endswith(".ipynb"):
        code = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        cells = ["".join(cell["source"]) for cell in code]
        assert len(cells) == 5
    monkeypatch.chdir(synthetic)
    monkeypatch.setenv("MPLBACKEND", "agg")
    namespace: dict = {}
    for cell in cells:
        exec(compile(cell, name, "exec"), namespace)
    assert 0 <= rx.score(namespace["predicted"], "test")["site"]["all"] <= 1
    assert namespace["mine"].log_probs.shape[1] == len(namespace["mine"].classes)


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_pages_run_as_they_are(page, synthetic, monkeypatch):
    blocks = re.findall(
        r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE
    )
    monkeypatch.chdir(synthetic)
    if not Path("runs/mine").exists():  # the run that the pages speak of
        rx.train("demo:fold=0,optim.epochs=1", "runs/mine")
    site = {"mean": np.full(6, 9.0), "std": np.ones(6), "planes": np.ones((1, 6, 16, 16), np.uint8)}
    namespace: dict = dict(site)
    for block in blocks:
        exec(compile(block, page, "exec"), namespace)
    assert namespace["predicted"].log_probs.shape[1] == len(namespace["predicted"].classes)

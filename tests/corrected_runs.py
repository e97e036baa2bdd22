"""What `correct` reads of a finished run, made up: no dataset, no network."""

import json

from arrays import small_evidence

from configs import demo
from rxrx1_jax.data import embeddings as lib
from rxrx1_jax.data.embeddings import Embeddings
from rxrx1_jax.training import run_dir
from rxrx1_jax.training.run import EMBEDDINGS, Run


def save(workdir, step, weights):
    """What a checkpoint says of itself."""
    about = workdir / "checkpoints" / str(step) / "about"
    about.mkdir(parents=True, exist_ok=True)
    vocabulary = {"cell_types": [], "experiments": [], "classes": []}
    said = {"vocabulary": vocabulary, "recent": [], "checksums": {"params": weights}}
    (about / "metadata").write_text(json.dumps(said))


def make_run(workdir, step=7, weights=123, **data):
    """What `correct` reads of a finished run: settings, the checkpoint's sums, embeddings."""
    save(workdir, step, weights)
    config = demo.get_config()
    config.data.update(data)
    run_dir.write_json(workdir / "config.json", {**config.to_dict(), "dataset": {}})
    sites, role, x, log_probs, classes = small_evidence()
    made = Embeddings(sites, x, log_probs, classes, source=Run.open(workdir).source, role=role)
    lib.write(made, workdir / EMBEDDINGS, log_probs=True)
    (workdir / "split.csv").write_text("site_id,role\n" + "".join(f"{i},{r}\n" for i, r in
        zip(sites["site_id"], role, strict=True)))  # fmt: skip
    return workdir

"""One of two processes that collect the scores of one global batch after the other."""

import numpy as np

from rxrx1_jax.training import processes

processes.join()

import jax  # noqa: E402
from jax.sharding import Mesh, NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

from rxrx1_jax.training.evaluate import collect  # noqa: E402

host = jax.process_index()
sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), P("data"))
rows = np.array([30, 3, 12, 5, 21, 8, 17])
answers = np.arange(40 * 3, dtype=np.float32).reshape(40, 3)


def put(x):
    return jax.make_array_from_process_local_data(sharding, x)


def batches():
    padded, mask = np.append(rows, 0).astype(np.int32), np.arange(8) < 7
    for start in (0, 4):  # global batches of four, two rows a host; host 1 ends with padding
        mine = slice(start + 2 * host, start + 2 * host + 2)
        yield {"site_index": put(padded[mine]), "mask": put(mask[mine])}


@jax.jit
def step(state, batch):
    scores = state[batch["site_index"]]
    return {**batch, "log_probs": scores, "loss": scores[:, 0]}


found = collect((step(answers, batch) for batch in batches()), rows)
np.testing.assert_array_equal(found["log_probs"], answers[rows])
np.testing.assert_array_equal(found["loss"], answers[rows, 0])
try:
    collect((step(answers, batch) for batch in batches()), np.append(rows, 39))
except ValueError as error:
    assert "39" in str(error), error
else:
    raise AssertionError("a record that was never read is not missed")
processes.leave()

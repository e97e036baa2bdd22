"""Methods combined by name."""

import numpy as np
import pytest
from arrays import small_evidence

from rxrx1_jax.methods import transforms
from rxrx1_jax.methods.assignment import assign_once
from rxrx1_jax.methods.catalogue import METHODS, find, reference
from rxrx1_jax.methods.evidence import evidence_for, scores
from rxrx1_jax.methods.lda import lda

CHAINS = {  # chain -> what it is compared with
    "tvn_plate+lda": "lda",
    "centre_experiment+harmony_experiment": "centroids",
    "robust_mad_sphering+softmax_joint+assign_once": "softmax_joint+assign_once",
    "tvn_plate+assign_once": "centroids+assign_once",
    "lda+assign_once": "none",
    "orientations+assign_once": "none",
    "adabn_experiment+centre_scale_plate+lda": "lda",
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_is_its_parts(name):
    parts, chain = [METHODS[part] for part in name.split("+")], find(name)
    assert chain.transforms == sum((part.transforms for part in parts), ())
    assert chain.uses == frozenset().union(*(part.uses for part in parts))
    assert chain.version == sum(part.version for part in parts)
    for stage in ("adapt", "classify", "decide"):
        given = [getattr(part, stage) for part in parts if getattr(part, stage)]
        assert getattr(chain, stage) == (given[-1] if given else None)
    assert reference(name) == CHAINS[name]


def test_a_chain_gives_what_its_stages_give_one_by_one():
    evidence = small_evidence()
    found = scores(find("centre_scale_plate+lda+assign_once"), evidence)
    given = evidence_for(find("assign_once"), evidence)
    x = transforms.centre_scale(given.x, given.sites, given.role == "context", "plate")
    given = given._replace(x=x)
    ids = assign_once(lda(given)(given), given.sites, given.classes, given.role)
    np.testing.assert_array_equal(given.classes[found.argmax(1)], ids[given.role == "test"])


@pytest.mark.parametrize(
    "name", ["lda+tvn_plate", "lda+softmax", "none+lda", "lda+none", "assign_once+lda",
             "assign_once+assign_once", "tvn_plate+adabn_plate", "adabn_plate+orientations"],
)  # fmt: skip
def test_parts_that_cannot_follow_each_other(name):
    first, second = name.split("+")
    with pytest.raises(ValueError, match=f"{second} cannot follow {first}"):
        find(name)

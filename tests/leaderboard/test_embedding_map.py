"""Maps of embeddings."""

import numpy as np

from rxrx1_jax.leaderboard import embedding_map


def test_principal_components_against_the_covariance():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 6)) @ rng.normal(size=(6, 6)) + 5
    found, share = embedding_map.principal_components(x)
    values, vectors = np.linalg.eigh(np.cov(x.T))
    expected = (x - x.mean(0)) @ vectors[:, ::-1][:, :2]
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-9)
    np.testing.assert_allclose(share, values[::-1][:2] / values.sum())


def test_far_apart_takes_the_corners():
    corners = np.array([[0.0, 0], [10, 0], [0, 11], [12, 13]])
    middle = np.full((5, 2), 5.0) + np.arange(5)[:, None] * 0.1
    assert set(embedding_map.far_apart(np.concatenate([middle, corners]), 4)) == {5, 6, 7, 8}
    assert len(embedding_map.far_apart(corners, 9)) == 4

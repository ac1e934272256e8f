"""k-NN and ridge: equal to scikit-learn and to a transcription, whatever the pieces."""

import numpy as np
import pytest
from evaluators.test_eval_probes import blobs
from sklearn.linear_model import RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier

from mimjax.errors import ConfigError, RunError
from mimjax.transfer import neighbors
from mimjax.transfer.neighbors import ranked, ridge, standardize, unit, vote


def test_knn_equals_scikit_learn():
    x, y = blobs()
    found = dict(vote(x.train, y.train, x.test))
    assert list(found) == [f"k={k}" for k in neighbors.KS]
    for k in neighbors.KS:
        reference = KNeighborsClassifier(k, weights="distance", algorithm="brute")
        reference.fit(unit(x.train), y.train)
        np.testing.assert_array_equal(found[f"k={k}"], reference.predict(unit(x.test)))


def test_a_k_above_the_training_set_is_left_out_of_a_choice_and_else_an_error():
    x, y = np.eye(5, dtype=np.float32), np.arange(5)
    with pytest.raises(RunError, match="no k of `ks` is at most 5"):
        list(vote(x, y, x, ks=[48]))
    with pytest.raises(ConfigError, match=r"^ks: 48, but there are 5 training images; allowed: at"):
        list(ranked(x, y, x, ks=[3, 48]))


@pytest.mark.parametrize("width", [12, 400])  # the second has more features than rows
def test_ridge_equals_scikit_learn(width):
    x, y = blobs(width=width, spread=4.0)
    found = dict(ridge(x.train, y.train, x.test))
    assert len(found) == len(neighbors.ALPHAS) == 8
    for alpha in neighbors.ALPHAS:
        reference = RidgeClassifier(alpha).fit(x.train.astype(np.float64), y.train)
        np.testing.assert_array_equal(found[f"alpha={alpha:g}"], reference.predict(x.test))


def test_standardize_ignores_constant_features():
    train = np.asarray([[0.0, 1.0, 7.0], [0.0, 3.0, 7.0]], np.float32)
    a, b = standardize(train, np.asarray([[9.0, 5.0, 7.0]], np.float32), True)
    np.testing.assert_allclose(a, [[0, -1, 0], [0, 1, 0]])
    np.testing.assert_allclose(b, [[0, 3, 0]])


def test_a_grid_of_weighted_votes_is_one_sum_of_exponentials_each(monkeypatch):
    x, y = blobs()
    temperatures, ks = (0.02, 0.5), (1, 7, 160)
    found = list(ranked(x.train, y.train, x.test, ks, temperatures, top=3))
    assert [(r.temperature, r.k) for r in found] == [(t, k) for t in temperatures for k in ks]
    similarity = unit(x.test).astype(np.float64) @ unit(x.train).T
    nearest = np.argsort(-similarity, axis=1)
    for r in found:
        votes = np.zeros((len(x.test), 5))
        for i, row in enumerate(nearest[:, : r.k]):
            np.add.at(votes[i], y.train[row], np.exp(similarity[i, row] / r.temperature))
        best = np.argsort(-votes, axis=1, kind="stable")[:, :3]
        np.testing.assert_array_equal(r.classes, best)
        assert r.top(y.test) == pytest.approx(100 * (best[:, 0] == y.test).mean())
        assert r.top(y.test, 3) >= r.top(y.test)
    # however few rows are in memory at a time
    monkeypatch.setattr(neighbors, "SIMILARITIES", 7 * len(x.train))
    monkeypatch.setattr(neighbors, "CHUNK", 11)
    for r, again in zip(found, ranked(x.train, y.train, x.test, ks, temperatures, 3), strict=True):
        np.testing.assert_array_equal(again.classes, r.classes)


def test_neighbors_on_an_accelerator_are_those_of_the_host():
    """The first of equally similar rows comes first, too; the last piece is not whole."""
    rng = np.random.default_rng(0)
    x, other = (rng.integers(-2, 3, (n, 3)).astype(np.float32) for n in (40, 10))
    values, ids = neighbors.neighbors(x, other, 9)
    theirs, there = neighbors.neighbors_on_device(x, other, 9, rows=4)
    np.testing.assert_array_equal(theirs, values)
    assert (values[:, :-1] == values[:, 1:]).any()
    # which of the rows that are as similar as the last one belong to the nine, nobody says
    sure = values > values[:, -1:]
    np.testing.assert_array_equal(there[sure], ids[sure])

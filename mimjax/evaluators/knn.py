"""k-nearest neighbors on frozen features: cosine similarity, votes weighted by 1 / distance.

The same as scikit-learn's KNeighborsClassifier(weights="distance") on features of unit length, but
one neighbor search serves every k.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mimjax.evaluators.search import Probe

KS = (1, 3, 5, 10, 20)
CHUNK = 4096  # rows whose similarities are held at a time
TINY = 1e-3  # float32 cannot tell shorter distances of unit vectors apart


def classify(x: np.ndarray, y: np.ndarray, other: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Predictions for the rows of `other` at every k; see `search.Classify`."""
    ks = [k for k in KS if k <= len(x)]
    similarity, ids = neighbors(unit(x), unit(other), ks[-1])
    weight = 1 / np.maximum(np.sqrt(np.maximum(2 - 2 * similarity, 0)), TINY)
    votes = np.zeros((len(other), y.max() + 1))
    for j in range(ks[-1]):
        votes[np.arange(len(other)), y[ids[:, j]]] += weight[:, j]
        if j + 1 in ks:
            yield f"k={j + 1}", votes.argmax(1)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def neighbors(x: np.ndarray, other: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k most similar rows of x for each row of `other`: similarities and ids [m k], sorted."""
    values, ids = [], []
    for i in range(0, len(other), CHUNK):
        similarity = other[i : i + CHUNK] @ x.T
        near = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        near.sort(axis=1)  # equal similarities: the first row wins
        found = np.take_along_axis(similarity, near, 1)
        order = np.argsort(-found, axis=1, kind="stable")
        ids.append(np.take_along_axis(near, order, 1))
        values.append(np.take_along_axis(found, order, 1))
    return np.concatenate(values), np.concatenate(ids)


class KNN(Probe):
    """k-NN accuracy of the three kinds of features."""

    name = "knn"
    classify = staticmethod(classify)

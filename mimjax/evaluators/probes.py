"""k-NN and a linear probe on frozen features: chosen on training images, scored on test images.

Every (pool, layer), standardization and strength is tried on a validation split carved from the
training split; the winner is refitted on the whole training split. Test labels enter in one line,
after the choice. All three rows of the table are searched in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from mimjax import stopping
from mimjax.inference.features import ROWS, FeatureBank, Splits
from mimjax.task import TrainState

VALIDATION = 0.2
# (x [n d], y int [n] in 0..c-1, other x [m d]) -> for every setting its name and predictions [m]
Classify = Callable[[np.ndarray, np.ndarray, np.ndarray], Iterator[tuple[str, np.ndarray]]]


class Score(NamedTuple):
    """What one row of the table says.

    Attributes:
      accuracy: on the test split, percent; validation: on the validation split, percent.
      features: the chosen candidate, "mean of block_03".
      setting: standardization and strength, "standardized, k=5".
    """

    accuracy: float
    validation: float
    features: str
    setting: str


def search(features: dict[str, Splits], labels: Splits, classify: Classify) -> Score:
    """The best setting of all candidates, and its accuracy on the test split.

    Args:
      features: candidates by name.
      labels: int [n] of both splits.
      classify: fits on some rows and predicts others, for every setting of its own.
    """
    classes, y = np.unique(labels.train, return_inverse=True)
    fit, held = carve(y)
    best = (-1.0, "", False, "")
    for name, x in features.items():
        for scaled in (False, True):
            stopping.sync()
            a, b = standardize(x.train[fit], x.train[held], scaled)
            for setting, guess in classify(a, y[fit], b):
                accuracy = float((guess == y[held]).mean())
                if accuracy > best[0]:  # the first of equals: no further information decides
                    best = accuracy, name, scaled, setting
    validation, name, scaled, setting = best
    a, b = standardize(*features[name], scaled)
    guess = dict(classify(a, y, b))[setting]
    accuracy = float((classes[guess] == labels.test).mean())
    words = f"{'standardized, ' if scaled else ''}{setting}"
    return Score(100 * accuracy, 100 * validation, name, words)


def carve(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows to fit on and validation rows, stratified by class; the same for every run seed."""
    rng = np.random.default_rng(0)
    place = np.empty(len(y))
    for label in np.unique(y):
        rows = np.flatnonzero(y == label)
        # Evenly spaced from a random start: classes too small to be cut are cut now and then.
        place[rows] = (rng.permutation(len(rows)) + rng.random()) / len(rows)
    order = np.argsort(place, kind="stable")
    cut = max(1, round(VALIDATION * len(y)))
    return np.sort(order[cut:]), np.sort(order[:cut])


def standardize(
    train: np.ndarray, other: np.ndarray, scaled: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Zero mean and unit variance by the statistics of `train`, or nothing; float32."""
    if not scaled:
        return train, other
    mean, std = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
    # A pixel that never changes in training must not blow up a test image in which it does.
    std = np.where(std > 1e-5 * max(std.max(), 1e-30), std, np.inf)
    return ((train - mean) / std).astype(np.float32), ((other - mean) / std).astype(np.float32)


class Probe:
    """A classifier on frozen features; yields raw_pixels, untrained and pretrained in percent.

    Attributes:
      name: the metric's prefix.
      classify: see `search`.
      scores: of each row, at the last call; those without training are computed once.
    """

    name: str
    classify: Classify

    def __init__(self, bank: FeatureBank):
        self.bank = bank
        self.scores: dict[str, Score] = {}

    def __call__(self, state: TrainState, frozen: Any) -> Iterator[tuple[str, float]]:
        for row in ROWS:
            if row == "pretrained" or row not in self.scores:
                features = self.bank.read(row, state)
                self.scores[row] = search(features, self.bank.labels, self.classify)
            yield row, self.scores[row].accuracy


KS = (1, 3, 5, 10, 20)
CHUNK = 4096  # rows whose similarities are held at a time
TINY = 1e-3  # float32 cannot tell shorter distances of unit vectors apart


def vote(x: np.ndarray, y: np.ndarray, other: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Predict the rows of `other` at every k, by votes weighted by 1 / distance.

    The same as scikit-learn's KNeighborsClassifier(weights="distance") on features of unit length,
    but one neighbor search serves every k. See `Classify`.
    """
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
    classify = staticmethod(vote)


ALPHAS = tuple(10.0**e for e in range(-3, 5))


def ridge(x: np.ndarray, y: np.ndarray, other: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Predict the rows of `other` at every alpha, by ridge regression on +-1 targets.

    The same as scikit-learn's RidgeClassifier, but one eigendecomposition serves every strength.
    In float64, with an intercept; with more features than rows the dual problem is solved. It is a
    quick reading beside training, not the papers' linear probing. See `Classify`.
    """
    mean = x.mean(0, dtype=np.float64)
    x, other = x - mean, other - mean
    target = 2 * np.eye(y.max() + 1)[y] - 1
    center = target.mean(0)
    primal = x.shape[1] <= x.shape[0]
    eigenvalues, vectors = np.linalg.eigh(x.T @ x if primal else x @ x.T)
    eigenvalues = np.maximum(eigenvalues, 0)[:, None]
    # scores = other (X'X + a)^-1 X'T, or other X' (XX' + a)^-1 T: diagonal in the eigenbasis
    left = other @ vectors if primal else other @ (x.T @ vectors)
    right = vectors.T @ (x.T @ (target - center) if primal else target - center)
    for alpha in ALPHAS:
        scores = left @ (right / (eigenvalues + alpha)) + center
        yield f"alpha={alpha:g}", scores.argmax(1)


class LinearProbe(Probe):
    """Ridge accuracy of the three kinds of features."""

    name = "linear"
    classify = staticmethod(ridge)

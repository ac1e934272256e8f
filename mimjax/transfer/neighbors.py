"""Algorithms that score frozen features without training a network: k-NN and ridge regression.

`ranked` is the weighted k-NN of DINO and of the efficient-probing code, `vote` that of
scikit-learn, `ridge` its RidgeClassifier. Whatever the number of rows, the similarities that are in
memory at a time are bounded.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mimjax.errors import ConfigError, RunError

KS = (1, 3, 5, 10, 20)
ALPHAS = tuple(10.0**e for e in range(-3, 5))
# The grid of the efficient-probing code, whose tables show the best of it.
EP_KS = (5, 10, 15, 20, 50, 100, 200)
EP_TEMPERATURES = (0.07, 0.1, 0.2)
CHUNK = 4096  # rows whose similarities are in memory at a time, at most
SIMILARITIES = 2**26  # similarities that are in memory at a time: 256 MiB
TINY = 1e-3  # float32 does not resolve shorter distances between unit vectors


def standardize(
    train: np.ndarray, other: np.ndarray, scaled: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Scale both arrays to zero mean and unit variance by the statistics of `train`.

    Args:
      train, other: float32 [n d] and [m d].
      scaled: False = both are returned as they are.
    """
    if not scaled:
        return train, other
    mean, std = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
    # A pixel that never changes in training must not dominate a test image in which it does.
    std = np.where(std > 1e-5 * max(std.max(), 1e-30), std, np.inf)
    return ((train - mean) / std).astype(np.float32), ((other - mean) / std).astype(np.float32)


# ------------------------------------------------------------------ k-NN
class Ranked(NamedTuple):
    """What one setting of the weighted k-NN says.

    Attributes:
      k: number of neighbors.
      temperature: T of their weights exp(similarity / T).
      classes: the classes with the most votes, int [m r], the most likely first; of equal ones the
        smaller first.
    """

    k: int
    temperature: float
    classes: np.ndarray

    def top(self, labels: np.ndarray, n: int = 1) -> float:
        """Return the percentage of rows whose label is among the first n classes."""
        return 100.0 * float((self.classes[:, :n] == labels[:, None]).any(1).mean())


def check_ks(key: str, ks: Sequence[int], rows: int) -> None:
    """Check that there are at least as many training rows as neighbors.

    Args:
      key: the setting, for the error.

    Raises:
      ConfigError: a k is larger.
    """
    if max(ks) > rows:
        raise ConfigError(
            f"{key}: {max(ks)}, but there are {rows} training images; allowed: at most {rows}"
        )


def ranked(
    x: np.ndarray,
    y: np.ndarray,
    other: np.ndarray,
    ks: Sequence[int] = EP_KS,
    temperatures: Sequence[float] = EP_TEMPERATURES,
    top: int = 5,
    classes: int | None = None,
) -> Iterator[Ranked]:
    """Rank the classes of the rows of `other` at every k and T, by cosine similarity.

    A neighbor votes for its class with weight exp(similarity / T). One search for neighbors serves
    the whole grid.

    Args:
      x, other: features, float32 [n d] and [m d]; they are brought to length 1.
      y: classes of `x`, int [n] from 0.
      ks: numbers of neighbors, at most n.
      top: how many classes are kept of each row.
      classes: their number; None = those of `y`.

    Raises:
      ConfigError: a k is above n.
    """
    check_ks("ks", ks, len(x))
    similarity, ids = neighbors(unit(x), unit(other), max(ks))
    classes, voters = int(y.max()) + 1 if classes is None else classes, y[ids]
    for temperature in temperatures:
        # the largest weight is 1, so that none overflows; votes are compared within a row alone
        weight = np.exp((similarity - similarity[:, :1]).astype(np.float64) / temperature)
        for k in ks:
            first = [
                ranking(weight[i : i + CHUNK, :k], voters[i : i + CHUNK, :k], classes, top)
                for i in range(0, len(other), CHUNK)
            ]
            yield Ranked(k, temperature, np.concatenate(first))


def ranking(weight: np.ndarray, voters: np.ndarray, classes: int, top: int) -> np.ndarray:
    """Return the `top` classes with the most votes, int [m top], from weights and classes [m k]."""
    rows = np.arange(len(weight))[:, None] * classes
    votes = np.bincount((rows + voters).ravel(), weight.ravel(), len(weight) * classes)
    return np.argsort(-votes.reshape(-1, classes), axis=1, kind="stable")[:, :top]


def vote(
    x: np.ndarray, y: np.ndarray, other: np.ndarray, ks: Sequence[int] = KS
) -> Iterator[tuple[str, np.ndarray]]:
    """Predict the rows of `other` at every k, by votes weighted by 1 / distance; see `Classify`.

    The result is that of scikit-learn's KNeighborsClassifier(weights="distance") on features of
    unit length, but one search for neighbors serves every k.

    Args:
      ks: increasing; numbers above n are left out.
    """
    ks = [k for k in ks if k <= len(x)]
    if not ks:
        raise RunError(f"k-NN: no k of `ks` is at most {len(x)}, the readable training images")
    similarity, ids = neighbors(unit(x), unit(other), ks[-1])
    weight = 1 / np.maximum(np.sqrt(np.maximum(2 - 2 * similarity, 0)), TINY)
    votes = np.zeros((len(other), y.max() + 1))
    for j in range(ks[-1]):
        votes[np.arange(len(other)), y[ids[:, j]]] += weight[:, j]
        if j + 1 in ks:
            yield f"k={j + 1}", votes.argmax(1)


def unit(x: np.ndarray) -> np.ndarray:
    """Return the rows [n d] at length 1."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def neighbors(x: np.ndarray, other: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k most similar rows of `x` for each row of `other`, the most similar first.

    Returns:
      Similarities float32 [m k] and rows int [m k]; of equally similar rows the first one first.
    """
    values, ids = [], []
    rows = min(CHUNK, max(SIMILARITIES // len(x), 1))
    if jax.default_backend() != "cpu":
        return neighbors_on_device(x, other, k, rows)
    for i in range(0, len(other), rows):
        similarity = other[i : i + rows] @ x.T
        near = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        near.sort(axis=1)  # Of equally similar rows the first one comes first.
        nearest = np.take_along_axis(similarity, near, 1)
        order = np.argsort(-nearest, axis=1, kind="stable")
        ids.append(np.take_along_axis(near, order, 1))
        values.append(np.take_along_axis(nearest, order, 1))
    return np.concatenate(values), np.concatenate(ids)


def neighbors_on_device(
    x: np.ndarray, other: np.ndarray, k: int, rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return what `neighbors` does, computed on an accelerator in pieces of `rows`."""
    known, found = jnp.asarray(x), []
    for i in range(0, len(other), rows):
        piece = other[i : i + rows]
        filled = np.concatenate([piece, np.zeros((rows - len(piece), x.shape[1]), x.dtype)])
        values, ids = _nearest(known, filled, k)
        found.append((np.asarray(values)[: len(piece)], np.asarray(ids)[: len(piece)]))
    values, ids = zip(*found)
    return np.concatenate(values), np.concatenate(ids)


@functools.partial(jax.jit, static_argnums=2)
def _nearest(x: jax.Array, other: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    # `top_k` gives the first of equal numbers first
    values, ids = jax.lax.top_k(jnp.matmul(other, x.T, precision="highest"), k)
    return values, ids


# ------------------------------------------------------------------ linear
def ridge(
    x: np.ndarray, y: np.ndarray, other: np.ndarray, alphas: Sequence[float] = ALPHAS
) -> Iterator[tuple[str, np.ndarray]]:
    """Predict the rows of `other` at every alpha, by ridge regression on +-1 targets.

    The result is that of scikit-learn's RidgeClassifier, in float64 and with an intercept, but one
    eigendecomposition serves every alpha; with more features than rows the dual problem is solved.
    It is a quick reading beside training, not the papers' linear probing. See `Classify`.
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
    for alpha in alphas:
        scores = left @ (right / (eigenvalues + alpha)) + center
        yield f"alpha={alpha:g}", scores.argmax(1)

"""A linear probe on frozen features: ridge regression on +-1 targets, one column per class.

The same as scikit-learn's RidgeClassifier, but one eigendecomposition serves every strength. It is
a quick reading beside training, not the papers' linear probing (an SGD-trained classifier).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mimjax.evaluators.search import Probe

ALPHAS = tuple(10.0**e for e in range(-3, 5))


def classify(x: np.ndarray, y: np.ndarray, other: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Predictions for the rows of `other` at every alpha; see `search.Classify`.

    In float64, with an intercept. With more features than rows the dual problem is solved.
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
    classify = staticmethod(classify)

"""k-NN and a linear probe on frozen features, chosen on training images and scored on test images.

The search tries every (pool, layer) of the encoder, with and without standardization, and every
strength of a classifier. A part of the training split is left out for validation and decides; the
winner is refitted on the whole training split. The test labels are read in one line, after the
choice. Raw pixels, the untrained and the pretrained encoder are searched in the same way.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np

from mimjax import stopping
from mimjax.data.sources import check_classes
from mimjax.errors import ConfigError
from mimjax.evaluators.base import Evaluator, Measure
from mimjax.inference.features import ROWS, FeatureBank, Splits
from mimjax.inference.samples import Bench
from mimjax.task import TrainState
from mimjax.transfer.neighbors import ALPHAS, KS, ridge, standardize, vote
from mimjax.values import Count, Length, Positive

VALIDATION = 0.2
# (x [n d], y int [n] in 0..c-1, other x [m d]) -> for every setting its name and predictions [m]
Classify = Callable[[np.ndarray, np.ndarray, np.ndarray], Iterator[tuple[str, np.ndarray]]]


@dataclasses.dataclass(frozen=True)
class Probes(Evaluator):
    """Measure the accuracy of classifiers on frozen features; the source needs labels.

    Attributes:
      classifiers: "knn" votes among the nearest training images, "linear" is a ridge regression.
        Their values are logged as "eval/knn/<features>" and "eval/linear/<features>".
      ks: numbers of neighbors to choose from.
      alphas: strengths of the ridge penalty to choose from.
    """

    UNLABELED: ClassVar[bool] = True

    classifiers: Annotated[tuple[Literal["knn", "linear"], ...], Length(1)] = ("knn", "linear")
    ks: Annotated[tuple[Count, ...], Length(1)] = KS
    alphas: Annotated[tuple[Positive, ...], Length(1)] = ALPHAS

    def parts(self, name: str, bench: Bench) -> dict[str, Measure]:
        """Return one function per classifier; they share the features of an evaluation.

        Raises:
          ConfigError: a split has no labels, or fewer images than the smallest k.
        """
        check_labels(f"eval.{name}", bench)
        kinds: dict[str, Classify] = {
            "knn": functools.partial(vote, ks=sorted(set(self.ks))),
            "linear": functools.partial(ridge, alphas=self.alphas),
        }
        chosen = list(dict.fromkeys(self.classifiers))
        bank = FeatureBank(bench, readers=len(chosen))
        check_rows(f"eval.{name}", bank, min(self.ks) if "knn" in chosen else 1)
        # The shipped section logs as eval/knn/; another section of this class has its own names.
        prefix = "" if name == "probes" else f"{name}/"
        return {prefix + kind: Probe(bank, kind, kinds[kind]) for kind in chosen}


def check_labels(key: str, bench: Bench) -> None:
    """Check that both splits have labels.

    Args:
      key: names the section in errors.

    Raises:
      ConfigError: one has none, or the splits have different classes.
    """
    for split in (bench.train, bench.test):
        if not split.num_classes:
            raise ConfigError(
                f"{key}: on, but the source {split.name!r} has no labels; allowed: None, or a "
                "labeled source"
            )
        check_classes(split.source)


def check_rows(key: str, bank: FeatureBank, smallest: int) -> None:
    """Check that enough labeled training images are left beside those for validation.

    Args:
      key: names the section in errors.
      smallest: the smallest k.

    Raises:
      ConfigError: fewer are left than the smallest k.
    """
    labeled = int((bank.labels.train >= 0).sum())
    rows = labeled - validation_rows(labeled)
    if rows < smallest:
        raise ConfigError(
            f"{key}.ks: {smallest} or more, but only {max(rows, 0)} labeled training images are "
            "left beside those for validation; allowed: a k that is not larger, or more images "
            "(eval.max_images)"
        )


class Score(NamedTuple):
    """The result of a classifier on one kind of features: a row of the table.

    Attributes:
      accuracy: on the test split, percent.
      validation: accuracy on the validation images, percent.
      features: the chosen candidate, such as "mean of block_03".
      setting: standardization and strength, such as "standardized, k=5".

    Both accuracies are NaN where a candidate holds values that are not finite; `features` names it.
    """

    accuracy: float
    validation: float
    features: str
    setting: str


class Probe:
    """A classifier on frozen features; yields raw_pixels, untrained and pretrained in percent.

    Attributes:
      kind: "knn" or "linear".
      scores: the results of the last call by row; rows that no training changes are computed once.
    """

    def __init__(self, bank: FeatureBank, kind: str, classify: Classify):
        self.bank, self.kind, self.classify = bank, kind, classify
        self.scores: dict[str, Score] = {}

    def __call__(self, state: TrainState, frozen: Any) -> Iterator[tuple[str, float]]:
        for row in ROWS:
            if row == "pretrained" or row not in self.scores:
                features = self.bank.read(row, state)
                self.scores[row] = score = search(features, self.bank.labels, self.classify)
                if np.isnan(score.accuracy):
                    text = f"eval/{self.kind}/{row} is NaN: {score.features} is not finite"
                    self.bank.bench.warn(int(state.step), text)
            yield row, self.scores[row].accuracy


def search(features: dict[str, Splits], labels: Splits, classify: Classify) -> Score:
    """Choose the best candidate and setting on validation images, and score them on the test split.

    Args:
      features: candidates by name, float32 [n d] of both splits.
      labels: int [n] of both splits.
      classify: fits on some rows and predicts others, for every setting of its own.

    Returns:
      NaN where a candidate is not finite: an encoder that breaks in one place has no accuracy, and
      the candidates left would hide it.
    """
    for name, x in features.items():
        if not all(np.isfinite(part).all() for part in x):
            return Score(math.nan, math.nan, name, "not finite")
    classes, y = np.unique(labels.train, return_inverse=True)
    fit, validation = split_rows(y)
    best = (-1.0, "", False, "")
    for name, x in features.items():
        for scaled in (False, True):
            stopping.sync()
            a, b = standardize(x.train[fit], x.train[validation], scaled)
            for setting, guess in classify(a, y[fit], b):
                accuracy = float((guess == y[validation]).mean())
                if accuracy > best[0]:  # Of equal candidates the first one wins.
                    best = accuracy, name, scaled, setting
    validated, name, scaled, setting = best
    a, b = standardize(*features[name], scaled)
    guess = dict(classify(a, y, b))[setting]
    accuracy = float((classes[guess] == labels.test).mean())
    words = f"{'standardized, ' if scaled else ''}{setting}"
    return Score(100 * accuracy, 100 * validated, name, words)


def validation_rows(rows: int) -> int:
    """Return how many of the training rows are for validation."""
    return max(1, round(VALIDATION * rows))


def split_rows(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows to fit on and the validation rows, int [n] each, stratified by class.

    The split depends on the labels alone, so it is the same for every seed of a run.
    """
    rng = np.random.default_rng(0)
    place = np.empty(len(y))
    for label in np.unique(y):
        rows = np.flatnonzero(y == label)
        # The images of a class are spaced evenly over 0 to 1 from a random start: the first fifth
        # holds a fifth of each class, and of a class with fewer images one with that probability.
        place[rows] = (rng.permutation(len(rows)) + rng.random()) / len(rows)
    order = np.argsort(place, kind="stable")
    cut = validation_rows(len(y))
    return np.sort(order[cut:]), np.sort(order[:cut])

"""Labeled images of an evaluation: checks of classes, and which images heads learn from."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from mimjax.data import sources
from mimjax.data.images import fingerprint
from mimjax.errors import ConfigError
from mimjax.inference.features import label_names
from mimjax.inference.samples import Subset

HELD_OUT = 0.1


def check_labels(train: Subset, test: Subset) -> tuple[str, ...]:
    """Return the names of the classes, by number.

    Raises:
      ConfigError: a split has no labels, or a test image has a class that no training image has.
    """
    for subset in (train, test):
        if not subset.num_classes:
            raise ConfigError(
                f"evaluate: source {subset.name!r} has no labels; allowed: a folder of class "
                "folders, or another labeled source"
            )
    sources.check_classes(train.source)
    count = max(train.num_classes, test.num_classes)
    if count < 2:
        raise ConfigError(f"evaluate: {train.name!r} has one class; allowed: two or more")
    known = label_names(train) or [str(i) for i in range(count)]
    theirs = label_names(test) or known
    if list(theirs) != list(known):
        raise ConfigError(
            f"evaluate: training images have the classes {list(known)[:5]} ..., test images "
            f"{list(theirs)[:5]} ...; allowed: the same in both"
        )
    names = tuple(known)
    learned, asked = (np.unique(s.labels()[s.labels() >= 0]) for s in (train, test))
    for label in np.setdiff1d(asked, learned):
        raise ConfigError(
            f"evaluate: test images of class {names[label]!r}, which no training image has; "
            "allowed: classes that both splits have"
        )
    if len(learned) < len(names):
        missing = np.setdiff1d(np.arange(len(names)), learned)[0]
        raise ConfigError(
            f"evaluate: no training image of class {names[missing]!r}; allowed: one or more of each"
            " class (a larger --count)"
        )
    return names


def check_draws(
    train: Subset, texts: Sequence[str], seeds: Sequence[int], names: Sequence[str]
) -> None:
    """Check that every label fraction keeps images of each class.

    Raises:
      ConfigError: see `draw`.
    """
    labels = train.labels()
    for text in texts:
        draw(labels[labels >= 0], text, seeds[0], names)


def label_share(text: str) -> float | int:
    """Return the share of each class, or the number of its images, that --labels names.

    Raises:
      ConfigError: it is neither.
    """
    text = text.strip()
    if text == "all":
        return 1.0
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?%", text) and 0 < float(text[:-1]) <= 100:
        return float(text[:-1]) / 100
    if re.fullmatch(r"[1-9][0-9]*", text):
        return int(text)
    raise ConfigError(
        f"--labels: {text!r}; allowed: all, a share such as 10%, or a number of images per class"
    )


def draw(labels: np.ndarray, text: str, seed: int, names: Sequence[str]) -> np.ndarray:
    """Return the places of the labeled images that a protocol may use, int [k], increasing.

    Raises:
      ConfigError: a class keeps fewer than two images, one to learn from and one to choose on.
    """
    share = label_share(text)
    rng = np.random.default_rng([seed, 0])
    out = []
    for label, name in enumerate(names):
        places = np.flatnonzero(labels == label)
        count = share if isinstance(share, int) else round(share * len(places))
        if count > len(places):
            raise ConfigError(
                f"--labels: {text} images per class, and class {name!r} has {len(places)} training "
                "images; allowed: at most that many"
            )
        if count < 2:
            raise ConfigError(
                f"--labels: {text} keeps {count} of the {len(places)} training images of class "
                f"{name!r}; allowed: 2 or more of each class, one to learn from and one to choose "
                "settings on"
            )
        out.append(rng.permutation(places)[:count])
    return np.sort(np.concatenate(out))


def hold_out(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return places to learn from and places to choose on, a tenth of each class, at least one."""
    rng = np.random.default_rng([seed, 1])
    held = []
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        held.append(rng.permutation(places)[: max(1, round(HELD_OUT * len(places)))])
    chosen = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


@dataclasses.dataclass
class Places:
    """Some images of a split.

    Attributes:
      places: int [n].
    """

    subset: Subset
    places: np.ndarray

    def __post_init__(self):
        self.name, self.num_classes = self.subset.name, self.subset.num_classes
        self.label_name = self.subset.label_name
        self.class_names = label_names(self.subset)
        self.fingerprint = fingerprint([self.subset.fingerprint, self.places.tolist()])

    def __len__(self) -> int:
        return len(self.places)

    def image(self, index: int) -> Any:
        """Return an image as the source gives it."""
        return self.subset.image(int(self.places[index]))

    def label(self, index: int) -> int:
        """Return the label of an image."""
        return self.subset.label(int(self.places[index]))

"""A classifier on folders of other images of its classes: ImageNet-A, -R, -Sketch, -V2 and -C.

The classes of a folder are a subset of the model's, matched by the names of class folders. Of the
model's outputs those of the subset alone compete, as in the code of ImageNet-A and ImageNet-R. The
mean corruption error divides the errors of each corruption, summed over its severities, by those of
AlexNet (Hendrycks and Dietterich 2019, arXiv:1903.12261, section 4.2).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mimjax import progress
from mimjax.data.files import Files
from mimjax.data.pipeline import eval_batches
from mimjax.errors import ConfigError, RunError
from mimjax.inference.features import Readable
from mimjax.inference.model import Model

# AlexNet's errors, averaged over five severities (the authors' code, percent)
ALEXNET = {
    "gaussian_noise": 88.6428,
    "shot_noise": 89.4468,
    "impulse_noise": 92.2640,
    "defocus_blur": 81.9880,
    "glass_blur": 82.6268,
    "motion_blur": 78.5948,
    "zoom_blur": 79.8360,
    "snow": 86.6816,
    "frost": 82.6572,
    "fog": 81.9324,
    "brightness": 56.4592,
    "contrast": 85.3204,
    "elastic_transform": 64.6056,
    "pixelate": 71.7840,
    "jpeg_compression": 60.6500,
}
SEVERITIES = 5


class Accuracy(NamedTuple):
    """What a classifier reaches on a folder.

    Attributes:
      top1, top5: percent of the images.
      images: their number.
      classes: number of the folder's classes, which compete.
      left_out: path and reason of each file that could not be read.
    """

    top1: float
    top5: float
    images: int
    classes: int
    left_out: tuple[tuple[str, str], ...] = ()


def outputs_of(names: Sequence[str], model: Model, where: str) -> np.ndarray:
    """Return the output of the model that each class folder stands for, int [c].

    Folders that are all numbers, as ImageNet-V2's, are the numbers of the outputs where the model's
    classes have other names.

    Raises:
      ConfigError: a folder is no class of the model.
    """
    known = model.class_names
    if known is None and not all(name.isdecimal() for name in names):
        raise ConfigError(
            f"--images: {where} has class folders with names, and nothing tells the names of the "
            "model's classes; allowed: a model with class names (id2label or label_names in a "
            "config.json beside the file), or folders that are numbers"
        )
    if known is not None and set(names) <= set(known):
        return np.asarray([known.index(name) for name in names])
    if all(name.isdecimal() and int(name) < model.num_classes for name in names):
        return np.asarray([int(name) for name in names])
    assert known is not None
    missing = [name for name in names if name not in known]
    close = [n for n in known if n.strip().lower() == missing[0].strip().lower()]
    hint = f" (the model has {close[0]!r})" if close else ""
    raise ConfigError(
        f"--images: {where}: folder {missing[0]!r} is no class of the model{hint}; allowed: "
        f"{', '.join(known[:5])}{', ...' if len(known) > 5 else ''}"
    )


def accuracy(model: Model, folder: str, batch_size: int = 64, every: bool = False) -> Accuracy:
    """Return what a classifier reaches on the class folders below a folder.

    Args:
      every: whether all outputs of the model compete, those of no folder, too.

    Raises:
      ConfigError: the model has no classifier, or a folder is none of its classes.
      RunError: no image can be read, or the logits are not finite.
    """
    files = Files(folder, how=model.reader.how)
    names = files.class_names or ()
    if len(names) < 2:
        raise ConfigError(
            f"--images: {folder} has {len(names)} class folders; allowed: two or more"
        )
    outputs = outputs_of(names, model, folder)
    compete = np.arange(model.num_classes) if every else np.unique(outputs)
    top1 = top5 = count = 0
    source = Readable(files, model.reader.how.channels)
    what = os.path.basename(folder.rstrip("/"))
    for logits, labels in batches(model, source, min(batch_size, len(files)), what):
        if not np.isfinite(logits).all():
            raise RunError(f"--model: its logits of images in {folder} are not finite")
        right = outputs[labels]
        own = np.take_along_axis(logits, right[:, None], 1)
        rank = (logits[:, compete] > own).sum(1)
        top1, top5, count = top1 + (rank < 1).sum(), top5 + (rank < 5).sum(), count + len(labels)
    bad = tuple(source.bad[i] for i in sorted(source.bad))
    if not count:
        raise RunError(f"--images: no labeled image in {folder} can be read ({len(bad)} cannot)")
    share = lambda right: 100 * float(right) / count
    return Accuracy(share(top1), share(top5), count, len(names), bad)


def batches(
    model: Model, source: Readable, size: int, what: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield logits [b c] and labels [b] of the images that have one and can be read."""
    rows = eval_batches(
        source, {"image": model.view}, size, None, 0, augment=model.reader.augment, threads=8
    )
    with rows:
        for batch in progress.track(rows, what, -(-len(source) // size), "batch"):
            kept = (batch["weight"] > 0) & (batch["label"] >= 0)
            kept &= ~np.isin(batch["index"], list(source.bad))
            if kept.any():
                logits = model.classify(batch["image"], batch_size=size)
                yield np.asarray(logits)[kept], batch["label"][kept]


def corruptions(folder: str) -> list[str]:
    """Return the corruptions of ImageNet-C that a folder holds, in the paper's order."""
    there = set(os.listdir(folder)) if os.path.isdir(folder) else set()
    return [name for name in ALEXNET if name in there]


class Corruption(NamedTuple):
    """A corruption of ImageNet-C.

    Attributes:
      name: of `ALEXNET`.
      errors: percent, by severity from 1.
      relative: the sum of the errors over that of AlexNet, percent.
    """

    name: str
    errors: tuple[float, ...]
    relative: float


def corruption_errors(
    model: Model, folder: str, batch_size: int = 64, say: Callable[[str], None] = progress.say
) -> list[Corruption]:
    """Return the errors on each corruption in a folder laid out as ImageNet-C.

    Raises:
      ConfigError: a severity is missing.
    """
    out = []
    for name in corruptions(folder):
        errors = []
        for severity in range(1, SEVERITIES + 1):
            place = os.path.join(folder, name, str(severity))
            if not os.path.isdir(place):
                raise ConfigError(
                    f"--images: {place} is missing; allowed: severities 1 to {SEVERITIES} of every "
                    "corruption"
                )
            errors.append(100 - accuracy(model, place, batch_size).top1)
        mean = float(np.mean(errors))
        out.append(Corruption(name, tuple(errors), 100 * mean / ALEXNET[name]))
        say(f"{name}: error {mean:.2f} %, {out[-1].relative:.1f} % of AlexNet's")
    return out

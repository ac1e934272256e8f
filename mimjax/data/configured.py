"""A config's `data` section as sources and pipelines: which images, and how they are read."""

from __future__ import annotations

import dataclasses

import numpy as np

from mimjax.data.augment import Augment
from mimjax.data.bad_files import BadFiles
from mimjax.data.decoding import Decoding
from mimjax.data.index import Index
from mimjax.data.pipeline import Pipeline
from mimjax.data.sources import Files, Source, SourceConfig, open_source
from mimjax.errors import ConfigError
from mimjax.schema import Config, build
from mimjax.task import Task


def make_data(
    c: Config, task: Task, split: str, index: Index | None = None, source: Source | None = None
) -> Pipeline:
    """Return the data pipeline of one split, with the views and masks that the task asks for.

    Args:
      source: the images; None = those that the config names.

    Raises:
      ConfigError: the images have another number of channels than the task, or the augmentation
        does not suit them; more repeats than the batch has rows.
    """
    augment = build(Augment, c.data.augment, "data.augment")
    have, wanted = c.data.get("channels", 3), task.views["image"].channels
    if have != wanted:
        raise ConfigError(
            f"data.channels: {have}, but method.mean has {wanted} numbers; allowed: one mean and "
            "std per channel (mimjax stats computes them)"
        )
    augment.check(task.views, have)
    if augment.rand_augment is not None and (mean := getattr(task, "mean", ())):
        # timm's color for what is moved in from outside, by Python's rounding as there
        fill = tuple(min(255, round(255 * x)) for x in mean)
        augment = dataclasses.replace(augment, fill=fill)
    return Pipeline(
        source or make_split(c, split, index),
        views=task.views,
        augment=augment,
        sample=task.sample,
        batch_size=c.batch_size,
        seed=c.seed,
        bad_files=make_bad_files(c),
        repeats=c.data.get("repeats", 1),
    )


def make_bad_files(c: Config) -> BadFiles:
    """Return the list of bad files; configs of older versions lack `data.max_bad_fraction`."""
    return BadFiles(c.data.get("max_bad_fraction", 0.0))


def make_split(c: Config, split: str, index: Index | None = None) -> Source:
    """Return the images of a split of the configured source.

    Raises:
      ConfigError: a setting that the source does not read; missing files or packages.
    """
    files = Files(c.data.path or None, c.data.get("splits", "auto"), decoding(c), index)
    return open_source(source_config(c), split, files)


def source_config(c: Config) -> SourceConfig:
    """Return the settings of the configured source."""
    return build(SourceConfig, c.data.source, "data.source")


def decoding(c: Config) -> Decoding:
    """Return how files become images; see `make_bad_files` for missing keys."""
    return Decoding(**{f.name: c.data.get(f.name, f.default) for f in dataclasses.fields(Decoding)})


def sample_images(c: Config, data: Pipeline, count: int) -> np.ndarray:
    """uint8 [count h w c] training crops, the same at every start and on every host."""
    steps = -(-count // c.batch_size)
    crops = [data.batch(s)["image"] for s in range(steps)]
    return np.concatenate(crops)[:count]

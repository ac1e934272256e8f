"""Data: from a source of images to uint8 batches, by augmentation, masks and prefetching.

The batch of a step is a pure function of (seed, step, data), so a run can continue at any step.
Normalization and devices are the trainer's work, and no module here knows a method.
"""

from mimjax.data.augment import Augment
from mimjax.data.pipeline import Pipeline, eval_batches
from mimjax.data.sources import Source, SourceConfig, make_source

__all__ = ["Augment", "Pipeline", "Source", "SourceConfig", "eval_batches", "make_source"]

"""Images from a source to uint8 batches: sources, augmentation, the batch of a step, prefetching.

Everything here is a pure function of (seed, step, data), so a run can stop and go on anywhere.
Nothing here normalizes, touches a device or knows a method.
"""

from mimjax.data.augment import Augment
from mimjax.data.pipeline import Pipeline, eval_batches
from mimjax.data.sources import Source, SourceConfig, make_source

__all__ = ["Augment", "Pipeline", "Source", "SourceConfig", "eval_batches", "make_source"]

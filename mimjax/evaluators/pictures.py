"""Pictures of what is predicted of test images, as PNG files.

Their columns follow from the task's terms and targets, see `inference.presentation`. A task that
predicts nothing that can be shown gets no picture.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import jax

from mimjax.evaluators.base import Evaluator
from mimjax.inference.reconstruction import Painter, Sheet
from mimjax.inference.samples import Bench, Subset
from mimjax.task import TrainState
from mimjax.values import Count


@dataclasses.dataclass(frozen=True)
class Pictures(Evaluator):
    """Draw what the model reconstructs.

    Attributes:
      count: images in a picture; the same ones, with the same masks, at every step.
    """

    UNLABELED: ClassVar[bool] = True

    count: Count = 8

    def make(self, bench: Bench) -> PictureWriter:
        """Return the function that draws and writes."""
        return PictureWriter(bench, self.count)


class PictureWriter:
    """A writer of reconstruction_<step>.png through `bench.write`; it yields no values.

    Attributes:
      images: the images that are drawn.
      count: their number, at most what was asked for.
    """

    def __init__(self, bench: Bench, count: int):
        self.bench = bench
        self.images = Subset(bench.test, count)
        self.count = len(self.images)
        self.painter = Painter(bench.task, bench.seed, bench.jit)

    def __call__(self, state: TrainState, frozen: Any) -> Iterator[tuple[str, float]]:
        sheet = self.sheet(state, frozen)
        if sheet and jax.process_index() == 0:
            self.bench.write(f"reconstruction_{int(state.step):07d}.png", sheet.png())
        yield from ()

    def sheet(self, state: TrainState, frozen: Any) -> Sheet | None:
        """Return the picture's columns and each image's error; None where no picture is made."""
        if self.painter.possible is False:
            return None
        size = -(-self.count // self.bench.mesh.size) * self.bench.mesh.size
        sample = self.bench.task.sample
        (batch,) = self.bench.batches(self.images, sample=sample, batch_size=size)
        return self.painter.sheet(state, frozen, batch, self.count)

"""Pictures of fixed test images as PNG files.

A task that makes columns of its own (`Task.pictures`) gets these; one that predicts pixels at its
masked patches gets reconstructions; any other makes no picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax

from mimjax.inference.reconstruction import Painter, Sheet
from mimjax.inference.samples import Bench, Subset
from mimjax.task import TrainState


class Pictures:
    """Writes reconstruction_<step>.png; yields no values.

    Attributes:
      count: number of images; the same ones, with the same masks, at every step.
      write: (file name, PNG bytes) -> None, called by process 0 only.
    """

    name = "pictures"

    def __init__(self, bench: Bench, count: int, write: Callable[[str, bytes], None]):
        self.bench, self.write = bench, write
        self.images = Subset(bench.test, count)
        self.count = len(self.images)
        self.painter = Painter(bench.task, bench.seed, bench.jit)

    def __call__(self, state: TrainState, frozen: Any) -> Iterator[tuple[str, float]]:
        sheet = self.sheet(state, frozen)
        if sheet and jax.process_index() == 0:
            self.write(f"reconstruction_{int(state.step):07d}.png", sheet.png())
        yield from ()

    def sheet(self, state: TrainState, frozen: Any) -> Sheet | None:
        """The picture's columns and each image's error; None for a task that makes no picture."""
        if self.painter.possible is False:
            return None
        size = -(-self.count // self.bench.mesh.size) * self.bench.mesh.size
        mask_fn = self.bench.task.mask_fn
        (batch,) = self.bench.batches(self.images, mask_fn=mask_fn, batch_size=size)
        return self.painter.sheet(state, frozen, batch, self.count)

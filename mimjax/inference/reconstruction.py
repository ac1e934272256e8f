"""The evaluation step, and pictures of a batch: columns, caption and errors, compiled as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from mimjax.inference import presentation
from mimjax.plots import reconstructions
from mimjax.rng import named, step_key
from mimjax.task import Batch, LossOutput, Task, TrainState


def eval_step(
    state: TrainState, frozen: Any, batch: Batch, *, task: Task, seed: int = 0
) -> tuple[Any, LossOutput]:
    """Compute the loss of a batch without training behavior (no drop path, no update).

    Every call uses the same random key, so that values of different steps can be compared.

    Returns:
      The prepared batch (ids, targets) and the loss with its predictions.
    """
    key = step_key(seed, "eval", 0)
    prepared, _ = task.prepare(state, frozen, batch, named(key, "prepare"), False)
    key = named(key, "loss")
    return prepared, task.loss(state.params, state.model_state, prepared, key, state.step, False)


class Sheet(NamedTuple):
    """The contents of a picture, before it is drawn.

    Attributes:
      columns: name -> uint8 [b h w c], in the order of the picture.
      caption: the text below the columns.
      error: of each image, float32 [b], see `presentation.image_error`; None where the task has
        none.
    """

    columns: dict[str, np.ndarray]
    caption: str
    error: np.ndarray | None

    def png(self) -> bytes:
        """Return the picture as the bytes of a PNG file."""
        return reconstructions.png(reconstructions.draw(self.columns, self.caption))


class Painter:
    """Makes the columns of a picture from a batch; see `presentation` for which these are.

    Attributes:
      possible: whether the task makes pictures at all; None = not asked yet.
      order: names of the columns from left to right, known after the first picture.
    """

    def __init__(self, task: Task, seed: int = 0, jit: Callable[..., Any] = jax.jit):
        self.task, self.seed = task, seed
        self.predict = jit(self._predictions)
        self.possible: bool | None = None
        self.order: list[str] = []

    def sheet(self, state: TrainState, frozen: Any, batch: Any, count: int) -> Sheet | None:
        """Return columns and errors of the first `count` rows; None = the task has no picture.

        Args:
          batch: as the data pipeline makes it for evaluation, with what `task.sample` makes.
        """
        if self.possible is None:
            shapes = jax.eval_shape(self._predictions, state, frozen, batch)
            self.possible = bool(shapes["columns"])
        if not self.possible:
            return None
        arrays = jax.device_get(self.predict(state, frozen, batch))
        arrays = jax.tree.map(lambda x: x[:count], arrays)
        columns = {name: as_bytes(arrays["columns"][name]) for name in self.order}
        masked, note = 100 * arrays["masked"].mean(), presentation.note(self.task, self.order)
        share = f": {masked:.0f} % of the patches masked" if masked else ""
        caption = f"{type(self.task).__name__}, step {int(state.step):,}{share}. {note}"
        return Sheet(columns, caption.strip(), arrays.get("error"))

    def _predictions(self, state, frozen, batch):
        task = self.task
        prepared, out = eval_step(state, frozen, batch, task=task, seed=self.seed)
        made = presentation.columns(task, state.params, frozen, prepared, out.predictions)
        self.order = list(made)  # a dict comes back from jit sorted by name
        rows = len(next(iter(made.values()), ()))
        arrays = {"columns": made, "masked": presentation.masked_share(prepared, rows)}
        error = presentation.image_error(prepared, out.predictions)
        return arrays if error is None else arrays | {"error": error}


def as_bytes(images: np.ndarray) -> np.ndarray:
    """Return images in [0, 1] as uint8."""
    return (np.clip(images, 0, 1) * 255 + 0.5).astype(np.uint8)

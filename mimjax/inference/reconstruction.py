"""Reconstructions of a batch of images: columns, caption and errors of a picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mimjax.plots import reconstructions
from mimjax.task import Pretraining, Task, TrainState, pretraining
from mimjax.train.step import eval_step


class Sheet(NamedTuple):
    """The contents of a picture, before it is drawn.

    Attributes:
      columns: name -> uint8 [b h w c], in the order of the picture.
      caption: the text below the columns.
      error: `preds["error"]` of each image, float32 [b]; None where the task has none.
    """

    columns: dict[str, np.ndarray]
    caption: str
    error: np.ndarray | None

    def png(self) -> bytes:
        """Return the picture as the bytes of a PNG file."""
        return reconstructions.png(reconstructions.draw(self.columns, self.caption))


class Painter:
    """Makes the columns of a picture from a batch.

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
          batch: as the data pipeline makes it for evaluation, "mask" included where the task has
            a sampler.
        """
        if self.possible is None:
            shapes = jax.eval_shape(self._predictions, state, frozen, batch)
            self.possible = "columns" in shapes or self._has_pixels(shapes)
        if not self.possible:
            return None
        arrays = jax.device_get(self.predict(state, frozen, batch))
        return self._sheet(int(state.step), arrays, count)

    def _predictions(self, state, frozen, batch):
        task = self.task
        prepared, out = eval_step(state, frozen, batch, task=task, seed=self.seed)
        arrays = {"error": out.preds["error"]} if "error" in out.preds else {}
        columns = task.pictures(state.params, frozen, prepared, out.preds)
        if columns:
            self.order = list(columns)  # a dict comes back from jit sorted by name
            return arrays | {"columns": columns, "mask": prepared.get("mask", jnp.zeros((1, 1)))}
        arrays["image"] = batch["image"]
        if "pred" in out.preds and "ids_m" in prepared:
            arrays |= {"pred": out.preds["pred"], "ids_m": prepared["ids_m"]}
        return arrays

    def _has_pixels(self, shapes) -> bool:
        task = self.task
        return "pred" in shapes and isinstance(task, Pretraining) and task.pixel_space is not None

    def _sheet(self, step: int, arrays: dict[str, Any], count: int) -> Sheet:
        error = arrays["error"][:count] if "error" in arrays else None
        if "columns" in arrays:
            task = self.task
            tiles = {k: as_bytes(arrays["columns"][k][:count]) for k in self.order}
            masked, note = arrays["mask"].mean(), task.picture_note
        else:
            task = pretraining(self.task)
            norm = task.pixel_space or "none"
            arrays = {k: v[:count] for k, v in arrays.items()}
            tiles = reconstructions.reconstruct(
                arrays["image"],
                arrays["pred"],
                arrays["ids_m"],
                patch=task.encoder.patch,
                mean=task.mean,
                std=task.std,
                norm=norm,
            )
            masked = arrays["ids_m"].shape[1] / task.encoder.num_patches
            note = reconstructions.explain(norm)
        share = f": {100 * masked:.0f} % of the patches masked" if masked else ""
        caption = f"{type(task).__name__}, step {step:,}{share}. {note}"
        return Sheet(tiles, caption, error)


def as_bytes(images: np.ndarray) -> np.ndarray:
    """Return images in [0, 1] as uint8."""
    return (np.clip(images, 0, 1) * 255 + 0.5).astype(np.uint8)

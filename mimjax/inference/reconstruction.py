"""What a model reconstructs of a batch of images: columns, caption and errors of a picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mimjax.plots import reconstructions
from mimjax.task import Task, TrainState
from mimjax.train.step import eval_step


class Sheet(NamedTuple):
    """What a picture shows, before it is drawn.

    Attributes:
      columns: name -> uint8 [b h w c], in the order of the picture.
      caption: the text below.
      error: `preds["error"]` of each image, float32 [b]; None where the task has none.
    """

    columns: dict[str, np.ndarray]
    caption: str
    error: np.ndarray | None

    def png(self) -> bytes:
        """The picture as a file."""
        return reconstructions.png(reconstructions.draw(self.columns, self.caption))


class Painter:
    """Makes the columns of a picture from a batch.

    Attributes:
      possible: whether the task makes pictures at all; None = not asked yet.
      order: of the columns, known after the first picture.
    """

    def __init__(self, task: Task, seed: int = 0, jit: Callable[..., Any] = jax.jit):
        self.task, self.seed = task, seed
        self.predict = jit(self._predictions)
        self.possible: bool | None = None
        self.order: list[str] = []

    def sheet(self, state: TrainState, frozen: Any, batch: Any, count: int) -> Sheet | None:
        """Columns and errors of the first `count` rows; None for a task that makes no picture.

        Args:
          batch: as the data pipeline makes it for evaluation, "mask" included where the task has
            a sampler.
        """
        if self.possible is None:
            shapes = jax.eval_shape(self._predictions, state, frozen, batch)
            self.possible = "columns" in shapes or self._has_pixels(shapes)
        if not self.possible:
            return None
        found = jax.device_get(self.predict(state, frozen, batch))
        return self._sheet(int(state.step), found, count)

    def _predictions(self, state, frozen, batch):
        task = self.task
        prepared, out = eval_step(state, frozen, batch, task=task, seed=self.seed)
        found = {"error": out.preds["error"]} if "error" in out.preds else {}
        columns = task.pictures(state.params, frozen, prepared, out.preds)
        if columns:
            self.order = list(columns)  # a dict comes back from jit sorted by name
            return found | {"columns": columns, "mask": prepared.get("mask", jnp.zeros((1, 1)))}
        found["image"] = batch["image"]
        if "pred" in out.preds and "ids_m" in prepared:
            found |= {"pred": out.preds["pred"], "ids_m": prepared["ids_m"]}
        return found

    def _has_pixels(self, shapes) -> bool:
        task: Any = self.task
        if "pred" not in shapes or getattr(task, "target", "pixels") != "pixels":
            return False
        return shapes["pred"].shape[-1] == task.encoder.patch**2 * shapes["image"].shape[-1]

    def _sheet(self, step: int, found: dict[str, Any], count: int) -> Sheet:
        task: Any = self.task
        error = found["error"][:count] if "error" in found else None
        if "columns" in found:
            tiles = {k: as_bytes(found["columns"][k][:count]) for k in self.order}
            masked, note = found["mask"].mean(), task.picture_note
        else:
            norm = getattr(task, "pixel_norm", "none")
            found = {k: v[:count] for k, v in found.items()}
            tiles = reconstructions.reconstruct(
                found["image"],
                found["pred"],
                found["ids_m"],
                patch=task.encoder.patch,
                mean=task.mean,
                std=task.std,
                norm=norm,
            )
            masked = found["ids_m"].shape[1] / task.encoder.num_patches
            note = reconstructions.explain(norm)
        share = f": {100 * masked:.0f} % of the patches masked" if masked else ""
        caption = f"{type(task).__name__}, step {step:,}{share}. {note}"
        return Sheet(tiles, caption, error)


def as_bytes(images: np.ndarray) -> np.ndarray:
    """Images in [0, 1] as uint8."""
    return (np.clip(images, 0, 1) * 255 + 0.5).astype(np.uint8)

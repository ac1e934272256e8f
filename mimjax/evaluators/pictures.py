"""Reconstructions of fixed test images as PNG files; a task that predicts no pixels makes none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax

from mimjax import pictures
from mimjax.evaluators.common import Bench, Subset
from mimjax.train.state import TrainState
from mimjax.train.step import eval_step


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
        self._predict = bench.jit(self._predictions)
        self._possible: bool | None = None

    def __call__(self, state: TrainState, frozen: Any) -> Iterator[tuple[str, float]]:
        if self._possible is not False:
            size = -(-self.count // self.bench.mesh.size) * self.bench.mesh.size
            mask_fn = self.bench.task.mask_fn
            batches = self.bench.batches(self.images, mask_fn=mask_fn, batch_size=size)
            (batch,) = batches
            if self._possible is None:
                shapes = jax.eval_shape(self._predictions, state, frozen, batch)
                self._possible = self._has_pixels(shapes)
            if self._possible:
                self._draw(int(state.step), jax.device_get(self._predict(state, frozen, batch)))
        yield from ()

    def _predictions(self, state, frozen, batch):
        prepared, out = eval_step(state, frozen, batch, task=self.bench.task, seed=self.bench.seed)
        found = {"image": batch["image"]}
        if "pred" in out.preds and "ids_m" in prepared:
            found |= {"pred": out.preds["pred"], "ids_m": prepared["ids_m"]}
        return found

    def _has_pixels(self, shapes) -> bool:
        task: Any = self.bench.task
        if "pred" not in shapes or getattr(task, "target", "pixels") != "pixels":
            return False
        return shapes["pred"].shape[-1] == task.encoder.patch**2 * shapes["image"].shape[-1]

    def _draw(self, step: int, found: dict[str, Any]) -> None:
        if jax.process_index() != 0:
            return
        task: Any = self.bench.task
        norm = getattr(task, "pixel_norm", "none")
        found = {k: v[: self.count] for k, v in found.items()}
        tiles = pictures.reconstruct(
            found["image"],
            found["pred"],
            found["ids_m"],
            patch=task.encoder.patch,
            mean=task.mean,
            std=task.std,
            norm=norm,
        )
        masked = found["ids_m"].shape[1] / task.encoder.num_patches
        caption = (
            f"{type(task).__name__}, step {step:,}: {100 * masked:.0f} % of the patches masked. "
        )
        caption += pictures.explain(norm)
        self.write(f"reconstruction_{step:07d}.png", pictures.png(pictures.draw(tiles, caption)))

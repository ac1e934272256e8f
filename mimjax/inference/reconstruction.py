"""The evaluation step, and pictures of a batch: columns, caption and errors, compiled as one."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from mimjax.data.in_memory import Images, Reader
from mimjax.errors import ConfigError
from mimjax.inference import precision, presentation
from mimjax.plots import reconstructions
from mimjax.rng import example_seed, named, step_key
from mimjax.task import Batch, LossOutput, Pretraining, PyTree, Task, TrainState


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
    """A maker of a picture's columns from a batch; `presentation` says which these are.

    Attributes:
      possible: whether the task makes pictures at all; None = not asked yet.
      order: names of the columns from left to right, known after the first picture.
    """

    def __init__(self, task: Task, seed: int = 0, jit: Callable[..., Any] = jax.jit):
        self.task, self.seed = task, seed
        self.predict = jit(precision.precise(self._predictions))
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


class Reconstructor:
    """A drawer of a task's pictures, which reads frozen networks when one is asked for."""

    def __init__(
        self,
        task: Pretraining,
        state: Callable[[], TrainState],
        frozen: Callable[[], PyTree],
        seed: int = 0,
    ):
        self.task, self._load, self._seed = task, (state, frozen), seed
        self._ready: tuple[TrainState, PyTree] | None = None
        self._painters: dict[int, Painter] = {}  # a seed is part of what is compiled

    def __call__(
        self, images: Images, mask: np.ndarray | None, seed: int | None, reader: Reader
    ) -> Sheet:
        task, seed = self.task, self._seed if seed is None else seed
        batch: dict[str, Any] = reader(images, task.views)
        count = len(batch["image"])
        batch |= self._sampled(mask, count, seed)
        if self._ready is None:
            self._ready = self._load[0](), self._load[1]()
        painter = self._painters.setdefault(seed, Painter(task, seed))
        sheet = painter.sheet(*self._ready, batch, count)
        if sheet is None:
            raise ConfigError(
                f"reconstruct: {type(task).__name__} with this target predicts no pixels; allowed: "
                "models that do"
            )
        return sheet

    def _sampled(self, mask: np.ndarray | None, count: int, seed: int) -> dict[str, np.ndarray]:
        """Return the masks or ids of `count` images that the task makes on the host.

        Args:
          mask: takes the place of those that the task makes, if it fits; None = it does not.
        """
        task = self.task
        seeds = [example_seed(seed, 0, i, "eval_mask") for i in range(count)]
        made = [task.sample(random.Random(s), 0) for s in seeds]
        out = {name: np.stack([np.asarray(x[name]) for x in made]) for name in made[0]}
        if mask is None:
            return out
        if "mask" not in out:
            raise ConfigError("mask: the method chooses the patches itself; allowed: None")
        mask = np.asarray(mask)
        shape = (count, task.encoder.num_patches)
        if mask.dtype != bool or mask.shape != shape or (mask.sum(1) != task.num_masked).any():
            raise ConfigError(
                f"mask: {mask.dtype} {list(mask.shape)}; allowed: bool {list(shape)} with "
                f"{task.num_masked} masked patches in each image"
            )
        # a masking may have several masks of an image, [b s n], of which evaluation reads the first
        own = out["mask"]
        mask = mask.reshape(count, *(1,) * (own.ndim - 2), shape[1])
        return out | {"mask": np.broadcast_to(mask, own.shape)}


def as_bytes(images: np.ndarray) -> np.ndarray:
    """Return images in [0, 1] as uint8."""
    return (np.clip(images, 0, 1) * 255 + 0.5).astype(np.uint8)

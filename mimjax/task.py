"""The contract of every pretraining method and every transfer task.

A task is a frozen dataclass that holds linen modules, each applied with its own parameter subtree.
The trainer (`mimjax.train`) knows this file and nothing of any method; a method knows nothing of
flags, files or devices. `prepare` does all that needs no gradient; `loss` never receives `ema` or
`frozen`, so that no gradient can reach them.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from mimjax.errors import ConfigError

__all__ = ["Batch", "Clock", "ConfigError", "Key", "LossOutput", "MaskFn", "PyTree", "Task", "View"]

PyTree = Any
Batch = dict[str, Any]
MaskFn = Callable[[random.Random], np.ndarray]  # host-made masks: bool[n], True = masked
Key = jax.Array


class Clock(NamedTuple):
    """All that a method knows about a run's length."""

    steps_per_epoch: int
    total_steps: int

    def epoch(self, step):
        """The epoch (from 0) that `step` lies in; `step` may be traced."""
        return step // self.steps_per_epoch

    @property
    def epochs(self) -> float:
        return self.total_steps / self.steps_per_epoch


class View(NamedTuple):
    """One resized copy of the shared crop box, as the data pipeline delivers it (uint8 [b h w c]).

    Attributes:
      size: (height, width) in pixels.
      resample: "bicubic" (antialiased, Pillow's), "bilinear" or "lanczos".
      channels: that the task reads; the source has as many.
    """

    size: tuple[int, int]
    resample: str = "bicubic"
    channels: int = 3


class LossOutput(NamedTuple):
    """What `Task.loss` returns.

    Attributes:
      total: float32 scalar, the value that is minimised.
      metrics: float32 scalars, logged under these very names ("loss/pixel", "lambda").
      model_state: the new non-gradient state (BatchNorm statistics); {} for most methods.
      preds: arrays that evaluators and pictures read; dead code inside the compiled train step.
    """

    total: jax.Array
    metrics: dict[str, jax.Array]
    model_state: PyTree = {}
    preds: dict[str, jax.Array] = {}


class Reader(NamedTuple):
    """How a network that comes from elsewhere is read.

    Attributes:
      network: its module, whose settings must be those that it was trained with.
      mean, std: of the images that it sees, per channel on the scale 0 to 1; None = not its own.
    """

    network: Any = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Task:
    """Base class with defaults: most tasks have no EMA, nothing frozen and no second view.

    Attributes:
      FITTED: names in `frozen` that `fit_frozen` estimates; all others are read from files.
    """

    FITTED: ClassVar[tuple[str, ...]] = ()

    clock: Clock = Clock(1, 1)

    @property
    def views(self) -> dict[str, View]:
        """What the data pipeline delivers: "image"; "target_image" for tokenizers."""
        raise NotImplementedError(type(self).__name__)  # the base class is no task

    @property
    def mask_fn(self) -> MaskFn | None:
        """Host-made masks (the official block samplers need Python's `random`).

        Returns a function (random.Random) -> bool[n], True = masked; None when `prepare` makes
        the mask on the device or the task needs none.
        """
        return None

    def init(self, key: Key) -> tuple[PyTree, PyTree]:
        """Parameters and model_state. Pretraining methods have `params["encoder"]`."""
        raise NotImplementedError(type(self).__name__)

    def init_frozen(self, key: Key) -> PyTree:
        """{name: tree} of random weights in the right shapes, filled from `teacher.path`.

        A name is that of the tree in a workdir's parameters and in the tables of `torch_io`.
        """
        return {}

    def frozen_readers(self) -> dict[str, Reader]:
        """How each network of `init_frozen` that a workdir can hold is read, by name."""
        return {}

    def fit_frozen(self, frozen: PyTree, sample: Callable[[int], np.ndarray]) -> PyTree:
        """Frozen arrays estimated from data before step 0 (a PCA basis).

        `sample(n)` gives uint8 [n h w c] crops of the training set, the same at every start.
        """
        return frozen

    def init_ema(self, params: PyTree) -> PyTree:
        """float32 copies (never aliases: the train step donates its state)."""
        return {}

    def update_ema(self, ema: PyTree, old: PyTree, new: PyTree, step) -> PyTree:
        """Called after each optimizer update with the parameters before and after it."""
        return ema

    def prepare(
        self, ema: PyTree, frozen: PyTree, batch: Batch, key: Key, step, train: bool
    ) -> Batch:
        """Everything that needs no gradient: normalised images, ids, targets, teachers' outputs."""
        raise NotImplementedError(type(self).__name__)

    def loss(
        self, params: PyTree, model_state: PyTree, batch: Batch, key: Key, step, train: bool
    ) -> LossOutput:
        """The differentiated part, on a prepared (micro-)batch."""
        raise NotImplementedError(type(self).__name__)

    def own_targets(self, batch: Batch) -> dict[str, jax.Array]:
        """Targets in a prepared batch that the run's own averages made, by name, [b k d].

        Nothing outside the run holds such a target: it can shrink to a constant while the loss
        falls, so monitors watch its variance. {} where every target comes from data or from a
        frozen network.
        """
        return {}

    def pictures(
        self, params: PyTree, frozen: PyTree, batch: Batch, preds: dict[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """Columns of a picture by name, images float32 [b h w c] in [0, 1]; {} = none.

        Args:
          batch: as `prepare` returned it, with train=False; preds: of `loss` on it.
        """
        return {}

    @property
    def notes(self) -> tuple[str, ...]:
        """What is a guess in these settings, where no official source decides; said at the start.

        A network says it of itself (an attribute of this name); a method adds its own.
        """
        return tuple(getattr(getattr(self, "encoder", None), "notes", ()))

    @property
    def story(self) -> str:
        """What is predicted, and from what: one sentence for who has not read the paper."""
        return f"what {type(self).__name__} learns."

    @property
    def picture_note(self) -> str:
        """What a reader must know about the columns of `pictures`."""
        return ""

    @property
    def error_name(self) -> str:
        """What `preds["error"]` is, for tables."""
        return "mean squared, in target space, at fixed masks"


@struct.dataclass
class TrainState:
    """All of it is saved, sharded and donated together.

    Attributes:
      step: int32, number of optimizer updates made.
      params: float32 parameters, one subtree per network of the task.
      model_state: non-gradient state (BatchNorm statistics).
      ema: float32 averages that the task reads as targets.
      opt_state: optax state.
    """

    step: jax.Array
    params: PyTree
    model_state: PyTree
    ema: PyTree
    opt_state: PyTree


def init_state(key: jax.Array, *, task: Task, tx: optax.GradientTransformation) -> TrainState:
    """The state at step 0; run it under jit with out_shardings so that nothing is replicated."""
    params, model_state = task.init(key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state=model_state,
        ema=task.init_ema(params),
        opt_state=tx.init(params),
    )

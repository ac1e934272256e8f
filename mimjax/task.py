"""The contract of every pretraining method and every transfer task, and of the encoder.

A task is a frozen dataclass that holds linen modules, each applied with its own parameter subtree.
The trainer (`mimjax.train`) reads this file and no method; a method knows no flags, files or
devices. `prepare` makes everything that needs no gradient; `loss` never receives `ema` or `frozen`,
so that no gradient can reach them.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from mimjax.errors import ConfigError as ConfigError  # data sources import it from here

PyTree = Any
Batch = dict[str, Any]
MaskFn = Callable[[random.Random], np.ndarray]  # host-made masks: bool[n], True = masked
Key = jax.Array


class Clock(NamedTuple):
    """The length of a run, as methods and schedules read it."""

    steps_per_epoch: int
    total_steps: int

    def epoch(self, step):
        """Return the epoch (from 0) that `step` lies in; `step` may be traced."""
        return step // self.steps_per_epoch

    @property
    def epochs(self) -> float:
        return self.total_steps / self.steps_per_epoch


class View(NamedTuple):
    """A resized copy of the shared crop box, as the data pipeline delivers it (uint8 [b h w c]).

    Attributes:
      size: (height, width) in pixels.
      resample: "bicubic" (antialiased, Pillow's), "bilinear" or "lanczos".
      channels: number of channels that the task reads; the source has as many.
    """

    size: tuple[int, int]
    resample: str = "bicubic"
    channels: int = 3


# ------------------------------------------------------------------ the encoder
class Features(NamedTuple):
    """The output of an encoder.

    Attributes:
      tokens: [b p+n d] after the final norm: p prefix tokens (CLS), then n patches.
      blocks: the output of each block before the final norm, [b p+n d] each.
      prefix: number of prefix tokens; 1 = CLS, 0 = none.
    """

    tokens: jax.Array
    blocks: tuple[jax.Array, ...]
    prefix: int

    def read(self, pool: str = "mean", layer: int | None = None) -> jax.Array:
        """Return the features of one layer, as probes, pictures and exports read them.

        Args:
          pool: "cls" or "mean" of the patches ([b d]), or "all" tokens ([b p+n d]).
          layer: block index (negative counts from the end); None = after the final norm.
        """
        x = self.tokens if layer is None else self.blocks[layer]
        if pool == "cls":
            if not self.prefix:
                raise ValueError("pool=cls: this encoder has no CLS token; allowed: mean, all")
            return x[:, 0]
        return {"mean": x[:, self.prefix :].mean(1), "all": x}[pool]


class Network(nn.Module):
    """A linen module whose `apply` has the type of its result.

    Flax gives every call of `apply` the type "a result, or a tuple of a result and variables";
    which of the two it is depends on arguments that a type checker does not see.
    """

    if TYPE_CHECKING:

        def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any: ...


@runtime_checkable
class Encoder(Protocol):
    """The properties and calls of an encoder that methods, evaluators, exports and the API read.

    Called as encoder(images [b h w c], ids [b v], mask [b n], train) through `init` or `apply`, it
    returns `Features`. With `ids` it encodes these patches alone; `mask` is True where a patch
    is shown as the mask token.

    Attributes:
      image_size: height and width of the images in pixels.
      patch: side of a patch in pixels.
      width, depth, heads: numbers in a token, transformer blocks, heads of each attention.
      channels: number of channels of the images.
      use_mask_token: whether masked patches enter as a learned token instead of being left out.
      fuses: whether several blocks or stages are summed before the final norm.
      grid, num_patches: rows and columns of patches, and their product.
      num_prefix: number of tokens before the patches; 1 = CLS, 0 = none.
      positions: the coordinate that comes first in the fixed sine-cosine table, "xy" (column first)
        or "yx"; "" = there is no such table.
      notes: sentences about settings that are guesses, see `Task.notes`.
    """

    @property
    def image_size(self) -> tuple[int, int]: ...

    @property
    def patch(self) -> int: ...

    @property
    def width(self) -> int: ...

    @property
    def depth(self) -> int: ...

    @property
    def heads(self) -> int: ...

    @property
    def channels(self) -> int: ...

    @property
    def use_mask_token(self) -> bool: ...

    @property
    def fuses(self) -> bool: ...

    @property
    def grid(self) -> tuple[int, int]: ...

    @property
    def num_patches(self) -> int: ...

    @property
    def num_prefix(self) -> int: ...

    @property
    def positions(self) -> str: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    def check(self, key: str) -> None:
        """Raise a ConfigError for sizes that do not go together; `key` is the encoder's section."""

    def plain(self) -> Any:
        """Return the encoder of whole images: float32, without what only pretraining needs."""

    def clone(self, **changes: Any) -> Any: ...

    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any: ...

    def init_with_output(self, rngs: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]: ...

    def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any: ...


# ------------------------------------------------------------------ the task
class LossOutput(NamedTuple):
    """The output of `Task.loss`.

    Attributes:
      total: float32 scalar, the value that is minimized.
      metrics: float32 scalars, logged under these very names ("loss/pixel", "lambda").
      model_state: the new non-gradient state (BatchNorm statistics); {} for most methods.
      preds: arrays that evaluators and pictures read; dead code inside the compiled train step.
    """

    total: jax.Array
    metrics: dict[str, jax.Array]
    model_state: PyTree = {}
    preds: dict[str, jax.Array] = {}


class Reader(NamedTuple):
    """The settings with which the weights of another run or file are read.

    Attributes:
      network: the module, whose settings must be those that the weights were trained with.
      mean, std: statistics of the images that it sees, per channel on the scale 0 to 1; None = the
        network has none of its own.
    """

    network: Any = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Task:
    """The base class of all tasks. Its defaults: no average, nothing frozen, no second view.

    Attributes:
      FITTED: names in `frozen` that `fit_frozen` estimates; all others are read from files.
    """

    FITTED: ClassVar[tuple[str, ...]] = ()

    clock: Clock = Clock(1, 1)

    @property
    def views(self) -> dict[str, View]:
        """The images that the data pipeline delivers: "image"; for tokenizers "target_image"."""
        raise NotImplementedError(type(self).__name__)  # the base class is no task

    @property
    def mask_fn(self) -> MaskFn | None:
        """The sampler of host-made masks (the official block samplers need Python's `random`).

        It is a function (random.Random) -> bool[n], True = masked; None where `prepare` makes the
        mask on the device or the task needs none.
        """
        return None

    @property
    def num_masked(self) -> int:
        """Number of patches that are hidden in each image."""
        return 0

    def init(self, key: Key) -> tuple[PyTree, PyTree]:
        """Return parameters and model_state. Pretraining methods have `params["encoder"]`."""
        raise NotImplementedError(type(self).__name__)

    def init_frozen(self, key: Key) -> PyTree:
        """Return {name: tree} of random weights in the right shapes, filled from `teacher.path`.

        A name is that of the tree in a workdir's parameters and in the tables of `torch_io`.
        """
        return {}

    def frozen_readers(self) -> dict[str, Reader]:
        """Return, by name, how each network of `init_frozen` that a workdir can hold is read."""
        return {}

    def fit_frozen(self, frozen: PyTree, sample: Callable[[int], np.ndarray]) -> PyTree:
        """Return `frozen` with the arrays that are estimated before step 0 (a PCA basis).

        `sample(n)` gives uint8 [n h w c] crops of the training set, the same at every start.
        """
        return frozen

    def init_ema(self, params: PyTree) -> PyTree:
        """Return float32 copies (never aliases: the train step donates its state)."""
        return {}

    def update_ema(self, ema: PyTree, old: PyTree, new: PyTree, step) -> PyTree:
        """Return the average after an optimizer update from parameters `old` to `new`."""
        return ema

    def prepare(
        self, ema: PyTree, frozen: PyTree, batch: Batch, key: Key, step, train: bool
    ) -> Batch:
        """Make everything that needs no gradient: normalized images, ids, targets of teachers."""
        raise NotImplementedError(type(self).__name__)

    def loss(
        self, params: PyTree, model_state: PyTree, batch: Batch, key: Key, step, train: bool
    ) -> LossOutput:
        """Return the loss of a prepared (micro-)batch; this part is differentiated."""
        raise NotImplementedError(type(self).__name__)

    def own_targets(self, batch: Batch) -> dict[str, jax.Array]:
        """Return, by name, the targets [b k d] of a prepared batch that the run itself made.

        Nothing outside the run fixes such a target: it can shrink to a constant while the loss
        falls, so monitors watch its variance. {} where every target comes from data or from a
        frozen network.
        """
        return {}

    def pictures(
        self, params: PyTree, frozen: PyTree, batch: Batch, preds: dict[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """Return the columns of a picture by name, float32 [b h w c] in [0, 1]; {} = none.

        Args:
          batch: output of `prepare` with train=False; preds: of `loss` on it.
        """
        return {}

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences, printed at the start, about settings that no official source decides."""
        return ()

    @property
    def story(self) -> str:
        """What is predicted, and from what: one sentence for readers who do not know the paper."""
        return f"what {type(self).__name__} learns."

    @property
    def picture_note(self) -> str:
        """What a reader must know about the columns of `pictures`."""
        return ""

    @property
    def error_name(self) -> str:
        """What `preds["error"]` measures, for tables."""
        return "mean squared, in target space, at fixed masks"


class Pretraining(Task):
    """The base class of tasks that pretrain an encoder of images.

    Evaluators, exports and the API read these attributes. They are declared here and are no fields:
    a subclass, itself a frozen dataclass, gives each a place among its fields, and a default.

    Attributes:
      encoder: the network that is pretrained; its parameters are `params["encoder"]`.
      mean, std: statistics of the images, per channel on the scale 0 to 1.
    """

    encoder: Encoder
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def pixel_space(self) -> str | None:
        """How `preds["pred"]` are pixels, see `patches.normalize_patches`; None = they are none."""
        return None

    @property
    def notes(self) -> tuple[str, ...]:
        return self.encoder.notes


def pretraining(task: Task) -> Pretraining:
    """Return `task` as one that pretrains an encoder; the caller knows that it is one."""
    if not isinstance(task, Pretraining):
        raise TypeError(f"{type(task).__name__} has no encoder of images")
    return task


@struct.dataclass
class TrainState:
    """The arrays of a run, saved, sharded and donated together.

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

    if TYPE_CHECKING:

        def replace(self, **changes: Any) -> TrainState: ...


def init_state(key: jax.Array, *, task: Task, tx: optax.GradientTransformation) -> TrainState:
    """Return the state at step 0; run under jit with out_shardings, no device holds all of it."""
    params, model_state = task.init(key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state=model_state,
        ema=task.init_ema(params),
        opt_state=tx.init(params),
    )

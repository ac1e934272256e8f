"""The contract of every pretraining method and every transfer task.

A task is a frozen dataclass that holds linen modules, each applied with its own parameter subtree.
The trainer (`mimjax.train`) reads this file and no method; a method knows no flags, files or
devices. `prepare` makes everything that needs no gradient; `loss` never receives `ema` or `frozen`,
so that no gradient can reach them.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange
from flax import struct

from mimjax.errors import ConfigError as ConfigError  # data sources import it from here
from mimjax.networks import PLACES as PLACES
from mimjax.networks import ByPlace as ByPlace
from mimjax.networks import Classified as Classified
from mimjax.networks import Encoded as Encoded
from mimjax.networks import Encoder as Encoder
from mimjax.networks import EncoderNetwork as EncoderNetwork
from mimjax.networks import Features as Features
from mimjax.networks import Frozen as Frozen
from mimjax.networks import Network as Network
from mimjax.networks import PatchEncoder as PatchEncoder
from mimjax.networks import Predictor as Predictor
from mimjax.networks import Reader as Reader
from mimjax.networks import Student as Student
from mimjax.networks import gather_rows as gather_rows
from mimjax.networks import split_places as split_places
from mimjax.networks import take as take

PyTree = Any
Batch = dict[str, Any]
Key = jax.Array
# Makes the masks or ids of one image on the host: (rng, epoch) -> arrays by name.
Sampler = Callable[[random.Random, int], dict[str, np.ndarray]]


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
    """A resized crop of an image, as the data pipeline delivers it (uint8 [b h w c]).

    Attributes:
      size: (height, width) in pixels.
      resample: "bicubic" (antialiased, Pillow's), "bilinear" or "lanczos".
      channels: number of channels that the task reads; the source has as many.
      crop: views of one crop share box, flip and color jitter; another crop draws its own.
    """

    size: tuple[int, int]
    resample: str = "bicubic"
    channels: int = 3
    crop: str = "image"


# ------------------------------------------------------------------ between the parts of a method
@struct.dataclass
class Prepared:
    """What a loss reads: made once per step from the whole batch, constant to the gradient.

    Attributes:
      image: the student's normalized images, float32 [b h w c].
      ids_v, ids_m: ids of visible and masked patches, int32 [b v] and [b m].
      mask: bool [b n], True = masked; for encoders that see mask tokens. None = only ids are known.
      weight: weights of the masked patches, float32 [b m]; 0 = a patch that only fills the shape.
      attention: where a teacher looks, float32 [b n], if the masking reads it.
      targets: by term and place, what the term's loss compares: [b k d], codes [b k].
      rows: by term and place, the patches at which the target is known, [b k]; see `Known`.
      shown: by target and place, its values before any normalization; {} in training.
      shown_rows: by target and place, as `rows`.
      sequences: number of sets of masked patches, each of which is predicted apart.
    """

    image: jax.Array
    ids_v: jax.Array
    ids_m: jax.Array
    mask: jax.Array | None = None
    weight: jax.Array | None = None
    attention: jax.Array | None = None
    targets: dict[str, ByPlace] = struct.field(default_factory=dict)
    rows: dict[str, ByPlace] = struct.field(default_factory=dict)
    shown: dict[str, ByPlace] = struct.field(default_factory=dict)
    shown_rows: dict[str, ByPlace] = struct.field(default_factory=dict)
    sequences: int = struct.field(pytree_node=False, default=1)

    if TYPE_CHECKING:

        def replace(self, **changes: Any) -> Prepared: ...


class Known(NamedTuple):
    """What a target knows about the images of a batch.

    Attributes:
      values: by place, vectors [b k d] or codes [b k].
      rows: by place, which of the place's patches the values belong to, [b k]; None = all.
      state: the target's own model_state after the step.
    """

    values: ByPlace
    rows: ByPlace | None = None
    state: PyTree = {}


class Seen(NamedTuple):
    """What a target may look at: everything, since no gradient passes.

    Attributes:
      name: the target's field, the key of its model_state.
      frozen: its own frozen networks, see `Target.init_frozen`.
      batch: images by the names of their views, uint8 [b h w c]; labels.
      image: the student's normalized images, float32 [b h w c].
      ids: ids of the patches by place, [b k]; {} before the masking chose.
      state: of the run, before the step.
      key: for random numbers of this target.
      train, pieces: whether the step trains, and its number of micro-batches.
      network: a network of the method by the name of its field, for targets that apply one.
      hidden: what `Target.attention` computed already, or None.
    """

    name: str
    frozen: PyTree
    batch: Batch
    image: jax.Array
    ids: ByPlace
    state: TrainState
    key: Key
    train: bool
    pieces: int
    network: Callable[[str], Any]
    hidden: PyTree = None

    def weights(self, of: str) -> PyTree:
        """Return the run's parameters, "current" or their "average"."""
        return self.state.ema if of == "average" else self.state.params

    def in_pieces(self, fn: Callable[..., Any], *rows: Any) -> Any:
        """Return fn(key, *rows), computed one micro-batch after the other.

        No more activations are held at once than in the loss.
        """
        if self.pieces == 1:
            return fn(self.key, *rows)
        keys = jax.random.split(self.key, self.pieces)
        cut = jax.tree.map(lambda x: rearrange(x, "(b a) ... -> a b ...", a=self.pieces), rows)
        out = jax.lax.map(lambda xs: fn(xs[0], *xs[1]), (keys, cut))
        return jax.tree.map(lambda x: rearrange(x, "a b ... -> (b a) ..."), out)


class Prediction(NamedTuple):
    """What a term predicted, as its loss compares it, for evaluators and pictures.

    Attributes:
      values, target: by place, [b k d] each; codes [b k] in `target`.
      error: by place, the loss of each patch before weights, float32 [b k].
      rows: see `Prepared`.
    """

    values: ByPlace
    target: ByPlace
    error: ByPlace
    rows: ByPlace = {}


# ------------------------------------------------------------------ the task
class LossOutput(NamedTuple):
    """The output of `Task.loss`.

    Attributes:
      total: float32 scalar, the value that is minimized.
      metrics: float32 scalars, logged under these very names ("loss/pixel", "weight/pixel").
      model_state: the new non-gradient state (BatchNorm statistics); {} for most methods.
      predictions: by term, for evaluators and pictures; dead code in the compiled train step.
    """

    total: jax.Array
    metrics: dict[str, jax.Array]
    model_state: PyTree = {}
    predictions: dict[str, Prediction] = {}


@dataclasses.dataclass(frozen=True)
class Task:
    """The base class of all tasks. Its defaults: no average, nothing frozen, no second view.

    Attributes:
      learns_labels: whether the loss reads labels: a run then needs a labeled source whose classes
        stay the same. A setting `classes` takes their number from it where it is None.
      model_path: the setting that `--model` of `mimjax train` writes, dotted; "" = none.
    """

    learns_labels: ClassVar[bool] = False
    model_path: ClassVar[str] = ""

    clock: Clock = Clock(1, 1)

    @property
    def views(self) -> dict[str, View]:
        """The images that the data pipeline delivers, by name; "image" is the student's."""
        raise NotImplementedError(type(self).__name__)  # the base class is no task

    def sample(self, rng: random.Random, epoch: int) -> dict[str, np.ndarray]:
        """Make the masks or ids of one image on the host; they enter the batch under these names.

        {} where `prepare` makes them on the device or none are needed.
        """
        return {}

    @property
    def num_masked(self) -> int:
        """Number of patches that are hidden in each image."""
        return 0

    def init(self, key: Key) -> tuple[PyTree, PyTree]:
        """Return parameters and model_state. Pretraining methods have `params["encoder"]`."""
        raise NotImplementedError(type(self).__name__)

    @property
    def frozen(self) -> dict[str, Frozen]:
        """The parts of the task that own frozen networks, by name; see `Frozen`."""
        return {}

    def init_frozen(self, key: Key) -> PyTree:
        """Return random weights of all frozen networks, by the part that owns them."""
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
        self,
        state: TrainState,
        frozen: PyTree,
        batch: Batch,
        key: Key,
        train: bool,
        pieces: int = 1,
    ) -> tuple[Any, PyTree]:
        """Make everything that needs no gradient: normalized images, ids, targets of teachers.

        Args:
          state: before the step.
          batch: the whole batch of the step.
          pieces: number of micro-batches; targets are computed for one after the other.

        Returns:
          What `loss` reads, arrays [b ...], and what of model_state is new after the step.
        """
        raise NotImplementedError(type(self).__name__)

    def loss(
        self, params: PyTree, model_state: PyTree, prepared: Any, key: Key, step, train: bool
    ) -> LossOutput:
        """Return the loss of a prepared (micro-)batch; this part is differentiated."""
        raise NotImplementedError(type(self).__name__)

    @property
    def classified(self) -> Classified | None:
        """The head that it trains, with the encoder that it reads; None = it trains none."""
        return None

    def classify(self, state: TrainState, frozen: PyTree, batch: Batch) -> jax.Array:
        """Return logits in evaluation, float32 [b c]; only where labels are learned."""
        raise NotImplementedError(type(self).__name__)

    def lr_scale(self, params: PyTree) -> PyTree | None:
        """Return a factor of every parameter's learning rate, which joins those of the config.

        `params` are the parameters or their shapes; the factors are a tree like them. None = 1.
        """
        return None

    def decay_scale(self, params: PyTree) -> PyTree | None:
        """Return a factor of every parameter's weight decay, as `lr_scale` does of its rate."""
        return None

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences, printed at the start, about settings that no official source decides."""
        return ()

    def describe(self) -> list[tuple[str, ...]]:
        """Return what is learned as a table of strings, its header first; [] = there is none."""
        return []

    @property
    def story(self) -> str:
        """What is predicted, and from what: one sentence for readers who do not know the paper."""
        return f"what {type(self).__name__} learns."


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
    def notes(self) -> tuple[str, ...]:
        return self.encoder.notes

    def evaluated(self, state: TrainState) -> PyTree:
        """Return the encoder's parameters that evaluators and export read."""
        return state.params["encoder"]


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


@functools.lru_cache(maxsize=32)
def initial(task: Task) -> Callable[[jax.Array], tuple[PyTree, PyTree]]:
    """Return the task's `init`, jitted; equal tasks share one function, which is traced once.

    A run reads the initial shapes for its optimizer and its shardings, and the values at its start.
    """
    return jax.jit(task.init, inline=True)


def init_state(key: jax.Array, *, task: Task, tx: optax.GradientTransformation) -> TrainState:
    """Return the state at step 0; run under jit with out_shardings, no device holds all of it."""
    params, model_state = initial(task)(key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state=model_state,
        ema=task.init_ema(params),
        opt_state=tx.init(params),
    )

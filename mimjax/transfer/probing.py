"""Tasks that train heads on frozen features, one head or a grid of them side by side.

  prepare   features of the batch: as they come, or from the frozen encoder     no gradient
  loss      sum over heads of the cross entropy with the labels

Each head has parameters of its own, so that the loss of one moves no other, whatever the optimizer.
Heads of a grid differ in their learning rate, weight decay and, if asked for, in what they read.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from einops import rearrange

from mimjax import values
from mimjax.networks import Classified, Reader
from mimjax.rng import named
from mimjax.task import Batch, Frozen, Key, LossOutput, PyTree, Task, TrainState, View
from mimjax.transfer.frozen import FrozenEncoder
from mimjax.transfer.head import POOLS, Head, Reading
from mimjax.transfer.linear_probe import LinearProbe
from mimjax.values import Range


class Member(NamedTuple):
    """A head of a grid.

    Attributes:
      head: its network, sized.
      rate, decay: factors of the optimizer's learning rate and weight decay.
      other: what it reads instead of what its network names, as raw pixels.
    """

    head: Head
    rate: float = 1.0
    decay: float = 1.0
    other: Reading | None = None

    @property
    def reading(self) -> Reading:
        """What the head reads."""
        return self.other or self.head.reading


class Examples(NamedTuple):
    """What the loss reads.

    Attributes:
      features: by `feature_name`, float32 [b d] or [b n d].
      label: int32 [b], -1 = none.
      weight: float32 [b]; 0 = the row does not count.
    """

    features: dict[str, jax.Array]
    label: jax.Array
    weight: jax.Array


@dataclasses.dataclass(frozen=True)
class Heads(Task):
    """Heads on features that the batch brings.

    The batch holds "label" [b] and, under `feature_name(reading)`, the features of every reading.

    Attributes:
      members: the heads by name; their parameters have these names.
      shapes: of one example's features by reading, (d,) or (n, d).
      average: True divides the loss by the number of heads, as CAPI's code does. AdamW does not see
        it; rules that follow the gradient's length need the sum.
    """

    members: dict[str, Member] = dataclasses.field(default_factory=dict)
    shapes: dict[Reading, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    average: bool = False

    __hash__ = object.__hash__  # dictionaries have none; equal tasks need not share traces

    @property
    def views(self):
        return {}

    @property
    def readings(self) -> tuple[Reading, ...]:
        """The readings of all heads, each of them once."""
        return tuple(dict.fromkeys(m.reading for m in self.members.values()))

    def init(self, key: Key) -> tuple[PyTree, PyTree]:
        params, stats = {}, {}
        for name, member in self.members.items():
            x = jnp.zeros((2, *self.shapes[member.reading]))
            made: Any = member.head.init(named(key, "head"), x, True)  # all start alike
            params[name] = made["params"]
            if "stats" in made:
                stats[name] = made["stats"]
        return params, stats

    def lr_scale(self, params: PyTree) -> PyTree:
        return {k: jax.tree.map(lambda _, k=k: self.members[k].rate, v) for k, v in params.items()}

    def decay_scale(self, params: PyTree) -> PyTree:
        return {k: jax.tree.map(lambda _, k=k: self.members[k].decay, v) for k, v in params.items()}

    def features(self, frozen: PyTree, batch: dict[str, Any]) -> dict[str, jax.Array]:
        """Return the features of every reading by `feature_name`, float32 [b ...]."""
        names = [feature_name(r) for r in self.readings]
        return {name: batch[name].astype(jnp.float32) for name in names}

    def prepare(self, state, frozen, batch, key, train, pieces=1):
        weight = batch["label"] >= 0
        if "weight" in batch:
            weight &= batch["weight"] > 0
        features = self.features(frozen, batch)
        return Examples(features, batch["label"], weight.astype(jnp.float32)), {}

    def logits(
        self, params: PyTree, stats: PyTree, features: dict[str, jax.Array], train: bool = False
    ) -> tuple[dict[str, jax.Array], PyTree]:
        """Return the logits of every head, float32 [b c], and the new statistics.

        Heads of one form that read the same are computed side by side.
        """
        out, fresh = {}, {}
        for (head, reading), names in self.groups().items():
            stack = lambda trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)
            variables = {"params": stack([params[n] for n in names])}
            if names[0] in stats:
                variables["stats"] = stack([stats[n] for n in names])
            made, changed = jax.vmap(_applied(head, train), (0, None))(
                variables, features[feature_name(reading)]
            )
            for i, name in enumerate(names):
                out[name] = made[i]
                if name in stats:
                    fresh[name] = jax.tree.map(lambda x, i=i: x[i], changed["stats"])
        return out, fresh

    def groups(self) -> dict[tuple[Head, Reading], list[str]]:
        """Return the names of the heads that are equal networks and read the same."""
        groups: dict[tuple[Head, Reading], list[str]] = {}
        for name, member in self.members.items():
            groups.setdefault((member.head, member.reading), []).append(name)
        return groups

    def loss(self, params, model_state, prepared, key, step, train) -> LossOutput:
        logits, stats = self.logits(params, model_state, prepared.features, train)
        weight, label = prepared.weight, jnp.maximum(prepared.label, 0)
        count = jnp.maximum(weight.sum(), 1)
        losses, right = {}, {}
        for name, x in logits.items():
            each = optax.softmax_cross_entropy_with_integer_labels(x, label)
            losses[name] = (each * weight).sum() / count
            right[name] = ((x.argmax(-1) == label) * weight).sum() / count
        total = sum(losses.values(), jnp.zeros(()))
        if self.average:
            total /= len(losses)
        metrics = {f"loss/{k}": v for k, v in losses.items()}
        metrics |= {f"accuracy/{k}": v for k, v in right.items()}
        return LossOutput(total, metrics, model_state | stats)


@dataclasses.dataclass(frozen=True)
class Encoding(Heads):
    """Heads on features of images, which the frozen encoder computes in every step.

    Attributes:
      encode: (parameters of the encoder, uint8 images [b h w c], reading) -> features of a reading.
    """

    encode: Callable[[PyTree, jax.Array, Reading], jax.Array] = dataclasses.field(
        default=lambda params, images, reading: images
    )

    __hash__ = object.__hash__

    def features(self, frozen: PyTree, batch: dict[str, Any]) -> dict[str, jax.Array]:
        return {feature_name(r): self.encode(frozen, batch["image"], r) for r in self.readings}


def _applied(head: Head, train: bool) -> Any:
    """Return the function of variables and features that one head is."""

    def apply(variables: PyTree, x: jax.Array) -> tuple[jax.Array, PyTree]:
        return nn.Module.apply(head, variables, x, train, mutable=["stats"])

    return apply


def feature_name(reading: Reading) -> str:
    """Return the name of a reading's features in a batch, "features/mean/11"."""
    return f"features/{reading.pool}/{'norm' if reading.layer is None else reading.layer}"


# ------------------------------------------------------------------ one head, with its encoder
@dataclasses.dataclass(frozen=True)
class Probing(Task):
    """One head on the features of a frozen encoder, which are computed in every step.

    Images are augmented, so nothing is kept from epoch to epoch. The encoder is applied as in
    evaluation. Statistics of the BatchNorm are those of the whole batch, whatever the number of
    devices, where the published codes take the images of one device; with `accum` they are those of
    a micro-batch.

    Attributes:
      encoder: the frozen encoder.
      head: what is trained.
      classes: their number; None = that of the training data.
    """

    learns_labels: ClassVar[bool] = True
    model_path: ClassVar[str] = "method.encoder.path"

    encoder: FrozenEncoder = FrozenEncoder()
    head: Head = LinearProbe()
    classes: Annotated[int, Range(2)] | None = None

    def __post_init__(self):
        values.check(self, "method")
        self.encoder.check("method.encoder")
        if self.encoder.network is not None or self.classes is not None:
            self.sized.check("method.head", self.encoder.module)  # else a recipe, nobody's run yet

    @property
    def sized(self) -> Head:
        """The head for the encoder and the classes, of which there are none as long as no data."""
        return self.head.sized(self.encoder.module, self.classes or 0)

    @property
    def heads(self) -> Heads:
        """The head as a grid of one, by the name "head"."""
        head, encoder = self.sized, self.encoder.module
        if self.classes is None:
            raise ValueError("classes: None; allowed: a task whose classes the data told")
        width, pool = head.width(encoder), head.reading.pool
        tokens = {
            "patches": (encoder.num_patches,),
            "all": (encoder.num_prefix + encoder.num_patches,),
        }
        shape = *tokens.get(pool, ()), width
        return Heads(self.clock, {"head": Member(head)}, {head.reading: shape})

    @property
    def classified(self) -> Classified:
        of_frozen = lambda params, frozen: frozen["encoder"]["encoder"]
        reader = Reader(self.encoder.module, *self.encoder.statistics)
        return Classified(self.sized, reader, of_frozen, lambda encoder: encoder)

    @property
    def views(self) -> dict[str, View]:
        return {"image": self.encoder.view}

    @property
    def frozen(self) -> dict[str, Frozen]:
        return {"encoder": self.encoder.owned("method.encoder")}

    def init_frozen(self, key: Key) -> PyTree:
        return {"encoder": self.encoder.init_weights(key)}

    def init(self, key: Key) -> tuple[PyTree, PyTree]:
        return self.heads.init(key)

    def _read(self, frozen: PyTree, images: jax.Array) -> jax.Array:
        """Return what the head reads of images, float32 [b ...]."""
        features = self.encoder.encode(frozen, images)
        return features.read(*self.sized.reading).astype(jnp.float32)

    def features(self, frozen: PyTree, images: jax.Array, pieces: int = 1) -> dict[str, jax.Array]:
        """Return what the head reads of uint8 images [b h w c], computed in pieces."""
        cut = rearrange(images, "(b a) ... -> a b ...", a=pieces)
        read = functools.partial(self._read, frozen["encoder"])
        x = read(images) if pieces == 1 else jax.lax.map(read, cut)
        x = x if pieces == 1 else rearrange(x, "a b ... -> (b a) ...")
        return {feature_name(self.sized.reading): x}

    def prepare(self, state, frozen, batch, key, train, pieces=1):
        features = self.features(frozen, batch["image"], pieces)
        return self.heads.prepare(state, frozen, features | batch, key, train, pieces)

    def loss(self, params, model_state, prepared, key, step, train) -> LossOutput:
        out = self.heads.loss(params, model_state, prepared, key, step, train)
        shown = {"loss/class": out.metrics["loss/head"]}
        return out._replace(metrics=shown | {"train/top1": 100 * out.metrics["accuracy/head"]})

    def classify(self, state: TrainState, frozen: PyTree, batch: Batch) -> jax.Array:
        """Return logits in evaluation, float32 [b c].

        Rows of weight 0 must not enter statistics of a batch: others stand in their place.
        """
        features = self.features(frozen, batch["image"])
        if self.sized.of_batch:
            weight = batch["weight"]
            order = jnp.argsort(weight <= 0, stable=True)
            rows = jnp.arange(len(weight)) % jnp.maximum((weight > 0).sum(), 1)
            place = jnp.zeros_like(order).at[order].set(rows)  # a row that counts keeps its own
            features = {k: x[order[place]] for k, x in features.items()}
        return self.heads.logits(state.params, state.model_state, features)[0]["head"]

    @property
    def notes(self) -> tuple[str, ...]:
        return self.encoder.module.notes

    @property
    def story(self) -> str:
        (pool, layer), head = self.sized.reading, type(self.head).__name__
        count = f"{self.classes:,}" if self.classes else "the"
        depth = self.encoder.module.depth
        where = "after the norm" if layer is None else f"of block {layer % depth + 1} of {depth},"
        return (
            f"which of {count} classes an image belongs to, by the head {head}, which reads "
            f"{POOLS[pool]} {where} of a frozen {type(self.encoder.module).__name__}."
        )

"""Tasks that train heads on frozen features, one head or a grid of them side by side.

  prepare   features of the batch: as they come, or from the frozen encoder     no gradient
  loss      sum over heads of the cross entropy with the labels

Each head has parameters of its own, so that the loss of one moves no other, whatever the optimizer.
Heads of a grid differ in their learning rate, weight decay and, if asked for, in what they read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from mimjax.rng import named
from mimjax.task import Key, LossOutput, PyTree, Task
from mimjax.transfer.head import Head, Reading


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
        """What the heads read, each once."""
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

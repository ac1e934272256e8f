"""Heads: from an encoder's output to classes, and the BatchNorm that probes have before them.

A head declares what it reads of the encoder, a pool and a layer, so that features can be computed
once for all heads that read the same. Its parameters are the collection "params", and the running
statistics of its BatchNorm, if it has one, are the collection "stats".
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mimjax.errors import ConfigError
from mimjax.networks import Network, Student
from mimjax.values import Index

BN_EPS = 1e-6  # of the BatchNorm in the linear probes of MAE, BootMAE, CAE, MCMAE and of EP
BN_MOMENTUM = 0.1  # PyTorch's: the share of a batch in the running statistics
POOLS = {
    "cls": "the class token",
    "first": "the first token, whichever it is",
    "mean": "the mean of the patch tokens",
    "cls_mean": "the class token and the mean of the patch tokens, side by side",
    "patches": "the patch tokens",
    "all": "all tokens",
}


class Reading(NamedTuple):
    """What a head reads of an encoder.

    Attributes:
      pool: of `POOLS`; the last two are tokens [b n d], the others vectors [b d].
      layer: block from 0, negative from the end; None = after the final norm.
    """

    pool: str
    layer: int | None = None

    @property
    def words(self) -> str:
        """The reading in words, "mean of block 11"."""
        if self.pool not in POOLS:
            return self.pool
        return f"{self.pool} of {'the norm' if self.layer is None else f'block {self.layer}'}"


class Affine(NamedTuple):
    """What a head computes in evaluation, where it is a norm or none and a linear layer.

    Attributes:
      linear: its "kernel" [d c] and "bias" [c].
      norm: "scale" and "bias" [d] of the LayerNorm before it; {} = there is none.
    """

    linear: Any
    norm: Any = {}


class BatchNorm(nn.Module):
    """BatchNorm without scale and bias, as PyTorch's BatchNorm1d(affine=False).

    The variance of the batch is biased where it normalizes and unbiased where it enters the running
    variance; flax's own BatchNorm takes the biased one for both.

    Attributes:
      eps: added to the variance.
      momentum: share of the batch in the new running statistics.
      of_batch: whether the batch's own statistics normalize outside of training, too.
    """

    eps: float = BN_EPS
    momentum: float = BN_MOMENTUM
    of_batch: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b d"], train: bool = False) -> Float[Array, "b d"]:
        """Return x normalized by the batch's statistics in training, else by the running ones."""
        mean = self.variable("stats", "mean", jnp.zeros, x.shape[-1:], jnp.float32)
        var = self.variable("stats", "var", jnp.ones, x.shape[-1:], jnp.float32)
        if not (train or self.of_batch):
            return (x - mean.value) / jnp.sqrt(var.value + self.eps)
        here = x.mean(0)
        spread = jnp.square(x - here).mean(0)
        if train and not self.is_initializing():
            unbiased = spread * len(x) / max(len(x) - 1, 1)
            mean.value += self.momentum * (here - mean.value)
            var.value += self.momentum * (unbiased - var.value)
        return (x - here) / jnp.sqrt(spread + self.eps)


class Head(Network):
    """Base class of heads; a user's own defines `__call__(x, train)` and a field `pool`.

    Attributes:
      classes: number of classes; derived from the labels.
      layer: block that is read, from 0, negative from the end; None = after the final norm.
    """

    PLUGGABLE = True
    HOME = tuple(
        f"mimjax.transfer.{name}" for name in ("linear_probe", "attentive_probe", "fine_tune")
    )
    DERIVED = ("classes",)
    POOL: ClassVar[str] = "mean"  # what heads without a field `pool` read

    classes: int = 0
    layer: Index | None = None

    @property
    def of_batch(self) -> bool:
        """Whether evaluation depends on the other images of the batch."""
        return False

    @property
    def reading(self) -> Reading:
        """What the head reads."""
        return Reading(getattr(self, "pool", self.POOL), self.layer)

    def sized(self, encoder: Student, classes: int) -> Any:
        """Return the head for an encoder and a number of classes."""
        return self.clone(classes=classes)

    def width(self, encoder: Student) -> int:
        """Return the width of what the head reads."""
        width = encoder.out_width if self.layer is None else encoder.width
        return 2 * width if self.reading.pool == "cls_mean" else width

    def check(self, key: str, encoder: Student) -> None:
        """Check that the encoder gives what the head reads.

        Args:
          key: names the head's section in errors.

        Raises:
          ConfigError: it has no class token, or not so many blocks.
        """
        pool, layer = self.reading
        if pool in ("cls", "cls_mean") and not encoder.class_tokens:
            raise ConfigError(
                f"{key}.pool: {pool!r}, and this encoder has no class token; allowed: mean, or "
                "first (the token that the published code of MCMAE reads)"
            )
        if layer is not None and not -encoder.depth <= layer < encoder.depth:
            raise ConfigError(
                f"{key}.layer: {layer}, and the encoder has {encoder.depth} blocks; allowed: "
                f"{-encoder.depth} to {encoder.depth - 1}, or None for the final norm"
            )

    def affine(self, params: Any, stats: Any) -> Affine | None:
        """Return norm and linear layer that the head is; None = it computes something else.

        Args:
          params, stats: its parameters and statistics.
        """
        return None

    def __call__(self, x: Float[Array, "b *n d"], train: bool = False) -> Float[Array, "b c"]:
        """Return logits, float32."""
        raise NotImplementedError(type(self).__name__)

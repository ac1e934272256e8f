"""Losses of predicted patches: one class for each kind, computed in float32.

Which loss a method uses, and on which target, its terms decide (`methods/mim.py`); normalization of
pixel targets stands in `patches`.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax, nn
from jaxtyping import Array, Float

from mimjax.values import Positive

LN_EPS = 1e-6  # of all methods here; the defaults of timm and transformers differ


def standardize(
    x: Float[Array, "*s d"], eps: float = LN_EPS, ddof: int = 0
) -> Float[Array, "*s d"]:
    """Return (x - mean) / sqrt(var + eps) over the last axis, a LayerNorm without parameters.

    Args:
      ddof: subtracted from the number of elements in the variance; 1 = torch's `var`.
    """
    x = x.astype(jnp.float32)
    mean = x.mean(-1, keepdims=True)
    return (x - mean) * lax.rsqrt(x.var(-1, keepdims=True, ddof=ddof) + eps)


def unit(x: Float[Array, "*s d"]) -> Float[Array, "*s d"]:
    """Return x / max(|x|, 1e-12) over the last axis, as PyTorch's `normalize`."""
    # The inner maximum keeps the root's gradient finite at zero.
    return x * lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))


# ------------------------------------------------------------------ the losses of a term
@dataclasses.dataclass(frozen=True)
class Loss:
    """Base class: a distance of predictions to a target, one number for each patch.

    Attributes:
      kind: of the targets that it reads: "vectors" [b k d], "codes" [b k] or "probabilities".
      words: what it measures, for tables; "" = the name of the class.
    """

    PLUGGABLE: ClassVar[bool] = True
    HOME: ClassVar[tuple[str, ...]] = ("mimjax.losses",)
    kind: ClassVar[str] = "vectors"
    words: ClassVar[str] = ""

    def __call__(self, pred: jax.Array, target: jax.Array) -> jax.Array:
        """Return float32 [b k] of predictions [b k d] and a target."""
        raise NotImplementedError(type(self).__name__)


@dataclasses.dataclass(frozen=True)
class MSE(Loss):
    """The squared error, averaged over the numbers of a vector."""

    words: ClassVar[str] = "mean squared"

    def __call__(self, pred: jax.Array, target: jax.Array) -> jax.Array:
        return jnp.square(pred.astype(jnp.float32) - target.astype(jnp.float32)).mean(-1)


@dataclasses.dataclass(frozen=True)
class L1(Loss):
    """The absolute error, averaged over the numbers of a vector."""

    words: ClassVar[str] = "mean absolute"

    def __call__(self, pred: jax.Array, target: jax.Array) -> jax.Array:
        return jnp.abs(pred.astype(jnp.float32) - target.astype(jnp.float32)).mean(-1)


@dataclasses.dataclass(frozen=True)
class SmoothL1(Loss):
    """Half the squared error over beta below beta, the absolute error less half of beta above.

    Attributes:
      beta: where the parabola becomes a line.
    """

    words: ClassVar[str] = "smooth L1"
    beta: Positive = 1.0

    def __call__(self, pred: jax.Array, target: jax.Array) -> jax.Array:
        gap = jnp.abs(pred.astype(jnp.float32) - target.astype(jnp.float32))
        near = 0.5 * jnp.square(gap) / self.beta
        return jnp.where(gap < self.beta, near, gap - 0.5 * self.beta).mean(-1)


@dataclasses.dataclass(frozen=True)
class Cosine(Loss):
    """1 - cos of the angle between two vectors (CAE v2, equation 2).

    Where a term normalizes both vectors, MSE is twice this: use it with `normalize="none"`.
    The squared distance of the two at length one, MILAN's l2, is twice as large.
    """

    words: ClassVar[str] = "1 - cosine"

    def __call__(self, pred: jax.Array, target: jax.Array) -> jax.Array:
        return 1 - (unit(pred.astype(jnp.float32)) * unit(target.astype(jnp.float32))).sum(-1)


@dataclasses.dataclass(frozen=True)
class CrossEntropy(Loss):
    """-log softmax(prediction)[code], in nats; predictions are scores of all codes."""

    kind: ClassVar[str] = "codes"
    words: ClassVar[str] = "cross-entropy"

    def __call__(self, pred: jax.Array, target: jax.Array) -> jax.Array:
        logs = nn.log_softmax(pred.astype(jnp.float32))
        return -jnp.take_along_axis(logs, target[..., None], axis=-1)[..., 0]


@dataclasses.dataclass(frozen=True)
class SoftCrossEntropy(Loss):
    """Cross-entropy of predicted scores and given probabilities, in nats.

    Attributes:
      temperature: divides the scores.
    """

    kind: ClassVar[str] = "probabilities"
    words: ClassVar[str] = "cross-entropy"
    temperature: Positive = 0.1

    def __call__(self, pred: jax.Array, target: jax.Array) -> jax.Array:
        return -(target * nn.log_softmax(pred.astype(jnp.float32) / self.temperature)).sum(-1)

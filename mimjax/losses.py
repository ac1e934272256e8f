"""Losses on masked patches. Pure functions in float32, whatever the compute type."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mimjax.models.layers import LN_EPS


def standardize(
    x: Float[Array, "*s d"], eps: float = LN_EPS, ddof: int = 0
) -> Float[Array, "*s d"]:
    """(x - mean) / sqrt(var + eps) over the last axis: a LayerNorm without parameters."""
    x = x.astype(jnp.float32)
    mean = x.mean(-1, keepdims=True)
    return (x - mean) * lax.rsqrt(x.var(-1, keepdims=True, ddof=ddof) + eps)


def masked_mse(
    pred: Float[Array, "b m d"],
    target: Float[Array, "b m d"],
    weight: Float[Array, "b m"] | None = None,
    divide_by_weight: bool = False,
) -> Float[Array, ""]:
    """Squared error averaged over elements and masked patches.

    Args:
      pred, target: predictions and targets at the masked patches only.
      weight: per patch; None = 1.
      divide_by_weight: divide by the sum of the weights instead of the number of patches. BootMAE's
        code divides by the number, so its weighted loss is about 1.8 times larger.
    """
    error = patch_mse(pred, target)
    if weight is None:
        return error.mean()
    return (error * weight).sum() / (weight.sum() if divide_by_weight else weight.size)


def patch_mse(pred: Float[Array, "b m d"], target: Float[Array, "b m d"]) -> Float[Array, "b m"]:
    """Mean squared error of each patch."""
    return jnp.square(pred.astype(jnp.float32) - target.astype(jnp.float32)).mean(-1)

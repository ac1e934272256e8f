"""Losses on masked patches, as pure functions.

All are computed in float32, for any compute type of the networks. Which loss a method uses, and on
which target, is decided in `methods/`; normalization of pixel targets stands in `patches`.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax, nn
from jaxtyping import Array, Float, Int

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


def masked_mse(
    pred: Float[Array, "b m d"],
    target: Float[Array, "b m d"],
    weight: Float[Array, "b m"] | None = None,
    divide_by_weight: bool = False,
) -> Float[Array, ""]:
    """Return the squared error, averaged over elements and masked patches.

    Args:
      pred, target: predictions and targets at the masked patches only.
      weight: weight of each patch; None = 1.
      divide_by_weight: divide by the sum of the weights instead of the number of patches. BootMAE's
        code divides by the number, so its weighted loss is about 1.8 times as large.
    """
    error = patch_mse(pred, target)
    if weight is None:
        return error.mean()
    return (error * weight).sum() / (weight.sum() if divide_by_weight else weight.size)


def patch_mse(pred: Float[Array, "b m d"], target: Float[Array, "b m d"]) -> Float[Array, "b m"]:
    """Return the mean squared error of each patch."""
    return jnp.square(pred.astype(jnp.float32) - target.astype(jnp.float32)).mean(-1)


def cross_entropy(
    logits: Float[Array, "b m k"],
    codes: Int[Array, "b m"],
    weight: Float[Array, "b m"] | None = None,
) -> Float[Array, ""]:
    """Return the mean over masked patches of -log softmax(logits)[code], in nats.

    Args:
      logits: scores of the k codes at the masked patches.
      codes: the targets, 0 to k - 1.
      weight: weight of each patch, with mean 1 over the global batch; None = 1.
    """
    loss = patch_cross_entropy(logits, codes)
    return (loss if weight is None else loss * weight).mean()


def patch_cross_entropy(
    logits: Float[Array, "b m k"], codes: Int[Array, "b m"]
) -> Float[Array, "b m"]:
    """Return the cross-entropy of each patch in nats."""
    logs = nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.take_along_axis(logs, codes[..., None], axis=-1)[..., 0]


def distance(
    kind: str, pred: Float[Array, "b m d"], target: Float[Array, "b m d"]
) -> Float[Array, "b m"]:
    """Return the distance of each prediction to its target, float32.

    Args:
      kind: "cosine" = 1 - cos (CAE v2, eq. 2), "mse" or "smooth_l1" (beta 1), the last two averaged
        over channels (CAE v2, Table 3).
    """
    pred, target = pred.astype(jnp.float32), target.astype(jnp.float32)
    if kind == "cosine":
        return 1 - (unit(pred) * unit(target)).sum(-1)
    gap = jnp.abs(pred - target)
    if kind == "smooth_l1":
        return jnp.where(gap < 1, 0.5 * jnp.square(gap), gap - 0.5).mean(-1)
    return jnp.square(gap).mean(-1)


def unit(x: Float[Array, "*s d"]) -> Float[Array, "*s d"]:
    """Return x / max(|x|, 1e-12) over the last axis, as PyTorch's `normalize`."""
    # The inner maximum keeps the root's gradient finite at zero.
    return x * lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))

"""Feature vectors as colors: what a teacher's tokens say, and whether a student says the same."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from mimjax.losses import unit


def feature_colors(
    target: Float[Array, "b t d"], pred: Float[Array, "b t d"]
) -> tuple[Float[Array, "b t 3"], Float[Array, "b t 3"]]:
    """The three leading principal components of all targets, scaled to [0, 1]; both in them.

    Vectors are brought to length one first: only directions count. Where there are fewer than three
    components, the colors of the others are dark.
    """
    target, pred = unit(target.astype(jnp.float32)), unit(pred.astype(jnp.float32))
    mean = target.mean((0, 1))
    flat = (target - mean).reshape(-1, target.shape[-1])
    _, vectors = jnp.linalg.eigh(flat.T @ flat)
    basis = vectors[:, -1:-4:-1]
    basis = jnp.pad(basis, ((0, 0), (0, 3 - basis.shape[1])))
    ours, theirs = (pred - mean) @ basis, (target - mean) @ basis
    low, high = theirs.min((0, 1)), theirs.max((0, 1))
    scale = lambda x: jnp.clip((x - low) / jnp.maximum(high - low, 1e-12), 0, 1)
    return scale(theirs), scale(ours)

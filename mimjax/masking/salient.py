"""Masks chosen by what a frozen teacher attends to, on the device (MR-MAE's focused mimicking)."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mimjax import values

Selection = Literal["topk", "sample", "random"]  # of `select_visible`


def select_visible(
    attention: Float[Array, "b n"], num_visible: int, how: str, key: jax.Array
) -> tuple[Int[Array, "b v"], Int[Array, "b m"]]:
    """Visible and masked ids, both in raster order, chosen by what a teacher attends to.

    MR-MAE's focused mimicking. Its paper (arXiv 2303.05475) selects "the most salient tokens" and
    published no code: "topk" is its literal reading, "sample" what MILAN does.

    Args:
      attention: not negative; need not sum to 1.
      num_visible: static, as everything about the shapes.
      how: "topk" = the largest attention, of equal ones the first; "sample" = drawn without
        replacement with probabilities proportional to attention (Gumbel noise on its logarithm),
        those of none last; "random" = uniformly.
      key: not read by "topk".
    """
    score = attention.astype(jnp.float32)
    if how == "sample":
        score = jnp.log(score) + jax.random.gumbel(key, score.shape)
    elif how == "random":
        score = jax.random.uniform(key, score.shape)
    elif how != "topk":
        raise values.wrong("selection of patches", how, Selection)
    # argsort, not lax.top_k, for which the partitioner gathers a sharded batch
    order = jnp.argsort(-score, axis=1, stable=True)
    return jnp.sort(order[:, :num_visible], axis=1), jnp.sort(order[:, num_visible:], axis=1)

"""What an encoder attends to: the probabilities inside its blocks, for pictures and not for losses.

Training never forms them as an output (`layers.attend` divides by the sum last). Here they are
computed a second time, in float32, from what each block's first norm hands to its attention. Any
encoder fits whose blocks are named block_XX, with `norm1` before `attn` and a fused `qkv`; relative
position biases are captured where there are some.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from mimjax.models.layers import product

PyTree = Any


def num_blocks(params: PyTree) -> int:
    """Blocks whose attention can be read; 0 for an encoder without any (a convolutional one)."""
    names = [name for name in params if name.startswith("block_")]
    return sum("qkv" in params[name].get("attn", {}) for name in names)


def attention_maps(
    encoder: Any, params: PyTree, images: Float[Array, "b y x c"], layers: Sequence[int]
) -> Float[Array, "l b h t t"]:
    """Attention probabilities on full images, query first; each row sums to 1.

    Args:
      encoder: a linen module with `heads`, called as encoder(images).
      params: its parameters.
      images: normalized.
      layers: block numbers; negative ones count from the end.

    Returns:
      float32 [layers b heads tokens tokens]; the first tokens are the prefix (CLS), if any.
    """
    depth = num_blocks(params)
    captured = lambda module, _: (module.name or "").startswith(("norm1", "rel_pos"))
    # TPUs and GPUs round the factors of float32 products unless told not to
    with jax.default_matmul_precision("highest"):
        _, state = encoder.clone(dtype=jnp.float32).apply(
            {"params": params}, images, capture_intermediates=captured, mutable="intermediates"
        )
        seen, maps = state["intermediates"], []
        for i in (range(depth)[layer] for layer in layers):
            name = f"block_{i:02d}"
            bias = seen.get("rel_pos", seen.get(f"rel_pos_{i:02d}"))
            q, k, _ = projections(params[name]["attn"], output(seen[name]["norm1"]), encoder.heads)
            maps.append(probabilities(q, k, None if bias is None else output(bias)))
        return jnp.stack(maps)


def output(captured: PyTree) -> jax.Array:
    """What a captured module returned at its one call."""
    return captured["__call__"][0]


def projections(
    attn: PyTree, x: Float[Array, "b t d"], heads: int
) -> tuple[Float[Array, "b h t k"], Float[Array, "b h t k"], Float[Array, "b h t k"]]:
    """Queries, keys and values of the attention with parameters `attn` on its input."""
    fused = x @ attn["qkv"]["kernel"] + attn["qkv"].get("bias", 0.0)
    q, k, v = jnp.split(fused, 3, axis=-1)
    q, v = q + attn.get("q_bias", 0.0), v + attn.get("v_bias", 0.0)
    q, k, v = (rearrange(t, "b t (h k) -> b h t k", h=heads) for t in (q, k, v))
    return q, k, v


def probabilities(
    q: Float[Array, "b h t k"], k: Float[Array, "b h t k"], bias: Float[Array, "a h t t"] | None
) -> Float[Array, "b h t t"]:
    """softmax(q k^T / sqrt(width of a head) + bias) in float32."""
    logits = product("bhqd,bhkd->bhqk", q * q.shape[-1] ** -0.5, k)
    return jax.nn.softmax(logits if bias is None else logits + bias, axis=-1)

"""Where a frozen transformer's CLS token looks: the last block's attention, head by head.

Read from the same pass that makes the features: the output of the last block's qkv layer is kept
and CLS's one row of attention computed from it, a product of h x n x d numbers, whereas the layers'
own attention (with its custom gradient) stays as it is. For networks whose blocks are named
`block_00`... and hold `attn/qkv` (`models.vit.ViT`, `models.clip.CLIPVision`).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from mimjax.models.layers import product


def with_cls_attention(
    network: nn.Module, params: Any, images: Float[Array, "b h w c"], method: str | None = None
) -> tuple[Any, Float[Array, "b k n"]]:
    """What the network returns, and `cls_attention` of its last block, [b heads n].

    Args:
      params: the network's, without "params" around them.
      images: normalized.
      method: of the network; None = `__call__`.
    """
    last = f"{network.depth - 1:02d}"
    block, biases = f"block_{last}", ("rel_pos", f"rel_pos_{last}")
    wanted = ((block, "attn", "qkv"), *((name,) for name in biases))
    out, state = network.apply(
        {"params": params},
        images,
        method=method,
        capture_intermediates=lambda m, name: name == "__call__" and m.path in wanted,
        mutable=["intermediates"],
    )
    seen = state["intermediates"]
    rel_bias = [seen[name]["__call__"][0] for name in biases if name in seen]
    heads = getattr(network, "num_heads", None) or network.heads  # CLIP's loader derives them
    attention = cls_attention(
        seen[block]["attn"]["qkv"]["__call__"][0],
        heads,
        params[block]["attn"].get("q_bias"),
        rel_bias[0] if rel_bias else None,
    )
    return out, attention


def cls_attention(
    qkv: Float[Array, "b t f"],
    heads: int,
    q_bias: Float[Array, "d"] | None = None,
    rel_bias: Float[Array, "#b k t t"] | None = None,
) -> Float[Array, "b k n"]:
    """The first token's softmax over all tokens, without the weight it gives itself.

    As DINO's `get_last_selfattention()[:, :, 0, 1:]`: the rows are not normalized anew, so they
    sum to less than 1. Logits and softmax are float32 whatever the network computes in.

    Args:
      qkv: fused queries, keys and values of all tokens, CLS first.
      q_bias: where the layer has none of its own (BEiT).
      rel_bias: relative position bias of all pairs, added to the logits.
    """
    q, k, _ = jnp.split(qkv, 3, axis=-1)
    q = q[:, 0] if q_bias is None else q[:, 0] + q_bias.astype(q.dtype)
    q = rearrange(q, "b (k d) -> b k d", k=heads)
    k = rearrange(k, "b t (k d) -> b t k d", k=heads)
    logits = product("bkd,btkd->bkt", q * q.shape[-1] ** -0.5, k)
    if rel_bias is not None:
        logits = logits + rel_bias[:, :, 0]
    return jax.nn.softmax(logits, axis=-1)[..., 1:]

"""Attention probabilities, read out of a pretrained or frozen transformer; training makes none.

`attention_maps` gives all tokens of chosen blocks, for pictures: it computes them once more, in
float32, from the output of each block's first norm. `with_cls_attention` gives the CLS token's row
of the last block beside the features, for teachers that choose patches: it computes that one row
from the qkv layer's output, so the pass costs no more than without it. Both fit any network whose
blocks are named block_XX and hold `norm1` and `attn/qkv` (`ViT`, `ConvViT`, `CLIPVision`); relative
position biases are added where the network has them. In `attention_maps` positions may turn queries
and keys too (`PublishedViT`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from mimjax.models.attention import product
from mimjax.task import Encoder

PyTree = Any


def num_blocks(params: PyTree) -> int:
    """Return how many blocks have an attention that can be read; 0 for a convolutional encoder."""
    names = [name for name in params if name.startswith("block_")]
    return sum("qkv" in params[name].get("attn", {}) for name in names)


def attention_maps(
    encoder: Encoder, params: PyTree, images: Float[Array, "b y x c"], layers: Sequence[int]
) -> Float[Array, "l b h t t"]:
    """Return attention probabilities on full images, query first; each row sums to 1.

    Args:
      encoder: a linen module with `heads`, called as encoder(images).
      params: the encoder's parameters.
      images: normalized images.
      layers: block numbers; negative ones count from the end.

    Returns:
      float32 [layers b heads tokens tokens]; the first tokens are the prefix (CLS), if any.
    """
    depth = num_blocks(params)
    captured = lambda module, _: (module.name or "").startswith(("norm1", "rel_pos"))
    # TPUs and GPUs round the factors of float32 products unless this is set.
    with jax.default_matmul_precision("highest"):
        _, state = encoder.clone(dtype=jnp.float32).apply(
            {"params": params}, images, capture_intermediates=captured, mutable="intermediates"
        )
        seen, maps = state["intermediates"], []
        for i in (range(depth)[layer] for layer in layers):
            name = f"block_{i:02d}"
            bias = seen.get("rel_pos", seen.get(f"rel_pos_{i:02d}"))
            q, k, _ = projections(params[name]["attn"], output(seen[name]["norm1"]), encoder.heads)
            turning: Any = getattr(encoder, "turning", None)  # of encoders whose positions turn
            if turning and (turn := turning(params, name, images)):
                q, k = (turn(t.swapaxes(1, 2)).swapaxes(1, 2) for t in (q, k))
            maps.append(probabilities(q, k, None if bias is None else output(bias)))
        return jnp.stack(maps)


def output(captured: PyTree) -> jax.Array:
    """Return what a captured module returned; each module is called once."""
    return captured["__call__"][0]


def projections(
    attn: PyTree, x: Float[Array, "b t d"], heads: int
) -> tuple[Float[Array, "b h t k"], Float[Array, "b h t k"], Float[Array, "b h t k"]]:
    """Return the queries, keys and values that an attention's parameters `attn` make of its input.

    Args:
      attn: parameters "qkv" and, where the layer has them, "q_bias" and "v_bias".
      x: input of the attention, [b t d].
      heads: number of heads.
    """
    fused = x @ attn["qkv"]["kernel"] + attn["qkv"].get("bias", 0.0)
    q, k, v = jnp.split(fused, 3, axis=-1)
    q, v = q + attn.get("q_bias", 0.0), v + attn.get("v_bias", 0.0)
    q, k, v = (rearrange(t, "b t (h k) -> b h t k", h=heads) for t in (q, k, v))
    return q, k, v


def probabilities(
    q: Float[Array, "b h t k"], k: Float[Array, "b h t k"], bias: Float[Array, "a h t t"] | None
) -> Float[Array, "b h t t"]:
    """Return softmax(q k^T / sqrt(k) + bias) in float32, k the width of a head."""
    logits = product("bhqd,bhkd->bhqk", q * q.shape[-1] ** -0.5, k)
    return jax.nn.softmax(logits if bias is None else logits + bias, axis=-1)


def with_cls_attention(
    network: nn.Module, params: Any, images: Float[Array, "b h w c"], method: str | None = None
) -> tuple[Any, Float[Array, "b k n"]]:
    """Return the network's output and `cls_attention` of its last block, [b heads n].

    Args:
      network: a linen module with `depth` and `heads` (or `num_heads`).
      params: the network's parameters, without "params" around them.
      images: normalized images.
      method: name of the network's method that is called; None = `__call__`.
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
    seen: Any = state["intermediates"]
    rel_bias = [seen[name]["__call__"][0] for name in biases if name in seen]
    heads = getattr(network, "num_heads", None) or network.heads  # CLIP derives its heads
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
    """Return the attention of CLS to the patches, float32 [b k n], without its attention to itself.

    It is the same as DINO's `get_last_selfattention()[:, :, 0, 1:]`: the rows are not normalized
    anew, so they sum to less than 1. Logits and softmax are float32 in any compute type.

    Args:
      qkv: fused queries, keys and values of all tokens, CLS first.
      heads: number of heads, k.
      q_bias: bias of the queries where the qkv layer itself has none (BEiT).
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

"""Attention, relative position biases, and the transformer block that every encoder is made of.

Training never forms the attention probabilities as an output: `attend` divides by the sum of the
exponentials last, and its gradient is written out. `models.attention_maps` computes the
probabilities where a picture or a teacher needs them. Linear layers, norms and the residual branch
come from `models.layers`.
"""

from __future__ import annotations

import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int

from mimjax.models.layers import (
    Branch,
    Dtype,
    InitScheme,
    Mlp,
    dense,
    drop_rate,
    kernel_init,
    layer_norm,
    shard_batch,
)

Bias = Literal["full", "qv"]  # see `Attention`

# Products of compute-type factors are summed in float32.
product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def attend(q, k, v, bias=None):
    """Return softmax(q k^T / sqrt(d) + bias) v; the softmax is float32.

    Args:
      q: queries, [b nq h d].
      k, v: keys and values, [b nk h d].
      bias: added to the logits; float32 [1 h nq nk] (the same for all examples) or [b h nq nk];
        None = zero.

    Returns:
      [b nq h d] in v's dtype.
    """
    q, k, v = (rearrange(t, "b n h d -> b h n d") for t in (q * q.shape[-1] ** -0.5, k, v))
    return rearrange(_attend(q, k, v, bias), "b h n d -> b n h d")


def attend_by_heads(q, k, v, heads: int, bias=None, turn=None):
    """Return `attend` of queries, keys and values [b n h*d], with the heads side by side again.

    `turn` is a function of queries and of keys [b n h d], by which positions turn them.
    """
    q, k, v = (rearrange(t, "b n (h d) -> b n h d", h=heads) for t in (q, k, v))
    if turn is not None:
        q, k = turn(q), turn(k)
    return rearrange(attend(q, k, v, bias), "b n h d -> b n (h d)")


def with_bias(module: nn.Module, x, name: str):
    """Return x [... d] plus a parameter [d] of a compact module, zero at first."""
    bias = module.param(name, nn.initializers.zeros, (x.shape[-1],), jnp.float32)
    return x + bias.astype(x.dtype)


@jax.custom_jvp
def _attend(q, k, v, bias=None):
    """Attend with heads before tokens, [b h n d], and q scaled already.

    The division by the sum comes last: it touches d numbers per query instead of nk.
    """
    return _weighed(q, k, v, bias)[0]


def _weighed(q, k, v, bias):
    """The output, and the weights and their sum, of which the derivative is made."""
    logits = product("bhqd,bhkd->bhqk", q, k)
    if bias is not None:
        logits = logits + bias
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    total = weights.sum(-1, keepdims=True)
    weights = weights.astype(v.dtype)  # saved for the gradient: half the memory in bfloat16
    out = (product("bhqk,bhkd->bhqd", weights, v) / total).astype(v.dtype)
    return out, weights, total


@_attend.defjvp
def _attend_jvp(primals, tangents):
    """The derivative; transposed, it never forms the probabilities nor their gradient's mean."""
    q, k, v, bias = primals
    dq, dk, dv, dbias = tangents
    out, weights, total = _weighed(q, k, v, bias)
    # Of the softmax what all keys of a query share cancels, the maximum as well.
    dlogits = product("bhqd,bhkd->bhqk", dq, k) + product("bhqd,bhkd->bhqk", q, dk)
    if bias is not None:
        dlogits = dlogits + dbias
    moved = weights * dlogits
    dout = product("bhqk,bhkd->bhqd", moved.astype(v.dtype), v)
    dout = dout + product("bhqk,bhkd->bhqd", weights, dv) - out * moved.sum(-1, keepdims=True)
    return out, (dout / total).astype(v.dtype)


def relative_index(grid: tuple[int, int]) -> np.ndarray:
    """Return BEiT's indices into a relative-position table, int32 [1+n 1+n], query first.

    Token 0 is CLS. The last three rows of the table are CLS to patch, patch to CLS and CLS to
    itself.
    """
    h, w = grid
    y, x = np.divmod(np.arange(h * w), w)
    index = np.full((1 + h * w, 1 + h * w), table_rows(grid) - 1, np.int32)
    rows, columns = y[:, None] - y + h - 1, x[:, None] - x + w - 1
    index[1:, 1:] = rows * (2 * w - 1) + columns
    index[0, 1:], index[1:, 0] = table_rows(grid) - 3, table_rows(grid) - 2
    return index


def table_rows(grid: tuple[int, int]) -> int:
    """Return the number of rows of a relative-position table: one per displacement, 3 for CLS."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3


class RelativeBias(nn.Module):
    """BEiT's relative position bias: a learned number per head and displacement, zero at first.

    Attributes:
      heads: number of heads.
      grid: (height, width) in patches.
    """

    heads: int
    grid: tuple[int, int]

    @nn.compact
    def __call__(self, ids: Int[Array, "b v"] | None = None) -> Float[Array, "k h q q"]:
        """Return the bias of every pair of tokens, float32 [k h q q], query first.

        Args:
          ids: patches that the encoder sees; the tokens are then [CLS, ids] and k = b. None = the
            tokens are [CLS, all patches] and k = 1.
        """
        table = self.param(
            "table", nn.initializers.zeros, (table_rows(self.grid), self.heads), jnp.float32
        )
        index = jnp.asarray(relative_index(self.grid))[None]
        if ids is not None:
            ids = jnp.pad(ids + 1, ((0, 0), (1, 0)))
            index = index[0][ids[:, :, None], ids[:, None, :]]
        return rearrange(table[index], "k q p h -> k h q p")


class Attention(nn.Module):
    """Multi-head self-attention, or cross-attention where a context is passed.

    Attributes:
      heads: number of heads. The width of a head is width // heads, so the inner width may be
        smaller than that of the tokens (BootMAE: 512 // 12 = 42 per head, 504 inside).
      bias: "full" (q, k and v) or "qv" (BEiT, BootMAE: no key bias; stored as q_bias and v_bias).
      init_scheme, depth: see `layers.kernel_init`.
    """

    heads: int
    bias: Bias = "full"
    init_scheme: InitScheme = "mae"
    dtype: Dtype = jnp.float32
    depth: int = 0

    @nn.compact
    def __call__(self, x, context=None, rel_bias=None, turn=None):
        """Return [b t d] in `dtype`.

        Args:
          x: tokens that make the queries, [b t d].
          context: tokens that make keys and values, [b k d]; None = `x`.
          rel_bias: bias of the logits, see `attend`.
          turn: see `attend_by_heads`.
        """
        width = x.shape[-1]
        inner = self.heads * (width // self.heads)
        layer = functools.partial(dense, dtype=self.dtype, bias=self.bias == "full")
        init = functools.partial(kernel_init, self.init_scheme)
        if context is None:
            fused = layer(3 * inner, "qkv", init=init(3))(x)
            q, k, v = jnp.split(fused, 3, axis=-1)
        else:
            q = layer(inner, "q", init=init())(x)
            k, v = jnp.split(layer(2 * inner, "kv", init=init())(context), 2, axis=-1)
        if self.bias == "qv":
            q, v = with_bias(self, q, "q_bias"), with_bias(self, v, "v_bias")
        out = attend_by_heads(q, k, v, self.heads, rel_bias, turn)
        return dense(width, "proj", self.dtype, init=init(depth=self.depth))(out)


class Block(Branch):
    """Pre-norm transformer block: self-attention, then an MLP.

    Where a context is passed, a cross-attention stands between the two (BootMAE's decoder block).

    Attributes:
      heads, bias, init_scheme: see `Attention`.
      mlp_ratio: hidden width of the MLP / width.
      depth: number of this block from 1, for BEiT's initialization; 0 = weights are not rescaled.
    """

    heads: int = 12
    bias: Bias = "full"
    init_scheme: InitScheme = "mae"
    mlp_ratio: float = 4.0
    dtype: Dtype = jnp.float32
    depth: int = 0

    @nn.compact
    def __call__(self, x, context=None, train: bool = False, rel_bias=None):
        """Return the tokens [b t d] after this block.

        Args:
          x: tokens, [b t d].
          context: what the cross-attention attends to, [b k d]; None = there is no cross-attention.
          train: whether branches are dropped.
          rel_bias: bias of the self-attention's logits, see `attend`.
        """
        attention = functools.partial(
            Attention, self.heads, self.bias, self.init_scheme, self.dtype, self.depth
        )
        x = shard_batch(x)
        y = attention(name="attn")(layer_norm("norm1", self.dtype)(x), None, rel_bias)
        x = x + self.residual(y, "gamma_1", train)
        if context is not None:
            query = layer_norm("norm_q", self.dtype)(x)
            context = layer_norm("norm_kv", self.dtype)(context)
            y = attention(name="cross")(query, context)
            x = x + self.residual(y, "gamma_cross", train)
        mlp = Mlp(self.mlp_ratio, self.dtype, self.init_scheme, self.depth, name="mlp")
        return x + self.residual(mlp(layer_norm("norm2", self.dtype)(x)), "gamma_2", train)


def run_blocks(x, depth: int, *args, drop_path: float = 0.0, **options):
    """Apply blocks block_00, block_01, ... in turn; to be called in a module's compact method.

    Args:
      x: tokens, [b t d].
      depth: number of blocks.
      args: further arguments of each block's call, after x.
      drop_path: the last block's rate; it rises linearly from 0.
      options: fields of every block.
    """
    for i in range(depth):
        rate, name = drop_rate(drop_path, i, depth), f"block_{i:02d}"
        x = Block(drop_path=rate, name=name, **options)(x, *args)
    return x

"""Attention, relative position biases, and the transformer block that every encoder is made of.

`attend` is the one place where attention is computed, in one of three forms. Training never forms
the attention probabilities as an output; `models.attention_maps` computes them where a picture or
a teacher needs them. Linear layers, norms and the residual branch come from `models.layers`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int

from mimjax.errors import ConfigError
from mimjax.models.layers import (
    Branch,
    Dtype,
    InitScheme,
    Mlp,
    dense,
    drop_rate,
    kernel_init,
    layer_norm,
    platform,
    shard_batch,
)

Bias = Literal["full", "qv"]  # see `Attention`
Form = Literal["auto", "manual", "xla", "dot_product"]  # how attention is computed, see `attend`
Remat = Literal["none", "full", "dots", "attention"]  # what is recomputed, see `rematerialized`

# Products of compute-type factors are summed in float32.
product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def attend(q, k, v, bias=None, form: Form = "auto", recompute: bool = False):
    """Return softmax(q k^T / sqrt(d) + bias) v; the softmax is float32.

    Args:
      q: queries, [b nq h d].
      k, v: keys and values, [b nk h d].
      bias: added to the logits; float32 [1 h nq nk] (the same for all examples) or [b h nq nk];
        None = zero.
      form: "manual" has a derivative of its own that keeps the exponentials alone; "xla" is the
        plain formula, differentiated by JAX; "dot_product" is `jax.nn.dot_product_attention`: on
        GPUs cuDNN's kernel, which keeps nothing [nq nk] and knows no forward mode
        (`jax.linearize`), elsewhere JAX's plain formula. "auto" = what `usual` says of the
        platform. In float32 all are equal to 1e-5, with their gradients.
      recompute: whether the backward pass computes all this again and keeps q, k and v alone.

    Returns:
      [b nq h d] in v's dtype.

    Raises:
      ConfigError: "dot_product" on a GPU for arrays that cuDNN does not take.
    """
    run = FORMS[usual(platform())[0] if form == "auto" else form]
    run = jax.checkpoint(run) if recompute else run
    # All forms get scaled queries: scaled logits would be rounded otherwise (head width 42).
    return run(q * q.shape[-1] ** -0.5, k, v, bias)


def attend_by_heads(q, k, v, heads: int, bias=None, turn=None, first: int = 0, **how: Any):
    """Return `attend` of queries, keys and values [b n h*d], with the heads side by side again.

    Args:
      turn: function of queries and of keys [b n h d], by which positions turn them.
      first: number of queries in front that are left out, with their rows of the bias.
      how: `form` and `recompute` of `attend`.
    """
    q, k, v = (rearrange(t, "b n (h d) -> b n h d", h=heads) for t in (q, k, v))
    if turn is not None:
        q, k = turn(q), turn(k)
    if first:
        q = q[:, first:]
        bias = None if bias is None else bias[:, :, first:]
    return rearrange(attend(q, k, v, bias, **how), "b n h d -> b n (h d)")


WHY = {
    "cpu": "the fastest measured there, and it keeps one array per pair of tokens for the gradient",
    "tpu": "as compiled it reads and writes least at 197 tokens; not timed there",
}


def usual(platform: str) -> tuple[Form, str]:
    """Return the form that "auto" stands for on a platform ("cpu", "gpu", "tpu"), and why."""
    return "manual", WHY.get(platform, "as on CPUs; not measured there")


def described(form: Form, platform: str) -> str:
    """Return in words which form computes attention on a platform, for the block at the start."""
    if form != "auto":
        return f"{form} (chosen)" + ", by cuDNN" * (form == "dot_product" and platform == "gpu")
    return f"{usual(platform)[0]} (auto on {platform}: {usual(platform)[1]})"


def _manual(q, k, v, bias):
    q, k, v = (rearrange(t, "b n h d -> b h n d") for t in (q, k, v))
    return rearrange(_attend(q, k, v, bias), "b h n d -> b n h d")


def _plain(q, k, v, bias):
    logits = product("bqhd,bkhd->bhqk", q, k)
    weights = jax.nn.softmax(logits if bias is None else logits + bias, axis=-1)
    return product("bhqk,bkhd->bqhd", weights.astype(v.dtype), v).astype(v.dtype)


def _library(q, k, v, bias):
    where = platform()
    if where != "gpu":
        return jax.nn.dot_product_attention(q, k, v, bias, scale=1.0, implementation="xla")
    if why := refused(q, k, bias):
        raise ConfigError(
            f"attention: dot_product on {where}, which computes {why}; allowed: auto, manual, xla"
        )
    bias = None if bias is None else bias.astype(q.dtype)
    return jax.nn.dot_product_attention(q, k, v, bias, scale=1.0, implementation="cudnn")


FORMS: dict[str, Callable[..., Any]] = {
    "manual": _manual,
    "xla": _plain,
    "dot_product": _library,
}


def refused(q, k, bias) -> str:
    """Return what cuDNN's kernel would have to take and does not, in words; "" = it takes all.

    Args:
      q, k, bias: as in `attend`; shapes suffice.
    """
    width, lengths = q.shape[-1], (q.shape[1], k.shape[1])
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"bfloat16 or float16 alone, not {q.dtype}"
    if width % 8 or width > 128:
        return f"heads of 8, 16, ... 128 numbers alone, not of {width}"
    if bias is not None and any(n % 2 for n in lengths):
        return (
            f"a position bias for even numbers of tokens alone, not for {lengths[0]} queries and "
            f"{lengths[1]} keys"
        )
    return ""


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


def orders(bias) -> tuple[str, int]:
    """Return the order of the weights' axes and the axis of the keys.

    Compilers keep a product in the order that it is written in. With queries last a TPU copies no
    logits (v5e, 197 tokens of 512 numbers: a block reads and writes a quarter less); with a bias,
    which would be transposed, nothing is gained. On CPUs a softmax over the last axis is faster.
    """
    return ("bhkq", -2) if platform() == "tpu" and bias is None else ("bhqk", -1)


def _weighed(q, k, v, bias):
    """The output, and the weights and their sum, of which the derivative is made."""
    pairs, keys = orders(bias)
    logits = product(f"bhqd,bhkd->{pairs}", q, k)
    if bias is not None:
        logits = logits + bias
    weights = jnp.exp(logits - logits.max(keys, keepdims=True))
    total = weights.sum(keys)[..., None]
    weights = weights.astype(v.dtype)  # saved for the gradient: half the memory in bfloat16
    out = (product(f"{pairs},bhkd->bhqd", weights, v) / total).astype(v.dtype)
    return out, weights, total


@_attend.defjvp
def _attend_jvp(primals, tangents):
    """The derivative; transposed, it never forms the probabilities nor their gradient's mean."""
    q, k, v, bias = primals
    dq, dk, dv, dbias = tangents
    pairs, keys = orders(bias)
    out, weights, total = _weighed(q, k, v, bias)
    # Of the softmax what all keys of a query share cancels, the maximum as well.
    dlogits = product(f"bhqd,bhkd->{pairs}", dq, k) + product(f"bhqd,bhkd->{pairs}", q, dk)
    if bias is not None:
        dlogits = dlogits + dbias
    moved = weights * dlogits
    dout = product(f"{pairs},bhkd->bhqd", moved.astype(v.dtype), v)
    dout = dout + product(f"{pairs},bhkd->bhqd", weights, dv) - out * moved.sum(keys)[..., None]
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
      attention_form, recompute: see `attend`.
    """

    heads: int
    bias: Bias = "full"
    init_scheme: InitScheme = "mae"
    dtype: Dtype = jnp.float32
    depth: int = 0
    attention_form: Form = "auto"
    recompute: bool = False

    @nn.compact
    def __call__(self, x, context=None, rel_bias=None, turn=None, first: int = 0):
        """Return [b t-first d] in `dtype`.

        Args:
          x: tokens that make the queries, [b t d].
          context: tokens that make keys and values, [b k d]; None = `x`.
          rel_bias: bias of the logits of all queries, see `attend`.
          turn: see `attend_by_heads`.
          first: number of tokens in front that make keys and values alone.
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
        how = {"form": self.attention_form, "recompute": self.recompute}
        out = attend_by_heads(q, k, v, self.heads, rel_bias, turn, first, **how)
        return dense(width, "proj", self.dtype, init=init(depth=self.depth))(out)


class Block(Branch):
    """Pre-norm transformer block: self-attention, then an MLP.

    Where a context is passed, a cross-attention stands between the two (BootMAE's decoder block).

    Attributes:
      heads, bias, init_scheme: see `Attention`.
      mlp_ratio: hidden width of the MLP / width.
      depth: number of this block from 1, for BEiT's initialization; 0 = weights are not rescaled.
      attention_form, recompute: see `Attention`.
    """

    heads: int = 12
    bias: Bias = "full"
    init_scheme: InitScheme = "mae"
    mlp_ratio: float = 4.0
    dtype: Dtype = jnp.float32
    depth: int = 0
    attention_form: Form = "auto"
    recompute: bool = False

    @nn.compact
    def __call__(self, x, context=None, train: bool = False, rel_bias=None, first: int = 0):
        """Return the tokens [b t-first d] after this block.

        Args:
          x: tokens, [b t d].
          context: what the cross-attention attends to, [b k d]; None = there is no cross-attention.
          train: whether branches are dropped.
          rel_bias: bias of the self-attention's logits, see `attend`.
          first: number of tokens in front that others attend to, and that are not returned.
        """
        attention = functools.partial(
            Attention,
            self.heads,
            self.bias,
            self.init_scheme,
            self.dtype,
            self.depth,
            self.attention_form,
            self.recompute,
        )
        x = shard_batch(x)
        y = attention(name="attn")(layer_norm("norm1", self.dtype)(x), None, rel_bias, first=first)
        x = x[:, first:] + self.residual(y, "gamma_1", train)
        if context is not None:
            query = layer_norm("norm_q", self.dtype)(x)
            context = layer_norm("norm_kv", self.dtype)(context)
            y = attention(name="cross")(query, context)
            x = x + self.residual(y, "gamma_cross", train)
        mlp = Mlp(self.mlp_ratio, self.dtype, self.init_scheme, self.depth, name="mlp")
        return x + self.residual(mlp(layer_norm("norm2", self.dtype)(x)), "gamma_2", train)


def rematerialized(cls: Any, remat: Remat, static: tuple[int, ...], **fields: Any) -> Any:
    """Return a block of a class, whose backward pass computes again what `remat` names.

    Args:
      cls: a class of blocks.
      remat: "none"; "full" = the whole block, of which its input alone is kept; "dots" = all but
        the products of linear layers (attention, norms, GELU); "attention" = the products and the
        softmax between queries, keys and values, in blocks with an attention.
      static: positions of the arguments of the block's call that are no arrays, itself counted.
      fields: of the block.
    """
    if remat == "attention" and "recompute" in cls.__dataclass_fields__:
        fields["recompute"] = True
    elif remat in POLICIES:
        cls = nn.remat(cls, policy=POLICIES[remat], static_argnums=static)
    return cls(**fields)


POLICIES = {"full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


def run_blocks(x, depth: int, *args, first: int = 0, drop_path: float = 0.0, **options):
    """Apply blocks block_00, block_01, ... in turn; to be called in a module's compact method.

    Returns:
      [b t-first d].

    Args:
      x: tokens, [b t d].
      depth: number of blocks.
      args: further arguments of each block's call, after x.
      first: number of tokens in front that nobody reads: the last block does not compute them.
      drop_path: the last block's rate; it rises linearly from 0.
      options: fields of every block.
    """
    for i in range(depth):
        rate, name = drop_rate(drop_path, i, depth), f"block_{i:02d}"
        unread = {"first": first} if i == depth - 1 else {}
        x = Block(drop_path=rate, name=name, **options)(x, *args, **unread)
    return x if depth else x[:, first:]

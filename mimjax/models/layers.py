"""Transformer layers shared by every encoder and decoder.

Pure flax.linen: no config objects, no losses. Parameters are float32; matrix products run in
`dtype`; LayerNorm statistics and softmax always run in float32. Every submodule has an explicit
name, because export, weight decay and sharding key on names.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

Dtype = Any
LN_EPS = 1e-6  # every method of this project; timm's and transformers' defaults differ


def xavier_uniform(parts: int = 1):
    """Xavier-uniform for a kernel [in, out] that fuses `parts` square projections.

    parts=1 treats the fused matrix as one (MAE); parts=3 gives each of q, k, v the bound it would
    have alone (BootMAE/BEiT), sqrt(6 / (in + out / parts)).
    """

    def init(key, shape, dtype=jnp.float32):
        bound = (6.0 / (shape[0] + shape[1] / parts)) ** 0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def torch_uniform(fan_in: int):
    """PyTorch's default for linear and conv layers, U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def clipped_normal(std: float):
    """Normal of standard deviation `std` truncated at one `std` (BootMAE's mask tokens)."""

    def init(key, shape, dtype=jnp.float32):
        return std * jax.random.truncated_normal(key, -1.0, 1.0, shape, dtype)

    return init


def shard_batch(x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """Pins the batch axis to the mesh's ("data", "fsdp") axes, if a mesh is set.

    Without it the partitioner may reshard activations when parameters are sharded (measured:
    fifteen times the collective bytes, with all-to-alls).
    """
    if {"data", "fsdp"} <= set(jax.sharding.get_abstract_mesh().axis_names):
        return jax.lax.with_sharding_constraint(x, PartitionSpec(("data", "fsdp")))
    return x


product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


# LayerNorm, GELU and attention have gradients of their own. The derived ones compute terms that
# cancel and keep float32 intermediates; on CPU they made a small model's step 1.6 times as long.
@jax.custom_vjp
def normalize(x: Float[Array, "*s d"]) -> Float[Array, "*s d"]:
    """(x - mean) / sqrt(var + LN_EPS) over the last axis in float32.

    Two passes over x: the one-pass variance E[x^2] - E[x]^2 loses digits.
    """
    return _normalize_forward(x)[0]


def _normalize_forward(x):
    x32 = x.astype(jnp.float32)
    mean = x32.mean(-1, keepdims=True)
    rate = jax.lax.rsqrt(jnp.square(x32 - mean).mean(-1, keepdims=True) + LN_EPS)
    return (x32 - mean) * rate, (x, mean, rate)


def _normalize_backward(saved, g):
    x, mean, rate = saved
    y = (x.astype(jnp.float32) - mean) * rate
    dx = rate * (g - g.mean(-1, keepdims=True) - y * (g * y).mean(-1, keepdims=True))
    return (dx.astype(x.dtype),)


normalize.defvjp(_normalize_forward, _normalize_backward)


@jax.custom_vjp
def gelu(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """The erf form x * P(N(0, 1) <= x), PyTorch's form; computed in float32, only x is kept."""
    return _gelu_forward(x)[0]


def _gelu_forward(x):
    x32 = x.astype(jnp.float32)
    return (0.5 * x32 * (1 + jax.lax.erf(x32 * 0.5**0.5))).astype(x.dtype), x


def _gelu_backward(x, g):
    x32 = x.astype(jnp.float32)
    share = 0.5 * (1 + jax.lax.erf(x32 * 0.5**0.5))
    density = jnp.exp(-0.5 * jnp.square(x32)) * (2 * jnp.pi) ** -0.5
    return ((g.astype(jnp.float32) * (share + x32 * density)).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


class LayerNorm(nn.Module):
    """LayerNorm with float32 statistics; parameters as in flax's."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return (normalize(x) * scale + bias).astype(self.dtype)


def layer_norm(name: str, dtype: Dtype) -> LayerNorm:
    """The LayerNorm of every block."""
    return LayerNorm(dtype, name=name)


def dense(features: int, name: str, dtype: Dtype, parts: int = 1, bias: bool = True) -> nn.Dense:
    """A linear layer with the Xavier init that all methods use."""
    return nn.Dense(
        features, use_bias=bias, dtype=dtype, kernel_init=xavier_uniform(parts), name=name
    )


def attend(q, k, v):
    """softmax(q k^T / sqrt(d)) v with a float32 softmax.

    Args:
      q: [b nq h d]; k, v: [b nk h d].

    Returns:
      [b nq h d] in v's dtype.
    """
    q, k, v = (rearrange(t, "b n h d -> b h n d") for t in (q * q.shape[-1] ** -0.5, k, v))
    return rearrange(_attend(q, k, v), "b h n d -> b n h d")


@jax.custom_vjp
def _attend(q, k, v):
    """Heads first, q scaled. The division by the sum comes last: d numbers per query, not nk."""
    return _attend_forward(q, k, v)[0]


def _attend_forward(q, k, v):
    logits = product("bhqd,bhkd->bhqk", q, k)
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    total = weights.sum(-1, keepdims=True)
    weights = weights.astype(v.dtype)  # kept in the compute type: half the memory in bfloat16
    out = (product("bhqk,bhkd->bhqd", weights, v) / total).astype(v.dtype)
    return out, (q, k, v, weights, total, out)


def _attend_backward(saved, g):
    q, k, v, weights, total, out = saved
    g = g.astype(jnp.float32) / total
    inner = (g * out).sum(-1, keepdims=True)
    g = g.astype(v.dtype)
    dv = product("bhqk,bhqd->bhkd", weights, g)
    dlogits = (weights * (product("bhqd,bhkd->bhqk", g, v) - inner)).astype(q.dtype)
    dq = product("bhqk,bhkd->bhqd", dlogits, k)
    dk = product("bhqk,bhqd->bhkd", dlogits, q)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)


_attend.defvjp(_attend_forward, _attend_backward)


class Attention(nn.Module):
    """Multi-head attention; with a context, queries attend to the context instead of themselves.

    Attributes:
      heads: number of heads; head width is width // heads, so the inner width may be smaller than
        the stream's (BootMAE: 512 // 12 = 42 per head, 504 inside).
      bias: "full" (q, k and v) or "qv" (BEiT/BootMAE: no key bias, stored as q_bias and v_bias).
      init_scheme: "mae" (fused Xavier) or "bootmae" (q, k, v initialized as three matrices).
    """

    heads: int
    bias: str = "full"
    init_scheme: str = "mae"
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x, context=None):
        width = x.shape[-1]
        inner = self.heads * (width // self.heads)
        layer = functools.partial(dense, dtype=self.dtype, bias=self.bias == "full")
        if context is None:
            fused = layer(3 * inner, "qkv", parts=3 if self.init_scheme == "bootmae" else 1)(x)
            q, k, v = jnp.split(fused, 3, axis=-1)
        else:
            q = layer(inner, "q")(x)
            k, v = jnp.split(layer(2 * inner, "kv")(context), 2, axis=-1)
        if self.bias == "qv":
            q = q + self.param("q_bias", nn.initializers.zeros, (inner,)).astype(q.dtype)
            v = v + self.param("v_bias", nn.initializers.zeros, (inner,)).astype(v.dtype)
        q, k, v = (rearrange(t, "b n (h d) -> b n h d", h=self.heads) for t in (q, k, v))
        out = rearrange(attend(q, k, v), "b n h d -> b n (h d)")
        return dense(width, "proj", self.dtype)(out)


class Mlp(nn.Module):
    """Linear, exact (erf) GELU, linear."""

    ratio: float = 4.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        h = dense(int(width * self.ratio), "fc1", self.dtype)(x)
        return dense(width, "fc2", self.dtype)(gelu(h))


class Block(nn.Module):
    """Pre-norm transformer block; given a context, a cross-attention stands between the two halves.

    The order with a context is self-attention, cross-attention, MLP (BootMAE's decoder block).

    Attributes:
      drop_path: probability of dropping a residual branch of an example (rng "drop_path").
    """

    heads: int
    bias: str = "full"
    init_scheme: str = "mae"
    mlp_ratio: float = 4.0
    drop_path: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x, context=None, train: bool = False):
        attention = functools.partial(
            Attention, self.heads, self.bias, self.init_scheme, self.dtype
        )
        x = shard_batch(x)
        x = x + self.drop(attention(name="attn")(layer_norm("norm1", self.dtype)(x)), train)
        if context is not None:
            query = layer_norm("norm_q", self.dtype)(x)
            context = layer_norm("norm_kv", self.dtype)(context)
            x = x + self.drop(attention(name="cross")(query, context), train)
        mlp = Mlp(self.mlp_ratio, self.dtype, name="mlp")
        return x + self.drop(mlp(layer_norm("norm2", self.dtype)(x)), train)

    def drop(self, y, train: bool):
        """Stochastic depth per example, scaled to keep the expectation."""
        if not train or self.drop_path == 0.0:
            return y
        keep = 1.0 - self.drop_path
        mask = jax.random.bernoulli(self.make_rng("drop_path"), keep, (y.shape[0], 1, 1))
        return y * mask.astype(y.dtype) / keep

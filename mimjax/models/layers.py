"""Transformer layers shared by every encoder and decoder.

Pure flax.linen: no config objects, no losses. Parameters are float32; matrix products run in
`dtype`; LayerNorm statistics and softmax always run in float32. Every submodule has an explicit
name, because export, weight decay and sharding key on names.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from mimjax.losses import LN_EPS
from mimjax.values import Positive, Rate

Dtype = Any
InitScheme = Literal["mae", "bootmae", "cae", "beit"]  # see `kernel_init`
Resample = Literal["bicubic", "bilinear", "lanczos"]  # of a view of the image


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


def kernel_init(scheme: str, parts: int = 1, depth: int = 0):
    """Initializer of a linear layer.

    Args:
      scheme: "mae" and "cae": Xavier; "bootmae": Xavier, q, k and v as three matrices; "beit":
        normal of std 0.02 truncated at one std.
      parts: how many projections are fused.
      depth: BEiT divides the last projection of a branch by sqrt(2 depth), depth from 1; 0 = not.
    """
    if scheme == "beit":
        return clipped_normal(0.02 / (2 * depth) ** 0.5 if depth else 0.02)
    return xavier_uniform(parts if scheme == "bootmae" else 1)


def shard_batch(x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """Pins the batch axis to the mesh's ("data", "fsdp") axes, if a mesh is set.

    Without it the partitioner may reshard activations when parameters are sharded (measured:
    fifteen times the collective bytes, with all-to-alls).
    """
    if {"data", "fsdp"} <= set(jax.sharding.get_abstract_mesh().axis_names):
        return jax.lax.with_sharding_constraint(x, PartitionSpec(("data", "fsdp")))
    return x


# LayerNorm, GELU and attention have gradients of their own. The derived ones compute terms that
# cancel and keep float32 intermediates; on CPU they made a small model's step 1.6 times as long.
def normalize(x: Float[Array, "*s d"], eps: float = LN_EPS) -> Float[Array, "*s d"]:
    """(x - mean) / sqrt(var + eps) over the last axis in float32.

    Two passes over x: the one-pass variance E[x^2] - E[x]^2 loses digits.
    """
    out: Any = _normalize(x, eps)
    return out


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _normalize(x, eps):
    return _normalize_forward(x, eps)[0]


def _normalize_forward(x, eps):
    x32 = x.astype(jnp.float32)
    mean = x32.mean(-1, keepdims=True)
    rate = jax.lax.rsqrt(jnp.square(x32 - mean).mean(-1, keepdims=True) + eps)
    return (x32 - mean) * rate, (x, mean, rate)


def _normalize_backward(eps, saved, g):
    x, mean, rate = saved
    y = (x.astype(jnp.float32) - mean) * rate
    dx = rate * (g - g.mean(-1, keepdims=True) - y * (g * y).mean(-1, keepdims=True))
    return (dx.astype(x.dtype),)


_normalize.defvjp(_normalize_forward, _normalize_backward)


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
    eps: float = LN_EPS

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        return (normalize(x, self.eps) * scale + bias).astype(self.dtype)


def layer_norm(name: str, dtype: Dtype, eps: float = LN_EPS) -> LayerNorm:
    """The LayerNorm of every block."""
    return LayerNorm(dtype, eps, name=name)


def dense(
    features: int, name: str, dtype: Dtype, bias: bool = True, init: Any = xavier_uniform()
) -> nn.Dense:
    """A linear layer with zero biases; Xavier is the init of most methods."""
    return nn.Dense(features, use_bias=bias, dtype=dtype, kernel_init=init, name=name)


class Mlp(nn.Module):
    """Linear, exact (erf) GELU, linear."""

    ratio: float = 4.0
    dtype: Dtype = jnp.float32
    init_scheme: InitScheme = "mae"
    depth: int = 0

    @nn.compact
    def __call__(self, x):
        width, init = x.shape[-1], functools.partial(kernel_init, self.init_scheme)
        h = dense(int(width * self.ratio), "fc1", self.dtype, init=init())(x)
        return dense(width, "fc2", self.dtype, init=init(depth=self.depth))(gelu(h))


class Branch(nn.Module):
    """Base of blocks: what a residual branch goes through before it is added.

    Attributes:
      drop_path: probability of dropping a branch of an example (rng "drop_path").
      layer_scale: start value of a learned factor per channel; None = there is no such factor.
    """

    drop_path: Rate = 0.0
    layer_scale: Positive | None = None

    def residual(self, y, gamma: str, train: bool):
        """Layer scale, then stochastic depth per example, scaled to keep the expectation.

        Args:
          gamma: name of the factor's parameter (official names).
        """
        if self.layer_scale is not None:
            scale = self.param(
                gamma, nn.initializers.constant(self.layer_scale), (y.shape[-1],), jnp.float32
            )
            y = y * scale.astype(y.dtype)
        if not train or self.drop_path == 0.0:
            return y
        keep = 1.0 - self.drop_path
        mask = jax.random.bernoulli(self.make_rng("drop_path"), keep, (y.shape[0], 1, 1))
        return y * mask.astype(y.dtype) / keep


def drop_rate(top: float, index: int, depth: int) -> float:
    """Stochastic depth of block `index`: linear from 0 to `top` over `depth` blocks."""
    return top * index / max(depth - 1, 1)

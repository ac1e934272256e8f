"""Layers shared by every encoder and decoder: initializers, LayerNorm, GELU, MLP, residual branch.

Pure flax.linen: no config objects and no losses. Attention and the transformer block stand in
`models.attention`. Parameters are float32; matrix products run in `dtype`; the statistics of
LayerNorm are float32. Every submodule has an explicit name, because export, weight decay and
sharding key on names.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from mimjax.losses import LN_EPS
from mimjax.values import Positive, Rate

Dtype = Any
InitScheme = Literal["mae", "bootmae", "cae", "beit"]  # see `kernel_init`
Resample = Literal["bicubic", "bilinear", "lanczos"]  # filter that resizes a view of the image


@functools.cache
def xavier_uniform(parts: int = 1):
    """Return a Xavier-uniform initializer of a kernel [in, out] that fuses `parts` projections.

    Args:
      parts: 1 treats the fused matrix as one (MAE); 3 gives each of q, k, v the bound that it would
        have alone (BootMAE, BEiT), sqrt(6 / (in + out / 3)).
    """

    def init(key, shape, dtype=jnp.float32):
        bound = (6.0 / (shape[0] + shape[1] / parts)) ** 0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


@functools.cache
def torch_uniform(fan_in: int):
    """Return PyTorch's default initializer of linear and convolutional layers.

    It is U(-1/sqrt(fan_in), 1/sqrt(fan_in)), for kernels and biases alike.
    """
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


@functools.cache
def clipped_normal(std: float):
    """Return an initializer: a normal of standard deviation `std`, truncated at one `std`.

    BEiT draws its weights so; BootMAE and CAE draw their tokens so. Truncation lowers the standard
    deviation to 0.54 `std`; as in the official code, nothing corrects for that.
    """

    def init(key, shape, dtype=jnp.float32):
        return std * jax.random.truncated_normal(key, -1.0, 1.0, shape, dtype)

    return init


def kernel_init(scheme: str, parts: int = 1, depth: int = 0):
    """Return the initializer of a linear layer.

    Args:
      scheme: "mae" and "cae" are Xavier; "bootmae" is Xavier with q, k and v as three matrices;
        "beit" is a normal of std 0.02 truncated at one std.
      parts: number of projections that the layer fuses.
      depth: number of the block from 1; BEiT divides the last projection of each residual branch by
        sqrt(2 depth). 0 = no division.
    """
    if scheme == "beit":
        return clipped_normal(0.02 / (2 * depth) ** 0.5 if depth else 0.02)
    return xavier_uniform(parts if scheme == "bootmae" else 1)


def shard_batch(x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """Pin the batch axis to the mesh's ("data", "fsdp") axes; without a mesh, return x unchanged.

    Without this constraint the partitioner may reshard activations when parameters are sharded
    (measured: fifteen times the bytes of collectives, with all-to-alls).
    """
    if {"data", "fsdp"} <= set(jax.sharding.get_abstract_mesh().axis_names):
        return jax.lax.with_sharding_constraint(x, PartitionSpec(("data", "fsdp")))
    return x


# LayerNorm, GELU and attention have hand-written derivatives, from which both modes of
# differentiation follow. The derived ones compute terms that cancel and keep float32 intermediates;
# on CPU they made a small model's step 1.6 times as long.
def recomputed(fn):
    """Return a function of which the gradient keeps the arguments alone.

    On CPUs it is computed again where the gradient needs it; there a small formula costs less than
    an array that is written and read. Other compilers may share it with the forward pass.
    """
    return lambda *args: jax.checkpoint(fn, prevent_cse=platform() == "cpu")(*args)


def platform() -> str:
    """Return the platform that is computed for: that of the mesh where one is set, as in plans."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device is not None else jax.default_backend()


def matrix_product(x, kernel, numbers, precision=None, **how):
    """Return x @ kernel, [... in] and [in out]: `nn.Dense.dot_general` of our linear layers.

    On CPUs it is one product of two matrices, not of [b t in]: the kernel's gradient sums over
    b and t, and XLA would transpose both factors first.

    Args:
      numbers, precision, how: of `jax.lax.dot_general`.
    """
    if platform() != "cpu" or x.ndim < 3:
        return jax.lax.dot_general(x, kernel, numbers, precision, **how)
    out = _multiply(x.reshape(-1, x.shape[-1]), kernel, precision, tuple(how.items()))
    return out.reshape(*x.shape[:-1], -1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _multiply(x, kernel, precision, how):
    return _dot(x, kernel, 1, 0, precision, how)


def _dot(a, b, axis_a, axis_b, precision, how):
    """The product of two matrices, summed over an axis of each."""
    numbers = (((axis_a,), (axis_b,)), ((), ()))
    return jax.lax.dot_general(a, b, numbers, precision, **dict(how))


@functools.partial(_multiply.defjvp, symbolic_zeros=True)
def _multiply_jvp(precision, how, primals, tangents):
    """The derivative, in a form whose transpose makes the kernel's gradient fast.

    That gradient is x^T g, and XLA's product of transposed factors is up to 40 % slower than
    that of factors as they lie (256 x 1,576 x 1,024). So the narrower of x and g is transposed
    before; barriers keep XLA from putting the transpose into the product again.
    """
    (x, kernel), (dx, dkernel) = primals, tangents
    out, terms = _dot(x, kernel, 1, 0, precision, how), []  # seen by policies of `remat`
    apart = jax.lax.optimization_barrier
    if not isinstance(dx, SymbolicZero):
        terms.append(_dot(dx, kernel, 1, 0, precision, how))
    if not isinstance(dkernel, SymbolicZero):
        if kernel.shape[0] <= kernel.shape[1]:
            terms.append(_dot(apart(x.T), dkernel, 0, 0, precision, how))
        else:
            terms.append(apart(_dot(apart(apart(dkernel).T), x, 1, 1, precision, how)).T)
    return out, sum(terms[1:], terms[0]) if terms else jnp.zeros_like(out)


def normalize(x: Float[Array, "*s d"], eps: float = LN_EPS) -> Float[Array, "*s d"]:
    """Return (x - mean) / sqrt(var + eps) over the last axis in float32.

    The variance is computed in a second pass: the one-pass form E[x^2] - E[x]^2 loses digits.
    """
    out: Any = _normalize(x, eps)
    return out


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _normalize(x, eps):
    return _standardized(x, *_statistics(x, eps))


def _statistics(x, eps):
    """Mean and 1 / sqrt(var + eps) over the last axis."""
    x32 = x.astype(jnp.float32)
    mean = x32.mean(-1, keepdims=True)
    return mean, jax.lax.rsqrt(jnp.square(x32 - mean).mean(-1, keepdims=True) + eps)


def _standardized(x, mean, rate):
    return (x.astype(jnp.float32) - mean) * rate


@_normalize.defjvp
def _normalize_jvp(eps, primals, tangents):
    (x,), (dx,) = primals, tangents
    mean, rate = _statistics(x, eps)

    @recomputed
    def tangent(x, mean, rate, dx):
        y, dx = _standardized(x, mean, rate), dx.astype(jnp.float32)
        # the same matrix as its transpose, so this is the gradient's form, too
        return rate * (dx - dx.mean(-1, keepdims=True) - y * (dx * y).mean(-1, keepdims=True))

    return _standardized(x, mean, rate), tangent(x, mean, rate, dx)


@jax.custom_jvp
def gelu(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Return x * P(N(0, 1) <= x), the erf form of GELU that PyTorch has, in x's dtype.

    It is computed in float32, and x alone is kept for the gradient.
    """
    x32 = x.astype(jnp.float32)
    return (0.5 * x32 * (1 + jax.lax.erf(x32 * 0.5**0.5))).astype(x.dtype)


@gelu.defjvp
def _gelu_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents

    @recomputed
    def tangent(x, dx):
        x32 = x.astype(jnp.float32)
        share = 0.5 * (1 + jax.lax.erf(x32 * 0.5**0.5))
        density = jnp.exp(-0.5 * jnp.square(x32)) * (2 * jnp.pi) ** -0.5
        return (dx.astype(jnp.float32) * (share + x32 * density)).astype(x.dtype)

    return gelu(x), tangent(x, dx)


class LayerNorm(nn.Module):
    """LayerNorm over the last axis with float32 statistics; parameters are named as in flax.

    Attributes:
      dtype: of the output.
      eps: added to the variance.
    """

    dtype: Dtype = jnp.float32
    eps: float = LN_EPS

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        return (normalize(x, self.eps) * scale + bias).astype(self.dtype)


def layer_norm(name: str, dtype: Dtype, eps: float = LN_EPS) -> LayerNorm:
    """Return the LayerNorm module that every block has, under `name`."""
    return LayerNorm(dtype, eps, name=name)


def dense(
    features: int, name: str, dtype: Dtype, bias: bool = True, init: Any = xavier_uniform()
) -> nn.Dense:
    """Return a linear layer under `name`, whose biases start at zero.

    Args:
      features: width of the output.
      bias: whether the layer has biases.
      init: initializer of the kernel; Xavier-uniform in most methods.
    """
    return nn.Dense(
        features,
        use_bias=bias,
        dtype=dtype,
        kernel_init=init,
        dot_general=matrix_product,
        name=name,
    )


def pointwise(features: int, channels: int, name: str, dtype: Dtype) -> nn.Dense:
    """Return a 1x1 convolution from `channels` to `features`, initialized as PyTorch does."""
    init = torch_uniform(channels)
    return nn.Dense(
        features,
        dtype=dtype,
        kernel_init=init,
        bias_init=init,
        dot_general=matrix_product,
        name=name,
    )


class Mlp(nn.Module):
    """The MLP of a block: linear, exact (erf) GELU, linear.

    Attributes:
      ratio: hidden width / width.
      init_scheme, depth: see `kernel_init`.
    """

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
    """Base class of blocks: layer scale and stochastic depth of their residual branches.

    Attributes:
      drop_path: probability that a branch of an example is dropped (random key "drop_path").
      layer_scale: start value of a learned factor per channel; None = there is no such factor.
    """

    drop_path: Rate = 0.0
    layer_scale: Positive | None = None

    def residual(self, y, gamma: str, train: bool):
        """Return a branch's output [b t d] after layer scale and stochastic depth.

        Whole examples are dropped, and the others are divided by the probability of being kept, so
        that the expectation stays.

        Args:
          y: the branch's output, [b t d].
          gamma: name of the factor's parameter, as in the official code.
          train: False drops nothing.
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
    """Return the drop-path rate of block `index`: it rises linearly from 0 to `top`."""
    return top * index / max(depth - 1, 1)

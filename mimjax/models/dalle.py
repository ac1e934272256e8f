"""The encoder of DALL-E's discrete VAE (Ramesh et al. 2021): an image to logits over 8192 codes.

Sizes and order of operations follow OpenAI's `dall_e` package, whose network transformers also has
as FlavaImageCodebook. Activations are NHWC; a token covers 8x8 pixels. The last ReLU and 1x1
convolution are a module of their own: targets are read at the masked tokens only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mimjax.models.layers import Dtype, torch_uniform
from mimjax.values import Count, Range

GROUPS = 4  # widths 1, 2, 4 and 8 times the first
STEP = 8  # pixels per token and side: a pooling after each group but the last


def conv(features: int, size: int, channels: int, name: str, dtype: Dtype, stride: int = 1):
    """A convolution with PyTorch's padding (size - stride) / 2 and default initialization."""
    init = torch_uniform(channels * size**2)
    pad = (size - stride) // 2
    return nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=pad,
        dtype=dtype,
        kernel_init=init,
        bias_init=init,
        name=name,
    )


def pointwise(features: int, channels: int, name: str, dtype: Dtype) -> nn.Dense:
    """A 1x1 convolution with PyTorch's default initialization."""
    init = torch_uniform(channels)
    return nn.Dense(features, dtype=dtype, kernel_init=init, bias_init=init, name=name)


class ResPath(nn.Module):
    """id(x) + gain * path(x); the path is three 3x3 convolutions and a 1x1, a ReLU before each.

    Attributes:
      width: of the output; a quarter of it inside. A 1x1 convolution stands on the identity where
        the widths differ.
      gain: 1 / L^2 with L the number of blocks of the whole network (`post_gain`).
    """

    width: int
    gain: float
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        inner, y = self.width // 4, x
        for i in (1, 2, 3):
            y = conv(inner, 3, y.shape[-1], f"conv_{i}", self.dtype)(nn.relu(y))
        y = pointwise(self.width, inner, "conv_4", self.dtype)(nn.relu(y))
        if x.shape[-1] != self.width:
            x = pointwise(self.width, x.shape[-1], "id_path", self.dtype)(x)
        return x + self.gain * y


class Group(nn.Module):
    """`blocks` residual blocks of one width."""

    width: int
    blocks: int
    gain: float
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        for i in range(1, self.blocks + 1):
            x = ResPath(self.width, self.gain, self.dtype, name=f"block_{i}")(x)
        return x


class Body(nn.Module):
    """All but the last ReLU and convolution: [b h w 3] to [b h/8 w/8 8 * n_hid]."""

    n_hid: int
    n_blk: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        x = conv(self.n_hid, 7, x.shape[-1], "input", self.dtype)(x)
        gain = (GROUPS * self.n_blk) ** -2.0
        for i in range(GROUPS):
            name = f"group_{i + 1}"
            x = Group(2**i * self.n_hid, self.n_blk, gain, self.dtype, name=name)(x)
            if i < GROUPS - 1:
                x = nn.max_pool(x, (2, 2), (2, 2))
        return x


class TokenHead(nn.Module):
    """Hidden vectors to float32 logits over the vocabulary, position by position.

    Attributes:
      activation: before the 1x1 convolution; None = none.
    """

    vocab: int
    activation: Callable[[Any], Any] | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*s d"]) -> Float[Array, "*s v"]:
        x = self.activation(x) if self.activation else x
        init = torch_uniform(x.shape[-1])
        kernel = self.param("kernel", init, (x.shape[-1], self.vocab), jnp.float32)
        bias = self.param("bias", init, (self.vocab,), jnp.float32)
        product = jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)
        return product + bias


class DallEEncoder(nn.Module):
    """`features` then `logits`; called, both: [b h w 3] in [0.1, 0.9] to float32 [b h/8 w/8 vocab].

    Attributes:
      n_hid, n_blk, vocab: 256, 2 and 8192 in OpenAI's `encoder.pkl`.
    """

    n_hid: Annotated[int, Range(4)] = 256  # a quarter of it inside the blocks
    n_blk: Count = 2
    vocab: Count = 8192
    dtype: Dtype = jnp.float32

    def setup(self):
        self.body = Body(self.n_hid, self.n_blk, self.dtype)
        self.output = TokenHead(self.vocab, nn.relu, self.dtype)

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b i j v"]:
        return self.logits(self.features(images))

    def features(self, images: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        """The vectors that `logits` reads, before the last ReLU."""
        return self.body(images.astype(self.dtype))

    def logits(self, hidden: Float[Array, "*s d"]) -> Float[Array, "*s v"]:
        return self.output(hidden)

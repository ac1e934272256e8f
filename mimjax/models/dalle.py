"""The encoder of DALL-E's discrete VAE (Ramesh et al. 2021): an image to logits over 8192 codes.

Sizes and the order of operations follow OpenAI's `dall_e` package; transformers has the same
network as FlavaImageCodebook. Activations are [b h w c]; a token covers 8x8 pixels. The last ReLU
and 1x1 convolution form a module of their own, because targets read the masked tokens only. The
decoder of DALL-E is not here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mimjax.models.convolution import convolution
from mimjax.models.layers import Dtype, pointwise, torch_uniform
from mimjax.values import Count, Range

GROUPS = 4  # widths 1, 2, 4 and 8 times the first
STEP = 8  # pixels per token and side: a pooling after each group but the last


def conv(
    features: int, size: int, channels: int, name: str, dtype: Dtype, stride: int = 1, form=None
):
    """Return a convolution with padding (size - stride) / 2 and PyTorch's default initialization.

    Args:
      features, channels: widths of the output and of the input.
      size: side of the kernel.
      form: the function that convolves; None = `jax.lax.conv_general_dilated`.
    """
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
        conv_general_dilated=form,
        name=name,
    )


class ResPath(nn.Module):
    """Residual block: id(x) + gain * path(x).

    The path is three 3x3 convolutions and a 1x1, with a ReLU before each.

    Attributes:
      width: width of the output; the path is a quarter as wide inside. Where the input's width
        differs, a 1x1 convolution replaces the identity.
      gain: 1 / L^2, L the number of blocks of the whole network (`post_gain` in the official code).
    """

    width: int
    gain: float
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        inner, y = self.width // 4, x
        for i in (1, 2, 3):
            layer = conv(inner, 3, y.shape[-1], f"conv_{i}", self.dtype, form=convolution)
            y = layer(nn.relu(y))
        y = pointwise(self.width, inner, "conv_4", self.dtype)(nn.relu(y))
        if x.shape[-1] != self.width:
            x = pointwise(self.width, x.shape[-1], "id_path", self.dtype)(x)
        return x + self.gain * y


class Group(nn.Module):
    """A number of residual blocks of one width.

    Attributes:
      blocks: number of blocks.
      width, gain: see `ResPath`.
    """

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
    """The encoder without its last ReLU and convolution: [b h w 3] to [b h/8 w/8 8*n_hid].

    Attributes:
      n_hid, n_blk: width of the first group, and residual blocks per group.
    """

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
    """A 1x1 convolution from hidden vectors to float32 logits over the vocabulary.

    Attributes:
      vocab: number of codes.
      activation: function applied to the hidden vectors first; None = none.
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


class TokenEncoder(nn.Module):
    """Images to float32 logits over codes; its two halves can be called alone.

    A subclass makes `body`, a module from images to vectors, and `output`, one from these to
    logits. It declares the type of computation, `dtype`.
    """

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b i j v"]:
        return self.logits(self.features(images))

    def features(self, images: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        """Return the vectors that `logits` reads."""
        me: Any = self
        return me.body(images.astype(me.dtype))

    def logits(self, hidden: Float[Array, "*s d"]) -> Float[Array, "*s v"]:
        """Return float32 logits over the codes from vectors of `features`."""
        me: Any = self
        return me.output(hidden)


class DallEEncoder(TokenEncoder):
    """DALL-E's encoder: images in [0.1, 0.9], [b h w 3], to float32 logits [b h/8 w/8 vocab].

    `features` are the vectors before the last ReLU.

    Attributes:
      n_hid: width of the first group; 256 in OpenAI's `encoder.pkl`.
      n_blk: residual blocks per group; 2 there.
      vocab: number of codes; 8192 there.
    """

    n_hid: Annotated[int, Range(4)] = 256  # blocks are a quarter as wide inside: at least 1
    n_blk: Count = 2
    vocab: Count = 8192
    dtype: Dtype = jnp.float32

    def setup(self):
        self.body = Body(self.n_hid, self.n_blk, self.dtype)
        self.output = TokenHead(self.vocab, nn.relu, self.dtype)

"""The discrete VAE of DALLE-pytorch, CAE's "customized" tokenizer: encoder, codebook, decoder.

An encoder of strided convolutions gives logits over a codebook; a decoder of transposed ones reads
code vectors. Sizes as CAE builds it (`get_d_vae` in its furnace/utils.py). NHWC; a token covers
2^num_layers pixels per side. A layer's number is its place in the official nn.Sequential.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from mimjax.models.dalle import TokenHead, conv, pointwise
from mimjax.models.layers import Dtype, shard_batch, torch_uniform
from mimjax.values import Count, Whole


class Deconv(nn.Module):
    """PyTorch's ConvTranspose2d(4, stride 2, padding 1) and its default initialization.

    Each output pixel sees 2x2 inputs: one matrix product maps every 2x2 window to four sets of
    channels, one for each corner of a 2x2 square of outputs. (A transposed convolution multiplies
    its zeros, and on CPU the gradient of its kernel took 30 times as long.) The kernel is
    [4 4 out in]; PyTorch takes a transposed convolution's fan-in from its outputs.
    """

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w d"]:
        init = torch_uniform(self.features * 16)
        kernel = self.param("kernel", init, (4, 4, self.features, x.shape[-1]), jnp.float32)
        bias = self.param("bias", init, (self.features,), jnp.float32)
        corners = rearrange(kernel[::-1, ::-1], "(u p) (v q) o i -> (u v i) (p q o)", p=2, q=2)
        height, width = x.shape[1:3]
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        shifted = [x[:, u : u + height + 1, v : v + width + 1] for u in (0, 1) for v in (0, 1)]
        y = jnp.concatenate(shifted, axis=-1) @ corners.astype(x.dtype)
        y = rearrange(y, "b h w (p q o) -> p q b h w o", p=2, q=2)
        # one window more than inputs: a corner takes the first or the last of them
        rows = [[y[p, q, :, p : p + height, q : q + width] for q in (0, 1)] for p in (0, 1)]
        y = rearrange(jnp.asarray(rows), "p q b h w o -> b (h p) (w q) o")
        return y + bias.astype(y.dtype)


class ResBlock(nn.Module):
    """x + conv1(relu(conv3(relu(conv3(x))))), all of one width."""

    width: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        x = shard_batch(x)
        y = nn.relu(conv(self.width, 3, self.width, "conv_1", self.dtype)(x))
        y = nn.relu(conv(self.width, 3, self.width, "conv_2", self.dtype)(y))
        return x + pointwise(self.width, self.width, "conv_3", self.dtype)(y)


class DVAEBody(nn.Module):
    """The encoder without its last convolution: [b h w c] to [b h/2^l w/2^l hidden]."""

    hidden: int
    num_layers: int
    num_resblocks: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        for i in range(self.num_layers):
            layer = conv(self.hidden, 4, x.shape[-1], f"down_{i:02d}", self.dtype, stride=2)
            x = nn.relu(layer(x))
        for i in range(self.num_layers, self.num_layers + self.num_resblocks):
            x = ResBlock(self.hidden, self.dtype, name=f"res_{i:02d}")(x)
        return x


class DVAEEncoder(nn.Module):
    """`features` then `logits`; called, both: [b h w c] to float32 [b h/2^l w/2^l vocab].

    Attributes:
      vocab, hidden, num_layers: 8192, 256 and 3 in CAE.
      num_resblocks: 2 in CAE (the layers of its checkpoints).
    """

    vocab: Count = 8192
    hidden: Count = 256
    num_layers: Count = 3
    num_resblocks: Whole = 2
    dtype: Dtype = jnp.float32

    @property
    def step(self) -> int:
        """Pixels per token and side."""
        return 2**self.num_layers

    def setup(self):
        self.body = DVAEBody(self.hidden, self.num_layers, self.num_resblocks, self.dtype)
        index = self.num_layers + self.num_resblocks
        self.output = TokenHead(self.vocab, dtype=self.dtype, name=f"out_{index:02d}")

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b i j v"]:
        return self.logits(self.features(images))

    def features(self, images: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        """The vectors that `logits` reads."""
        return self.body(images.astype(self.dtype))

    def logits(self, hidden: Float[Array, "*s d"]) -> Float[Array, "*s v"]:
        return self.output(hidden)


class DVAEDecoder(nn.Module):
    """Codebook and decoder: codes or weights over them to images, float32 [b h w c].

    Attributes:
      codebook_dim: 512 in CAE.
      vocab, hidden, num_layers, num_resblocks: the encoder's.
      channels: of the images.
    """

    codebook_dim: Count = 512
    vocab: int = 8192
    hidden: int = 256
    num_layers: int = 3
    num_resblocks: int = 2
    channels: int = 3
    dtype: Dtype = jnp.float32

    DERIVED = ("vocab", "hidden", "num_layers", "num_resblocks", "channels")

    def matching(self, encoder: DVAEEncoder, channels: int = 3) -> DVAEDecoder:
        """The same decoder with the sizes that the encoder fixes."""
        return self.clone(
            vocab=encoder.vocab,
            hidden=encoder.hidden,
            num_layers=encoder.num_layers,
            num_resblocks=encoder.num_resblocks,
            channels=channels,
        )

    @nn.compact
    def __call__(
        self, codes: Int[Array, "b i j"] | Float[Array, "b i j v"]
    ) -> Float[Array, "b h w c"]:
        """Integers pick code vectors, floats weigh them (a relaxed one-hot)."""
        init = nn.initializers.normal(1.0)  # nn.Embedding's
        codebook = self.param(
            "codebook", init, (self.vocab, self.codebook_dim), jnp.float32
        ).astype(self.dtype)
        integers = jnp.issubdtype(codes.dtype, jnp.integer)
        x = codebook[codes] if integers else codes.astype(self.dtype) @ codebook
        index = 0
        if self.num_resblocks:
            x = pointwise(self.hidden, self.codebook_dim, "in_00", self.dtype)(x)
            index = 1
        for _ in range(self.num_resblocks):
            x = ResBlock(self.hidden, self.dtype, name=f"res_{index:02d}")(x)
            index += 1
        for _ in range(self.num_layers):
            x = nn.relu(Deconv(self.hidden, self.dtype, name=f"up_{index:02d}")(x))
            index += 1
        x = pointwise(self.channels, self.hidden, f"out_{index:02d}", self.dtype)(x)
        return x.astype(jnp.float32)

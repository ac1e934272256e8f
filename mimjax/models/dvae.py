"""The discrete VAE of DALLE-pytorch, CAE's "customized" tokenizer: encoder, codebook, decoder.

An encoder of strided convolutions gives logits over a codebook; a decoder of transposed ones reads
code vectors. Sizes are those that CAE builds (`get_d_vae` in its furnace/utils.py). Activations are
[b h w c]; a token covers 2^num_layers pixels per side. The number in a layer's name is its place in
the official nn.Sequential. Losses and the relaxed sampling of codes stand in `methods.dvae`.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from mimjax.models.dalle import TokenEncoder, TokenHead, conv
from mimjax.models.layers import Dtype, pointwise, shard_batch, torch_uniform
from mimjax.values import Count, Whole


class Deconv(nn.Module):
    """PyTorch's ConvTranspose2d(4, stride 2, padding 1) with its default initialization.

    Each output pixel depends on 2x2 inputs: one matrix product maps every 2x2 window to four sets
    of channels, one for each corner of a 2x2 square of outputs. (A transposed convolution
    multiplies the zeros between its inputs too, and on CPU the gradient of its kernel took 30 times
    as long.) The kernel is [4 4 out in]; PyTorch takes a transposed convolution's fan-in from its
    outputs.

    Attributes:
      features: width of the output.
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
        # There is one window more than inputs per axis: each corner of a square of outputs drops
        # the first or the last window.
        rows = [[y[p, q, :, p : p + height, q : q + width] for q in (0, 1)] for p in (0, 1)]
        y = rearrange(jnp.asarray(rows), "p q b h w o -> b (h p) (w q) o")
        return y + bias.astype(y.dtype)


class ResBlock(nn.Module):
    """Residual block x + conv1(relu(conv3(relu(conv3(x))))), all layers of one width."""

    width: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        x = shard_batch(x)
        y = nn.relu(conv(self.width, 3, self.width, "conv_1", self.dtype)(x))
        y = nn.relu(conv(self.width, 3, self.width, "conv_2", self.dtype)(y))
        return x + pointwise(self.width, self.width, "conv_3", self.dtype)(y)


class DVAEBody(nn.Module):
    """The encoder without its last convolution: [b h w c] to [b h/2^l w/2^l hidden].

    Attributes:
      hidden: width of all layers.
      num_layers: l, the number of convolutions of stride 2.
      num_resblocks: residual blocks after them.
    """

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


class DVAEEncoder(TokenEncoder):
    """The encoder: images [b h w c] to float32 logits [b h/2^l w/2^l vocab], l = num_layers.

    Attributes:
      vocab: number of codes; 8192 in CAE.
      hidden: width of the layers; 256 in CAE.
      num_layers: convolutions of stride 2; 3 in CAE.
      num_resblocks: residual blocks; 2 in CAE (the layers of its checkpoints).
    """

    vocab: Count = 8192
    hidden: Count = 256
    num_layers: Count = 3
    num_resblocks: Whole = 2
    dtype: Dtype = jnp.float32

    @property
    def step(self) -> int:
        """The side of a token in pixels."""
        return 2**self.num_layers

    def setup(self):
        self.body = DVAEBody(self.hidden, self.num_layers, self.num_resblocks, self.dtype)
        index = self.num_layers + self.num_resblocks
        self.output = TokenHead(self.vocab, dtype=self.dtype, name=f"out_{index:02d}")


class DVAEDecoder(nn.Module):
    """Codebook and decoder: codes, or weights over all codes, to images, float32 [b h w c].

    Attributes:
      codebook_dim: width of a code vector; 512 in CAE.
      vocab, hidden, num_layers, num_resblocks: sizes of the encoder; derived by the method.
      channels: of the images; derived by the method.
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
        """Return this decoder with the sizes that the encoder fixes, for images of `channels`."""
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
        """Return images, float32 [b h w c].

        Args:
          codes: integers that pick code vectors, or floats that weigh them (a relaxed one-hot).
        """
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

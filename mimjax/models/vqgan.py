"""VQGAN of taming-transformers: encoder, quantizer and decoder, as a frozen tokenizer.

Source: CompVis/taming-transformers (commit 3ba01b2), `taming/modules/diffusionmodules/model.py` and
`taming/modules/vqvae/quantize.py`. Activations are [b h w c]. The network is for inference only: it
has no dropout, no losses, no straight-through gradient and no discriminator.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from mimjax.models.attention import attend
from mimjax.models.convolution import convolution
from mimjax.models.layers import Dtype, shard_batch
from mimjax.values import Count, Length

# The published configurations.
# gumbel_f8: taming_f8_8192_openimages.yaml as copied in microsoft/VQ-Diffusion (commit cbac204).
# vq_f16: taming's configs/imagenet_vqgan.yaml (1024 codes) and VQ-Diffusion's
# vqgan_imagenet_f16_16384.yaml. All have width 128, 2 blocks, 256 channels in the codes.
_F16 = {"ch_mult": (1, 1, 2, 2, 4), "attn_resolutions": (16,), "kind": "vq"}
VQGAN_SIZES: dict[str, dict[str, Any]] = {
    "gumbel_f8": {},  # the defaults of `VQGANModel`
    "vq_f16_1024": _F16 | {"n_embed": 1024},
    "vq_f16_16384": _F16 | {"n_embed": 16384},
}
GROUPS = 32  # of every GroupNorm, for every width


def group_norm(name: str, dtype: Dtype) -> nn.GroupNorm:
    """Return a GroupNorm of 32 groups with float32 statistics."""
    return nn.GroupNorm(GROUPS, epsilon=1e-6, dtype=dtype, use_fast_variance=False, name=name)


def conv3(features: int, name: str, dtype: Dtype) -> nn.Conv:
    """Return a 3x3 convolution that keeps height and width."""
    form = convolution
    return nn.Conv(features, (3, 3), padding=1, dtype=dtype, conv_general_dilated=form, name=name)


class ResnetBlock(nn.Module):
    """Residual block: norm, swish and 3x3 convolution, twice.

    Attributes:
      features: width of the output; where the input's differs, a 1x1 convolution replaces the
        identity.
    """

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        h = conv3(self.features, "conv1", self.dtype)(nn.swish(group_norm("norm1", self.dtype)(x)))
        h = conv3(self.features, "conv2", self.dtype)(nn.swish(group_norm("norm2", self.dtype)(h)))
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=self.dtype, name="nin_shortcut")(x)
        return x + h


class AttnBlock(nn.Module):
    """Self-attention among all positions: one head over all channels, no position embedding."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        layer = lambda name: nn.Dense(x.shape[-1], dtype=self.dtype, name=name)
        y = rearrange(group_norm("norm", self.dtype)(x), "b h w c -> b (h w) 1 c")
        y = attend(layer("q")(y), layer("k")(y), layer("v")(y))
        return x + layer("proj_out")(y).reshape(x.shape)


def middle(x, dtype: Dtype):
    """Apply the blocks at the lowest resolution of encoder and decoder, attention included.

    Their attention does not depend on `attn_resolutions`.
    """
    x = ResnetBlock(x.shape[-1], dtype, name="mid_block_1")(x)
    x = AttnBlock(dtype, name="mid_attn_1")(x)
    return ResnetBlock(x.shape[-1], dtype, name="mid_block_2")(x)


class VQGANEncoder(nn.Module):
    """Encoder from images to z, one vector per 2^(levels - 1) pixels and side.

    Attributes:
      attn_levels: numbers of the levels that have attention, 0 = full resolution.
      ch, ch_mult, num_res_blocks, z_channels: see `VQGANModel`.
    """

    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_levels: tuple[int, ...]
    z_channels: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j z"]:
        x = conv3(self.ch, "conv_in", self.dtype)(x)
        for i, mult in enumerate(self.ch_mult):
            x = shard_batch(x)
            for j in range(self.num_res_blocks):
                x = ResnetBlock(self.ch * mult, self.dtype, name=f"down_{i}_block_{j}")(x)
                if i in self.attn_levels:
                    x = AttnBlock(self.dtype, name=f"down_{i}_attn_{j}")(x)
            if i < len(self.ch_mult) - 1:
                # Padding as in the official code: one row below and one column to the right.
                x = nn.Conv(
                    x.shape[-1],
                    (3, 3),
                    strides=2,
                    padding=((0, 1), (0, 1)),
                    dtype=self.dtype,
                    name=f"down_{i}_downsample",
                )(x)
        x = nn.swish(group_norm("norm_out", self.dtype)(middle(x, self.dtype)))
        return conv3(self.z_channels, "conv_out", self.dtype)(x)


class VQGANDecoder(nn.Module):
    """Decoder from z to images, which are not clipped; attributes as in `VQGANEncoder`."""

    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_levels: tuple[int, ...]
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b i j z"]) -> Float[Array, "b h w c"]:
        x = conv3(self.ch * self.ch_mult[-1], "conv_in", self.dtype)(x)
        x = middle(x, self.dtype)
        for i, mult in reversed(list(enumerate(self.ch_mult))):
            x = shard_batch(x)
            for j in range(self.num_res_blocks + 1):
                x = ResnetBlock(self.ch * mult, self.dtype, name=f"up_{i}_block_{j}")(x)
                if i in self.attn_levels:
                    x = AttnBlock(self.dtype, name=f"up_{i}_attn_{j}")(x)
            if i:
                x = x.repeat(2, axis=1).repeat(2, axis=2)  # nearest neighbor
                x = conv3(x.shape[-1], f"up_{i}_upsample", self.dtype)(x)
        x = nn.swish(group_norm("norm_out", self.dtype)(x))
        return conv3(3, "conv_out", self.dtype)(x)


class VQGANModel(nn.Module):
    """VQGAN's tokenizer; the defaults are the published Gumbel f8 with 8192 codes (`VQGAN_SIZES`).

    Attributes:
      ch, ch_mult, num_res_blocks: width, its factor at each level, residual blocks per level.
      attn_resolutions, resolution: a level has attention if its side at the training `resolution`
        (pixels) is among them; the size of the images that are passed in plays no part.
      z_channels, embed_dim: widths of the encoder's output and of the codes.
      n_embed: number of codes.
      kind: "gumbel" (a linear map gives logits; the codebook only decodes) or "vq" (nearest code).
    """

    ch: Count = 128
    ch_mult: Annotated[tuple[Count, ...], Length(1)] = (1, 1, 2, 4)
    num_res_blocks: Count = 2
    attn_resolutions: tuple[Count, ...] = (32,)
    resolution: Count = 256
    z_channels: Count = 256
    embed_dim: Count = 256
    n_embed: Count = 8192
    kind: Literal["gumbel", "vq"] = "gumbel"
    dtype: Dtype = jnp.float32

    @property
    def step(self) -> int:
        """The side of a code in pixels."""
        return 2 ** (len(self.ch_mult) - 1)

    def setup(self):
        """Make the submodules and the codebook."""
        levels = range(len(self.ch_mult))
        attn = tuple(i for i in levels if self.resolution // 2**i in self.attn_resolutions)
        sizes = self.ch, self.ch_mult, self.num_res_blocks, attn
        self.encoder = VQGANEncoder(*sizes, self.z_channels, self.dtype)
        self.decoder = VQGANDecoder(*sizes, self.dtype)
        self.quant_conv = nn.Dense(self.embed_dim, dtype=self.dtype)
        self.post_quant_conv = nn.Dense(self.z_channels, dtype=self.dtype)
        shape = self.n_embed, self.embed_dim
        if self.kind == "gumbel":
            # Choosing among thousands of codes needs float32, also where products are TF32.
            self.proj = nn.Dense(self.n_embed, precision="highest")
            self.embed = self.param("embed", nn.initializers.normal(1.0), shape, jnp.float32)
        else:
            bound = 1 / self.n_embed
            init = lambda key, *of: jax.random.uniform(key, *of, minval=-bound, maxval=bound)
            self.embedding = self.param("embedding", init, shape, jnp.float32)

    @property
    def codebook(self) -> Float[Array, "v d"]:
        """The vectors of all codes, float32."""
        return jnp.asarray(self.embed if self.kind == "gumbel" else self.embedding)

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Return images decoded from their codes; `init` calls this, so all parameters are made."""
        grid = images.shape[1] // self.step, images.shape[2] // self.step
        return self.decode(self.scores(self.encode(images)).argmax(-1), grid)

    def encode(self, images: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
        """Return vectors before quantization in raster order, from images in [-1, 1]."""
        return rearrange(self.quant_conv(self.encoder(images)), "b h w d -> b (h w) d")

    def scores(self, hidden: Float[Array, "b k d"]) -> Float[Array, "b k v"]:
        """Return the score of every code for each vector, float32; the best code is the argmax.

        kind "gumbel" gives logits. "vq" gives minus the squared distance to each code, without the
        vector's own square, which is the same for all codes. Of equal scores the first code counts.
        """
        hidden = hidden.astype(jnp.float32)
        if self.kind == "gumbel":
            return self.proj(hidden)
        product = jnp.einsum("bkd,vd->bkv", hidden, self.codebook, precision="highest")
        return 2 * product - jnp.square(self.codebook).sum(-1)

    def decode(self, ids: Int[Array, "b n"], grid: tuple[int, int]) -> Float[Array, "b h w c"]:
        """Return images from codes in raster order; pixels in [-1, 1], not clipped.

        Args:
          grid: (height, width) in codes.
        """
        z = self.codebook[ids].astype(self.dtype)
        z = rearrange(z, "b (h w) d -> b h w d", h=grid[0], w=grid[1])
        return self.decoder(self.post_quant_conv(z)).astype(jnp.float32)

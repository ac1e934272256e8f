"""CLIP's visual tower as a frozen teacher (openai/CLIP, `clip/model.py`, VisionTransformer).

It differs from the project's own encoder (`models.vit`): LayerNorm's eps is 1e-5, the activation is
x * sigmoid(1.702 x), a norm stands before the blocks, and positions are learned. Every token can be
read, not only CLS. The file has no text tower, no dropout and no masking.
"""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mimjax.models.attention import Form, attend_by_heads
from mimjax.models.layers import Dtype, shard_batch
from mimjax.patches import patchify
from mimjax.task import Features, Network
from mimjax.values import Count, Positive

# openai/CLIP's models at 224 px; the position table is stored for that grid.
CLIP_SIZES: dict[str, dict[str, Any]] = {
    "b16": {},  # the defaults of `CLIPVision`
    "l14": {
        "width": 1024,
        "depth": 24,
        "heads": 16,
        "patch": 14,
        "pos_grid": (16, 16),
        "proj_dim": 768,
    },
}


def norm(name: str | None, dtype: Dtype) -> nn.LayerNorm:
    """Return a LayerNorm with float32 statistics in two passes and eps 1e-5 (torch's default)."""
    return nn.LayerNorm(1e-5, dtype=dtype, use_fast_variance=False, name=name)


def quick_gelu(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Return OpenAI's approximation of GELU, x * sigmoid(1.702 x)."""
    return x * jax.nn.sigmoid(1.702 * x)


def resize_positions(
    table: Float[Array, "m d"], old: tuple[int, int], new: tuple[int, int]
) -> Float[Array, "n d"]:
    """Return positions resized to another grid; the first row, that of CLS, is kept.

    The resize is bilinear with half-pixel centers and never antialiased: torch's
    `interpolate(mode="bilinear", align_corners=False)`, as in CAE v2's code.

    Args:
      old, new: (height, width) of the grids in patches; m = 1 + height * width.
    """
    if old == new:
        return table
    grid = table[1:].reshape(*old, -1)
    grid = jax.image.resize(grid, (*new, grid.shape[-1]), "bilinear", antialias=False)
    return jnp.concatenate([table[:1], grid.reshape(-1, grid.shape[-1])])


class CLIPAttention(nn.Module):
    """Multi-head self-attention with a fused projection to q, k and v, and biases everywhere."""

    heads: int
    dtype: Dtype = jnp.float32
    attention_form: Form = "auto"

    @nn.compact
    def __call__(self, x):
        qkv = nn.Dense(3 * x.shape[-1], dtype=self.dtype, name="qkv")(x)
        q, k, v = jnp.split(qkv, 3, axis=-1)
        out = attend_by_heads(q, k, v, self.heads, form=self.attention_form)
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="proj")(out)


class CLIPMlp(nn.Module):
    """The MLP of a block: linear, QuickGELU, linear.

    Attributes:
      ratio: hidden width / width, rounded to a whole width.
    """

    ratio: float = 4.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        hidden = round(self.ratio * x.shape[-1])
        h = quick_gelu(nn.Dense(hidden, dtype=self.dtype, name="fc1")(x))
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="fc2")(h)


class CLIPBlock(nn.Module):
    """Pre-norm transformer block of CLIP's tower."""

    heads: int
    mlp_ratio: float = 4.0
    dtype: Dtype = jnp.float32
    attention_form: Form = "auto"

    @nn.compact
    def __call__(self, x):
        x = shard_batch(x)
        attention = CLIPAttention(self.heads, self.dtype, self.attention_form, name="attn")
        x = x + attention(norm("norm1", self.dtype)(x))
        return x + CLIPMlp(self.mlp_ratio, self.dtype, name="mlp")(norm("norm2", self.dtype)(x))


class CLIPVision(Network):
    """CLIP's visual tower; `CLIP_SIZES` has the published sizes.

    Attributes:
      width, depth, patch: width of the tokens, number of blocks, side of a patch in pixels.
      heads: number of heads; None = width // 64, as OpenAI's loader derives it.
      pos_grid: (height, width) in patches of the stored position table. Images may have any grid:
        the table is resized to theirs.
      proj_dim: width of the joint space of images and texts; None = no projection.
      mlp_ratio: hidden width of the MLPs / width; 4 in OpenAI's models, not in all later ones.
      stream: type of the tokens that blocks add to; None = `dtype`.
      attention_form: how attention is computed, see `attend`.
    """

    width: Count = 768
    depth: Count = 12
    heads: Count | None = 12
    patch: Count = 16
    pos_grid: tuple[Count, Count] = (14, 14)
    proj_dim: Count | None = 512
    mlp_ratio: Positive = 4.0
    dtype: Dtype = jnp.float32
    stream: Dtype | None = None
    attention_form: Form = "auto"

    num_prefix: ClassVar[int] = 1
    class_tokens: ClassVar[int] = 1
    positions: ClassVar[str] = ""  # they are learned

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images that the stored positions are for, in pixels."""
        return self.pos_grid[0] * self.patch, self.pos_grid[1] * self.patch

    @property
    def grid(self) -> tuple[int, int]:
        return self.pos_grid[0], self.pos_grid[1]

    @property
    def num_heads(self) -> int:
        """The number of heads, derived from the width where `heads` is None."""
        return self.heads or max(self.width // 64, 1)

    @property
    def out_dim(self) -> int:
        """The width of the vectors that `read` returns."""
        return self.proj_dim or self.width

    def setup(self):
        scale = nn.initializers.normal(self.width**-0.5)
        self.cls_token = self.param("cls_token", scale, (self.width,), jnp.float32)
        positions = self.pos_grid[0] * self.pos_grid[1]
        self.pos_embed = self.param("pos_embed", scale, (1 + positions, self.width), jnp.float32)
        # A patch convolution without bias is a product with flattened patches.
        self.patch_embed = nn.Dense(self.width, use_bias=False, dtype=self.dtype)
        self.norm_pre = norm(None, self.dtype)
        for i in range(self.depth):
            block = CLIPBlock(self.num_heads, self.mlp_ratio, self.dtype, self.attention_form)
            setattr(self, f"block_{i:02d}", block)
        # The outputs are regression targets, so they are float32 for any compute type.
        self.norm_post = norm(None, jnp.float32)
        if self.proj_dim:
            self.proj = nn.Dense(self.proj_dim, use_bias=False)

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b t p"]:
        """Return `read` of all tokens; `init` calls this, so that all parameters are made."""
        return self.read(self.encode(images))

    def features(self, images: Float[Array, "b h w c"]) -> Features:
        """Return `Features` of normalized images; the tokens are those of `read`."""
        blocks = self.blocks(images)
        return Features(self.read(blocks[-1]), tuple(blocks), self.num_prefix)

    def encode(self, images: Float[Array, "b h w c"]) -> Float[Array, "b t d"]:
        """Return the last block's output before the final norm, CLS first.

        Args:
          images: images normalized by CLIP's mean and standard deviation.
        """
        return self.blocks(images)[-1]

    def blocks(self, images: Float[Array, "b h w c"]) -> list[Float[Array, "b t d"]]:
        """Return the output of each block, CLS first, from normalized images."""
        grid = images.shape[1] // self.patch, images.shape[2] // self.patch
        x = self.patch_embed(patchify(images, self.patch).astype(self.dtype))
        cls = jnp.broadcast_to(self.cls_token.astype(x.dtype), (len(x), 1, self.width))
        positions = resize_positions(jnp.asarray(self.pos_embed), self.pos_grid, grid)
        x = jnp.concatenate([cls, x], axis=1) + positions.astype(x.dtype)
        x, outputs = self.norm_pre(x).astype(self.stream or self.dtype), []
        for i in range(self.depth):
            x = getattr(self, f"block_{i:02d}")(x)
            outputs.append(x)
        return outputs

    def read(self, tokens: Float[Array, "b k d"]) -> Float[Array, "b k p"]:
        """Return tokens after the final norm and the projection (where there is one), float32."""
        x = self.norm_post(tokens)
        return self.proj(x) if self.proj_dim else x

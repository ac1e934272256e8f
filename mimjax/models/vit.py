"""The plain vision transformer encoder, its published sizes, and what every encoder returns.

The encoder reads all patches or the visible ones alone. It returns every block's output, because
methods, probes and pictures read inner layers; the compiler removes those that nobody reads. Heads
and decoders are no part of it. Sources: MAE (section 3), BootMAE (section 3.2), BEiT and CAE.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mimjax import errors
from mimjax.models.attention import Bias, Block, Form, RelativeBias, Remat, rematerialized
from mimjax.models.layers import (
    Dtype,
    InitScheme,
    clipped_normal,
    dense,
    drop_rate,
    layer_norm,
    torch_uniform,
    xavier_uniform,
)
from mimjax.models.positions import resize_absolute
from mimjax.patches import patchify
from mimjax.task import EncoderNetwork, Features, Network, gather_rows
from mimjax.values import Count, Index, Positive, Rate, Size

FixedPositions = Literal["sincos_xy", "sincos_yx"]
# width, depth, heads, patch. B and L: both papers. H: MAE (patch 14). Ti and S: DeiT's sizes, for
# which neither MAE nor BootMAE published a configuration.
SIZES = {
    "ti": (192, 12, 3, 16),
    "s": (384, 12, 6, 16),
    "b": (768, 12, 12, 16),
    "l": (1024, 24, 16, 16),
    "h": (1280, 32, 16, 14),
}


def sincos_table(grid: tuple[int, int], width: int, order: str) -> np.ndarray:
    """Return fixed 2-D sine-cosine positions, float32 [n width], computed in float64.

    The quarters of the channels are [sin, cos] of the first coordinate, then of the second.

    Args:
      grid: (height, width) in patches.
      order: which coordinate comes first: "xy" = the column (MAE), "yx" = the row (BootMAE).
    """
    rate = 10000.0 ** -(np.arange(width // 4, dtype=np.float64) / (width // 4))
    y, x = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    first, second = (x, y) if order == "xy" else (y, x)
    parts = [f(c[:, None] * rate) for c in (first, second) for f in (np.sin, np.cos)]
    return np.concatenate(parts, axis=1).astype(np.float32)


def fixed_positions(
    grid: tuple[int, int], width: int, order: str, made_for: tuple[int, int] | None = None
) -> np.ndarray:
    """Return the fixed positions of a grid, float32 [n width].

    Args:
      grid: (height, width) in patches.
      order: see `sincos_table`.
      made_for: grid that a network was trained on. Its table is interpolated (bicubic) and not
        computed for the new grid, whose coordinates the network has not seen; so do the fine-tuning
        codes of MAE, BootMAE, CAE and ConvMAE. None = `grid`.
    """
    made_for = made_for or grid
    table = sincos_table(made_for, width, order)
    return resize_absolute(table[None], made_for, grid, num_prefix=0)[0]


def at_size(encoder: Any, image_size: tuple[int, int]) -> Any:
    """Return an encoder for images of another size; fixed positions stay those of its grid.

    Args:
      encoder: any `task.Encoder`.
      image_size: (height, width) in pixels.
    """
    new = encoder.clone(image_size=tuple(image_size))
    if not encoder.positions or "pos_grid" not in {f.name for f in dataclasses.fields(encoder)}:
        return new
    made_for = table_grid(encoder)
    return new.clone(pos_grid=None if made_for == new.grid else made_for)


def table_grid(encoder: Any) -> tuple[int, int] | None:
    """Return rows and columns that an encoder's fixed positions are made for; None = not fixed."""
    return tuple(encoder.pos_grid or encoder.grid) if encoder.positions else None


def grid_of(image_size: tuple[int, int], patch: int) -> tuple[int, int]:
    """Return rows and columns of patches of `patch` pixels in an image (height, width)."""
    return image_size[0] // patch, image_size[1] // patch


def order_of(pos_embed: str) -> str:
    """Return the coordinate that comes first in fixed positions, "xy" or "yx"; "" = not fixed."""
    return pos_embed.removeprefix("sincos_") if pos_embed.startswith("sincos") else ""


def check_channels(count: int, channels: int) -> None:
    """Raise a ValueError where images have `count` channels and the encoder reads `channels`."""
    if count != channels:
        raise ValueError(f"images have {count} channels, this encoder reads {channels}")


class Positioned:
    """What networks share whose setting `pos_embed` may name fixed positions."""

    pos_embed: Any

    @property
    def positions(self) -> str:
        """The coordinate that comes first in the fixed positions, "xy" or "yx"; "" = none."""
        return order_of(self.pos_embed)


class Projection(Network):
    """Linear layer and LayerNorm to another width (CAE-Large's, in front of the regressor)."""

    width: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t w"]:
        return layer_norm("norm", self.dtype)(dense(self.width, "linear", self.dtype)(x))


class ViT(Positioned, EncoderNetwork):
    """Vision transformer of MAE (section 3), BootMAE (section 3.2), BEiT and CAE.

    Attributes:
      width, depth, heads: sizes of the transformer; see `SIZES`.
      patch: side of a patch in pixels.
      mlp_ratio: hidden width of the MLPs / width.
      image_size: (height, width) in pixels that the data pipeline delivers; with fixed positions
        and without a relative bias, images of other sizes can be passed in too, to which the
        positions are interpolated.
      pos_embed: "sincos_xy" (MAE) or "sincos_yx" (BootMAE, CAE), fixed, hence no parameter;
        "learned" (BEiT's absolute positions, a row for CLS first) or "none".
      pos_grid: (rows, columns) that fixed positions, those of the decoders too, were made for where
        weights of other images are continued: they are interpolated to the grid of `image_size`.
        `init_from` fills it in; None = the grid of `image_size`.
      rel_pos: BEiT's relative position bias: "none", "shared" by all blocks or "per_block".
      layer_scale: see `Branch`; None = no factors.
      fuse_layers: blocks whose outputs are summed before the norm (MR-MAE, section 3.3); (-1,) is
        the last block alone, as in all other methods.
      bias: see `Attention`.
      init_scheme: see `kernel_init`. "mae" also initializes the patch bias as PyTorch does and CLS
        with std 0.02, "bootmae" the bias with zero and CLS with std 1e-6; "cae" and "beit" draw
        patch kernel and CLS from a normal of std 0.02 truncated at one std.
      drop_path: the last block's rate; it rises linearly from 0.
      use_mask_token: whether masked patches enter as a learned token (MAE's ablation c) instead of
        being left out.
      project: width of a linear layer and a norm behind the final norm; None = there is none. With
        CAE-Large they narrow the tokens that other networks read; exports and evaluators drop them.
      remat: what the backward pass computes again instead of keeping it, see `rematerialized`.
      stream: type of the tokens that blocks add to; None = `dtype`.
      attention_form: how attention is computed, see `attend`.
      channels: of the images; derived by the method from the length of its mean.
    """

    width: Count = 768
    depth: Count = 12
    heads: Count = 12
    patch: Count = 16
    image_size: Size = (224, 224)
    mlp_ratio: Positive = 4.0
    pos_embed: Literal[FixedPositions, "learned", "none"] = "sincos_xy"
    pos_grid: Size | None = None
    rel_pos: Literal["none", "shared", "per_block"] = "none"
    layer_scale: Positive | None = None
    fuse_layers: tuple[Index, ...] = (-1,)
    bias: Bias = "full"
    init_scheme: InitScheme = "mae"
    drop_path: Rate = 0.0
    use_mask_token: bool = False
    project: Count | None = None
    remat: Remat = "none"
    dtype: Dtype = jnp.float32
    stream: Dtype | None = None
    attention_form: Form = "auto"
    channels: int = 3

    DERIVED = ("channels",)
    stage_mlp_ratios: ClassVar[tuple[float, ...]] = ()  # it has no convolutional stages

    @property
    def num_prefix(self) -> int:
        return 1

    @property
    def out_width(self) -> int:
        return self.project or self.width

    @property
    def behind(self) -> tuple[str, ...]:
        return ("projection",)

    @property
    def fuses(self) -> bool:
        return self.fuse_layers != (-1,)

    def check(self, key: str) -> None:
        errors.encoder(key, self)

    def plain(self) -> ViT:
        """Return the encoder of whole images without mask token, fused blocks and drop path."""
        rest = {"drop_path": 0.0, "remat": "none", "dtype": jnp.float32}
        return self.clone(use_mask_token=False, project=None, fuse_layers=(-1,), **rest)

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b h w c"],
        ids: Int[Array, "b v"] | None = None,
        mask: Bool[Array, "b n"] | None = None,
        train: bool = False,
    ) -> Features:
        """Encode images into [CLS, patches].

        Args:
          images: normalized images.
          ids: patches to encode; None = all, in raster order.
          mask: True where the mask token replaces a patch (with `use_mask_token`).
          train: whether branches are dropped.
        """
        x = self.embed(images, ids, mask)
        cls = self.param("cls_token", self.token_init(), (1, 1, self.width), jnp.float32)
        cls = jnp.broadcast_to(cls.astype(x.dtype), (x.shape[0], 1, self.width))
        x = jnp.concatenate([cls, x], axis=1)
        if self.pos_embed == "learned":
            shape = (1, 1 + self.num_patches, self.width)
            pos = self.param("pos_embed", self.token_init(), shape, jnp.float32)
            rows = pos if ids is None else pos[0][jnp.pad(ids + 1, ((0, 0), (1, 0)))]
            x = x + rows.astype(x.dtype)
        blocks = []
        rel_bias = None
        if self.rel_pos == "shared":
            rel_bias = RelativeBias(self.heads, self.grid, name="rel_pos")(ids)
        for i in range(self.depth):
            if self.rel_pos == "per_block":
                rel_bias = RelativeBias(self.heads, self.grid, name=f"rel_pos_{i:02d}")(ids)
            x = self.block(i)(x, None, train, rel_bias)
            blocks.append(x)
        if self.fuse_layers != (-1,):
            x = sum(blocks[i] for i in self.fuse_layers)
        x = layer_norm("norm", self.dtype)(x)
        if self.project:
            x = Projection(self.project, self.dtype, name="projection")(x)
        return Features(x, tuple(blocks), self.num_prefix)

    def block(self, i: int) -> nn.Module:
        """Return block `i` as a module."""
        return rematerialized(
            Block,
            self.remat,
            (3,),
            heads=self.heads,
            bias=self.bias,
            init_scheme=self.init_scheme,
            mlp_ratio=self.mlp_ratio,
            drop_path=drop_rate(self.drop_path, i, self.depth),
            layer_scale=self.layer_scale,
            dtype=self.dtype,
            depth=i + 1,
            attention_form=self.attention_form,
            name=f"block_{i:02d}",
        )

    def embed(self, images, ids, mask):
        """Return patch tokens with fixed positions, [b v d]; learned ones are added with CLS.

        Visible patches are gathered before the projection, so that masked ones cost nothing.
        """
        check_channels(images.shape[-1], self.channels)
        patches = patchify(images, self.patch).astype(self.dtype)
        if ids is not None:
            patches = gather_rows(patches, ids)
        mae, normal = self.init_scheme == "mae", self.init_scheme in ("cae", "beit")
        x = nn.Dense(
            self.width,
            dtype=self.dtype,
            # Every scheme initializes the flattened kernel [p*p*c, width]; MAE's bias keeps
            # PyTorch's default of a convolution.
            kernel_init=clipped_normal(0.02) if normal else xavier_uniform(),
            bias_init=torch_uniform(patches.shape[-1]) if mae else nn.initializers.zeros,
            name="patch_embed",
        )(patches).astype(self.stream or self.dtype)
        if self.use_mask_token:
            token = self.param("mask_token", self.token_init(), (1, 1, self.width), jnp.float32)
            if mask is not None:
                x = jnp.where(mask[..., None], token.astype(x.dtype), x)
        if not self.positions:
            return x
        grid = grid_of((images.shape[1], images.shape[2]), self.patch)
        made_for = self.pos_grid or self.grid
        pos = jnp.asarray(fixed_positions(grid, self.width, self.positions, made_for))
        return x + (pos if ids is None else pos[ids]).astype(x.dtype)

    def token_init(self):
        """Return the initializer of CLS, mask token and learned positions."""
        if self.init_scheme in ("cae", "beit"):
            return clipped_normal(0.02)
        return nn.initializers.normal(0.02 if self.init_scheme == "mae" else 1e-6)

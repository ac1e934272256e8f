"""The hierarchical encoder of ConvMAE / MCMAE: two stages of masked convolution, then a ViT.

Patch embeddings never cross a patch of the mask (16x16 pixels), so only the 5x5 depthwise
convolution reads beyond its own patch, and it reads zeros at masked patches. Hence every operation
runs on visible patches alone, each a "cell" of side x side positions; the convolution gathers a
cell together with its surroundings. Source: arXiv:2205.03892, section 3.1, and its official code.
"""

from __future__ import annotations

import math
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from mimjax import errors
from mimjax.models.attention import Block, Form, Remat, rematerialized
from mimjax.models.layers import (
    Branch,
    Dtype,
    dense,
    drop_rate,
    gelu,
    layer_norm,
    pointwise,
    shard_batch,
    torch_uniform,
    xavier_uniform,
)
from mimjax.models.masked_conv import REACH, Place, depthwise, neighbors
from mimjax.models.vit import Positioned, check_channels, fixed_positions, grid_of
from mimjax.patches import patchify
from mimjax.task import EncoderNetwork, Features, gather_rows
from mimjax.values import Count, Index, Positive, Rate, Size

# Stages: widths, depths, mlp ratios; transformer: width, depth, heads. Only B is in the official
# code. S, L and H are one reading, of which no published checkpoint was opened here: public forks
# disagree (depths of L; heads of S; H stands in one file), and ConvMAE issue 32 says that the
# released files contradict the paper in the MLP ratios of L and H and in the patch of H.
CONV_SIZES = {
    "s": ((128, 256), (2, 2), (4.0, 4.0), 384, 11, 6),
    "b": ((256, 384), (2, 2), (4.0, 4.0), 768, 11, 12),
    "l": ((384, 768), (2, 2), (8.0, 8.0), 1024, 23, 16),
    "h": ((768, 1024), (2, 2), (8.0, 8.0), 1280, 31, 16),
}
CONV_ALTERNATIVES = {
    "s12": ((128, 256), (2, 2), (4.0, 4.0), 384, 11, 12),
    "l4": ((384, 768), (2, 2), (4.0, 4.0), 1024, 23, 16),
    "l20": ((384, 768), (2, 2), (4.0, 4.0), 1024, 20, 16),
    "l12": ((384, 768), (4, 4), (4.0, 4.0), 1024, 12, 16),
    "h4": ((768, 1024), (2, 2), (4.0, 4.0), 1280, 31, 16),
}
STAGE_EPS = 1e-5  # torch's default, which the code has in the stages; 1e-6 everywhere else


# ------------------------------------------------------------------ modules
class PatchConv(nn.Module):
    """Convolution with stride = kernel size inside each cell, computed as a matrix product.

    Attributes:
      stride, side: side of the kernel, and of a cell at the input, in positions.
      xavier: whether the flattened kernel is Xavier-uniform (the official patch_embed3) instead of
        PyTorch's default; the bias keeps that default.
    """

    features: int
    stride: int
    side: int
    xavier: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b u d"]:
        p, h = self.stride, self.side // self.stride
        x = rearrange(x, "b (v h p w q) c -> b (v h w) (p q c)", p=p, q=p, h=h, w=h)
        fan_in = x.shape[-1]

        def init(key, shape, dtype=jnp.float32):
            flat = xavier_uniform() if self.xavier else torch_uniform(fan_in)
            return flat(key, (fan_in, self.features), dtype).reshape(shape)

        kernel = self.param("kernel", init, (p, p, fan_in // p**2, self.features), jnp.float32)
        bias = self.param("bias", torch_uniform(fan_in), (self.features,), jnp.float32)
        flat = kernel.reshape(fan_in, self.features).astype(self.dtype)
        return x.astype(self.dtype) @ flat + bias.astype(self.dtype)


class PatchEmbed(nn.Module):
    """Convolution, LayerNorm and GELU in front of every stage; attributes as in `PatchConv`."""

    features: int
    stride: int
    side: int
    xavier: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        conv = PatchConv(
            self.features, self.stride, self.side, self.xavier, self.dtype, name="proj"
        )
        return gelu(layer_norm("norm", self.dtype, STAGE_EPS)(conv(x)))


class Depthwise(nn.Module):
    """The masked 5x5 convolution; see `depthwise`. Its bias is added at every position."""

    place: Place

    @nn.compact
    def __call__(self, x, near=None):
        init, reach = torch_uniform(25), 2 * REACH + 1
        kernel = self.param("kernel", init, (reach, reach, 1, x.shape[-1]), jnp.float32)
        bias = self.param("bias", init, (x.shape[-1],), jnp.float32)
        return depthwise(x, kernel[:, :, 0], near, self.place) + bias.astype(x.dtype)


class CBlock(Branch):
    """ConvMAE's convolutional block, on positions [b t c] in the order (patch, row, column).

    x + conv2(depthwise(visible * conv1(LN(x)))), then x + MLP(LN(x)): no activation between the
    convolutions. All but the depthwise one are 1x1. Masked positions are hidden from it alone.
    """

    mlp_ratio: float = 4.0
    place: Place = (0, 0, 1)
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x, near=None, visible=None, train: bool = False):
        """Return positions [b t c].

        Args:
          near: indices of `neighbors`; None = x holds all patches.
          visible: bool [b t], needed where x holds masked positions too.
        """
        layer = lambda y, features, name: pointwise(features, y.shape[-1], name, self.dtype)(y)
        width = x.shape[-1]
        x = shard_batch(x)
        y = layer(layer_norm("norm1", self.dtype, STAGE_EPS)(x), width, "conv1")
        if visible is not None:
            y = y * visible[..., None].astype(y.dtype)
        y = Depthwise(self.place, name="depthwise")(y, near)
        x = x + self.residual(layer(y, width, "conv2"), "gamma_1", train)
        y = layer_norm("norm2", self.dtype, STAGE_EPS)(x)
        y = gelu(layer(y, int(width * self.mlp_ratio), "fc1"))
        return x + self.residual(layer(y, width, "fc2"), "gamma_2", train)


class ConvViT(Positioned, EncoderNetwork):
    """Encoder of ConvMAE / MCMAE and, with `fuse_layers`, of MR-MAE. No CLS token.

    Attributes:
      width, depth, heads, mlp_ratio: sizes of the transformer; see `CONV_SIZES`.
      stage_widths, stage_depths, stage_mlp_ratios: sizes of the two convolutional stages.
      strides: those of the three patch embeddings; their product is the side of a patch in pixels.
      image_size: (height, width) in pixels; with fixed positions, images may have other sizes too.
      pos_embed: "sincos_xy", fixed; or "learned" (fine-tuned models), for `image_size` alone.
      pos_grid: see `ViT`.
      fuse_layers: transformer blocks whose outputs are summed before the norm; (-1,) = the last.
      fuse_stages: whether both stages' outputs are added to that sum, each through a convolution
        (ConvMAE, section 3.1; in pretraining alone: published encoders lack these convolutions).
      skip_masked: whether the stages leave masked positions out. False computes and discards them,
        as the official code does; the result is the same function.
      drop_path: the last block's rate; it rises linearly from 0 over stages and transformer.
      remat: what the backward pass computes again instead of keeping it, see `rematerialized`.
      stream: type of the positions that blocks add to; None = `dtype`.
      attention_form: how attention is computed, see `attend`.
      channels: of the images; derived by the method from the length of its mean.
    """

    width: Count = 768
    depth: Count = 11
    heads: Count = 12
    stage_widths: tuple[Count, Count] = (256, 384)
    stage_depths: tuple[Count, Count] = (2, 2)
    stage_mlp_ratios: tuple[Positive, Positive] = (4.0, 4.0)
    strides: tuple[Count, Count, Count] = (4, 2, 2)
    image_size: Size = (224, 224)
    mlp_ratio: Positive = 4.0
    pos_embed: Literal["sincos_xy", "learned"] = "sincos_xy"
    pos_grid: Size | None = None
    fuse_layers: tuple[Index, ...] = (-1,)
    fuse_stages: bool = True
    skip_masked: bool = True
    drop_path: Rate = 0.0
    remat: Remat = "none"
    dtype: Dtype = jnp.float32
    stream: Dtype | None = None
    attention_form: Form = "auto"
    channels: int = 3

    DERIVED = ("channels",)

    @property
    def use_mask_token(self) -> bool:
        return False

    @property
    def out_width(self) -> int:
        return self.width

    @property
    def num_prefix(self) -> int:
        return 0

    @property
    def patch(self) -> int:
        """The side of a token in pixels."""
        return math.prod(self.strides)

    @property
    def fuses(self) -> bool:
        return self.fuse_stages or self.fuse_layers != (-1,)

    def check(self, key: str) -> None:
        for name, side in zip(("height", "width"), self.image_size, strict=True):
            if side % self.patch:
                raise errors.ConfigError(
                    f"{key}.image_size: {name} {side} is not divisible by {self.patch}, the "
                    f"product of {key}.strides {self.strides}; allowed: multiples of {self.patch}"
                )
        errors.encoder(key, self)

    def plain(self) -> ConvViT:
        """Return the encoder of whole images without fused stages and blocks and drop path."""
        rest = {"drop_path": 0.0, "remat": "none", "dtype": jnp.float32}
        return self.clone(fuse_stages=False, fuse_layers=(-1,), **rest)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is not certain about a published size; see `task.Task.notes`."""
        names = [k for k in ("s", "l", "h") if CONV_SIZES[k][3] == self.width]
        if not names or CONV_SIZES[names[0]][0] != tuple(self.stage_widths):
            return ()
        others = [k for k in CONV_ALTERNATIVES if k.startswith(names[0])]
        return (
            f"size {names[0]} is not in the official code: public forks disagree on depths, MLP "
            "ratios and heads, and released files contradict the paper (ConvMAE issue 32). Other "
            f"readings: config argument size={'|'.join(others)}; method.encoder.strides for other "
            "patches. Where you have a file, mimjax convert takes its sizes.",
        )

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b h w c"],
        ids: Int[Array, "b v"] | None = None,
        mask: Bool[Array, "b n"] | None = None,
        train: bool = False,
    ) -> Features:
        """Encode the patches `ids` (None = all); `mask` is not read: there is no mask token."""
        check_channels(images.shape[-1], self.channels)
        grid = grid_of((images.shape[1], images.shape[2]), self.patch)
        x, fused = self.stages(images, grid, ids, train)
        x = dense(self.width, "patch_embed4", self.dtype)(x).astype(self.stream or self.dtype)
        pos = self.position_rows(grid)
        x = x + (pos if ids is None else pos[ids]).astype(x.dtype)
        blocks = []
        for i in range(self.depth):
            sizes = {"heads": self.heads, "mlp_ratio": self.mlp_ratio}
            block = self.block(Block, (3,), i, attention_form=self.attention_form, **sizes)
            x = block(x, None, train)
            blocks.append(x)
        x = sum([blocks[i] for i in self.fuse_layers] + fused)
        return Features(layer_norm("norm", self.dtype)(x), tuple(blocks), self.num_prefix)

    def position_rows(self, grid: tuple[int, int]) -> Float[Array, "n d"]:
        """Return fixed positions, interpolated to any grid; learned ones of `image_size`."""
        if not self.positions:
            init, shape = nn.initializers.normal(0.02), (1, self.num_patches, self.width)
            return self.param("pos_embed", init, shape, jnp.float32)[0]
        made_for = self.pos_grid or self.grid
        return jnp.asarray(fixed_positions(grid, self.width, self.positions, made_for))

    def stages(self, images, grid: tuple[int, int], ids, train: bool):
        """Return tokens of `ids` out of patch_embed3, [b v d], and what each stage adds to them."""
        side, at = self.patch, ids if self.skip_masked else None  # None = at all patches
        chosen = lambda x: x if ids is None or at is not None else gather_rows(x, ids)
        x = patchify(images, side).astype(self.dtype)
        x = x if at is None else gather_rows(x, at)
        x = rearrange(x, "b v (t c) -> b (v t) c", t=side**2)
        fused = []
        for k, width in enumerate(self.stage_widths):
            name, stride = f"stage{k + 1}", self.strides[k]
            embed = PatchEmbed(width, stride, side, dtype=self.dtype, name=f"patch_embed{k + 1}")
            x, side = embed(x).astype(self.stream or self.dtype), side // stride
            place = (*grid, side)
            near = None if at is None else neighbors(place, at)
            visible = None
            if ids is not None and at is None:
                shown = (jnp.arange(grid[0] * grid[1]) == ids[..., None]).any(1)
                visible = jnp.repeat(shown, side**2, axis=1)
            for i in range(self.stage_depths[k]):
                block = self.block(
                    CBlock, (4,), i, k, mlp_ratio=self.stage_mlp_ratios[k], place=place
                )
                x = block(x, near, visible, train)
            if self.fuse_stages:
                conv = PatchConv(self.width, side, side, dtype=self.dtype, name=f"{name}_fuse")
                fused.append(chosen(conv(x)))
        last = PatchEmbed(self.width, side, side, True, self.dtype, name="patch_embed3")
        return chosen(last(x)), fused

    def block(self, cls, static: tuple[int, ...], i: int, stage: int = 2, **kw) -> nn.Module:
        """Return block `i` of a stage (2 = the transformer).

        Args:
          static: position of `train` among the arguments of the block's call, the module counted.
        """
        before = sum(self.stage_depths[:stage])
        rate = drop_rate(self.drop_path, before + i, sum(self.stage_depths) + self.depth)
        name = f"block_{i:02d}" if stage == 2 else f"stage{stage + 1}_block_{i:02d}"
        fields = {"drop_path": rate, "dtype": self.dtype, "name": name}
        return rematerialized(cls, self.remat, static, **fields, **kw)

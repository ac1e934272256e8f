"""Decoders of MAE and BootMAE: from visible latents to predictions for the masked patches.

Tokens stand in the order [CLS, visible, masked] and carry their positions explicitly; attention
does not depend on order, so tokens are never scattered back into raster order. CAE's decoder stands
in `models.regressor`. Sources: MAE, section 3; BootMAE, sections 3.3 and 3.4 and appendix A.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mimjax.models.attention import Bias, run_blocks
from mimjax.models.layers import Dtype, InitScheme, clipped_normal, dense, layer_norm, torch_uniform
from mimjax.models.vit import FixedPositions, order_of, sincos_table
from mimjax.task import Network
from mimjax.values import Count


def positions(grid: tuple[int, int], width: int, order: str, ids) -> Float[Array, "b k d"]:
    """Return the rows `ids` [b k] of the fixed position table; `order` as in `sincos_table`."""
    return jnp.asarray(sincos_table(grid, width, order))[ids]


class PixelHead(nn.Module):
    """Linear map from a token to the pixels of a patch, with one bias per color channel.

    It equals BootMAE's transposed convolution with kernel = stride = patch, and starts as PyTorch
    initializes that, from U(-b, b) with b = 1/sqrt(channels * patch^2).

    Attributes:
      features: numbers of a patch, channels * patch^2.
      channels: of the image.
    """

    features: int
    channels: int = 3
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        init = torch_uniform(self.features)
        kernel = self.param("kernel", init, (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", init, (self.channels,), jnp.float32)
        bias = jnp.tile(bias, self.features // self.channels)  # (row, column, channel) order
        return x @ kernel.astype(x.dtype) + bias.astype(x.dtype)


class MAEDecoder(Network):
    """MAE's decoder (section 3): mask tokens, positions on every token, plain blocks, linear head.

    Attributes:
      width, depth, heads: sizes; 512, 8 and 16 for every size of the encoder.
      out, grid, mask_tokens, prefix, mlp_ratio: derived by the method. `out` is the width of a
        prediction, `grid` (height, width) in patches. Without `mask_tokens` the encoder has put
        tokens at the masked patches already (ablation c). `prefix` is the number of tokens before
        the patches: 1 = CLS, 0 = none.
      pos_embed, bias, init_scheme: as in `ViT`.
    """

    width: Count = 512
    depth: Count = 8
    heads: Count = 16
    out: int = 0
    grid: tuple[int, int] = (0, 0)
    mask_tokens: bool = True
    prefix: int = 1
    mlp_ratio: float = 4.0
    pos_embed: FixedPositions = "sincos_xy"
    bias: Bias = "full"
    init_scheme: InitScheme = "mae"
    dtype: Dtype = jnp.float32

    DERIVED = ("out", "grid", "mask_tokens", "prefix", "mlp_ratio")

    @property
    def positions(self) -> str:
        """The coordinate that comes first in the fixed positions, "xy" or "yx"."""
        return order_of(self.pos_embed)

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "b t d"],
        ids_v: Int[Array, "b v"],
        ids_m: Int[Array, "b m"],
        all_patches: bool = False,
    ) -> Float[Array, "b k o"]:
        """Return predictions for the patches `ids_m`.

        Args:
          tokens: the encoder's output, CLS first: prefix + v tokens, or prefix + v + m without
            `mask_tokens`.
          ids_v, ids_m: the visible and the masked patches.
          all_patches: predict [ids_v, ids_m], in that order, instead of `ids_m` alone.
        """
        x = dense(self.width, "embed", self.dtype)(tokens)
        if self.mask_tokens:
            token = self.param(
                "mask_token", nn.initializers.normal(0.02), (1, 1, self.width), jnp.float32
            )
            token = jnp.broadcast_to(token.astype(x.dtype), (*ids_m.shape, self.width))
            x = jnp.concatenate([x, token], axis=1)
        ids = jnp.concatenate([ids_v, ids_m], axis=1)
        pos = positions(self.grid, self.width, self.positions, ids)
        x = x + jnp.pad(pos, ((0, 0), (self.prefix, 0), (0, 0))).astype(x.dtype)  # zeros for CLS
        x = run_blocks(
            x,
            self.depth,
            heads=self.heads,
            bias=self.bias,
            init_scheme=self.init_scheme,
            mlp_ratio=self.mlp_ratio,
            dtype=self.dtype,
        )
        x = x[:, self.prefix + (0 if all_patches else ids_v.shape[1]) :]
        x = layer_norm("norm", self.dtype)(x)
        return dense(self.out, "head", self.dtype)(x)


class InjectedDecoder(Network):
    """BootMAE's regressor and predictor (sections 3.3, 3.4; appendix A).

    It has a mask token of its own and adds positions to mask tokens only; each of its blocks
    cross-attends to the output of one encoder block.

    Attributes:
      width: 512 for pixels; None = the encoder's width, for features.
      depth: number of blocks; 2 in both branches.
      heads: None = the encoder's heads, as in the code (a head has width // heads channels).
      inject: whether the blocks have a cross-attention (paper Table 2).
      out, grid, pixel_head, channels: derived by the method; with `pixel_head` the last layer is a
        `PixelHead`.
      pos_embed, bias, init_scheme: as in `ViT`.
    """

    width: Count | None = None
    depth: Count = 2
    heads: Count | None = None
    inject: bool = True
    out: int = 0
    grid: tuple[int, int] = (0, 0)
    pixel_head: bool = False
    channels: int = 3
    pos_embed: FixedPositions = "sincos_yx"
    bias: Bias = "qv"
    init_scheme: InitScheme = "bootmae"
    dtype: Dtype = jnp.float32

    DERIVED = ("out", "grid", "pixel_head", "channels")

    @property
    def positions(self) -> str:
        """The coordinate that comes first in the fixed positions, "xy" or "yx"."""
        return order_of(self.pos_embed)

    @nn.compact
    def __call__(
        self,
        latents: Float[Array, "b t d"],
        context: Float[Array, "b t d"],
        ids_v: Int[Array, "b v"],
        ids_m: Int[Array, "b m"],
        all_patches: bool = False,
    ) -> Float[Array, "b k o"]:
        """Return predictions for the patches `ids_m`.

        Args:
          latents: the encoder's output after the final norm, CLS first, 1 + v tokens.
          context: output of the encoder block that is injected, of the same shape.
          ids_v, ids_m: the visible and the masked patches.
          all_patches: predict [ids_v, ids_m], in that order, instead of `ids_m` alone.
        """
        assert self.width is not None, "the method fills in the encoder's width"
        assert self.heads is not None, "the method fills in the encoder's heads"
        x = dense(self.width, "down", self.dtype)(latents)
        token = self.param("mask_token", clipped_normal(0.02), (1, 1, self.width), jnp.float32)
        pos = positions(self.grid, self.width, self.positions, ids_m)
        x = jnp.concatenate([x, (token + pos).astype(x.dtype)], axis=1)
        x = run_blocks(
            x,
            self.depth,
            context if self.inject else None,
            heads=self.heads,
            bias=self.bias,
            init_scheme=self.init_scheme,
            dtype=self.dtype,
        )
        x = x[:, -(pos.shape[1] + ids_v.shape[1] if all_patches else pos.shape[1]) :]
        x = layer_norm("norm", self.dtype)(x)
        if self.pixel_head:
            return PixelHead(self.out, self.channels, dtype=self.dtype, name="head")(x)
        return dense(self.out, "head", self.dtype)(x)

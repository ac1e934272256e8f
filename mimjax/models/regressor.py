"""CAE's latent contextual regressor and latent decoder (Chen et al. 2022, section 3).

The regressor predicts the latents of masked patches from those of visible ones by cross-attention;
the decoder maps predicted latents to targets and sees masked patches only. Positions are fixed and
explicit, so tokens never return to raster order. CAE v2's shared head stands here too; the decoders
of MAE and BootMAE do not (`models.decoders`).
"""

from __future__ import annotations

import functools
from typing import ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from mimjax.models.attention import attend, run_blocks
from mimjax.models.decoders import positions
from mimjax.models.layers import (
    Branch,
    Dtype,
    Mlp,
    clipped_normal,
    dense,
    drop_rate,
    layer_norm,
    shard_batch,
)
from mimjax.task import Network
from mimjax.values import Count, Positive, Rate, Whole

SMALL = (192, 384)  # widths of ViT-Ti and ViT-S
OFFICIAL_WIDTH = 768  # --decoder_embed_dim of CAE's code


class Projection(Network):
    """Linear layer and LayerNorm from the encoder's width to the regressor's.

    The official model has them only where the two widths differ.
    """

    width: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t w"]:
        return layer_norm("norm", self.dtype)(dense(self.width, "linear", self.dtype)(x))


class CrossAttention(nn.Module):
    """Attention with separate inputs for queries, keys and values, and biases on q and v alone."""

    heads: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, q, k, v):
        width = q.shape[-1]
        inner = self.heads * (width // self.heads)
        layer = functools.partial(dense, inner, dtype=self.dtype, bias=False)
        q, k, v = layer(name="q")(q), layer(name="k")(k), layer(name="v")(v)
        q = q + self.param("q_bias", nn.initializers.zeros, (inner,), jnp.float32).astype(q.dtype)
        v = v + self.param("v_bias", nn.initializers.zeros, (inner,), jnp.float32).astype(v.dtype)
        q, k, v = (rearrange(t, "b n (h d) -> b n h d", h=self.heads) for t in (q, k, v))
        return dense(width, "proj", self.dtype)(rearrange(attend(q, k, v), "b n h d -> b n (h d)"))


class RegressorBlock(Branch):
    """One block of the regressor: masked queries attend to visible latents and to themselves.

    Keys carry positions, values do not. As in the official code, the MLP's residual starts from the
    normalized tokens, where a pre-norm block would normalize the input of the branch alone.
    """

    heads: int = 12
    mlp_ratio: float = 4.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x, latents, pos_m, pos_v, train: bool = False):
        """Return the predicted latents [b m w] after this block.

        Args:
          x: latents of the masked patches as predicted so far, [b m w].
          latents: latents of the visible patches, [b v w].
          pos_m, pos_v: positions of the masked and the visible patches, [b m w] and [b v w].
          train: whether branches are dropped.
        """
        x = shard_batch(x)
        context = jnp.concatenate([latents, x], axis=1)
        query = layer_norm("norm1_q", self.dtype)(x + pos_m)
        key = layer_norm("norm1_k", self.dtype)(context + jnp.concatenate([pos_v, pos_m], axis=1))
        value = layer_norm("norm1_v", self.dtype)(context)
        y = CrossAttention(self.heads, self.dtype, name="cross_attn")(query, key, value)
        x = layer_norm("norm2_cross", self.dtype)(x + self.residual(y, "gamma_1_cross", train))
        y = Mlp(self.mlp_ratio, self.dtype, name="mlp_cross")(x)
        return x + self.residual(y, "gamma_2_cross", train)


class Regressor(Network):
    """CAE's latent contextual regressor (section 3.2).

    Attributes:
      width: None = the encoder's width; with another one the method adds a `Projection`.
      depth, heads: 4 and 12 in the official code, for every size.
      layer_scale, drop_path: see `Branch`; the rate rises linearly over these blocks alone.
      grid, final_norm: derived by the method: (height, width) in patches, and whether a norm stands
        after the last block (CAE v2 has none).
    """

    width: Count | None = None
    depth: Whole = 4
    heads: Count = 12
    layer_scale: Positive | None = 0.1
    drop_path: Rate = 0.1
    grid: tuple[int, int] = (0, 0)
    final_norm: bool = True
    dtype: Dtype = jnp.float32

    DERIVED = ("grid", "final_norm")
    positions: ClassVar[str] = "yx"  # the coordinate that comes first in the fixed positions

    def guesses(self, encoder_width: int) -> tuple[str, ...]:
        """Return what CAE's sources leave open about this network; see `task.Task.notes`."""
        if encoder_width not in SMALL or self.width != encoder_width:
            return ()
        return (
            f"the regressor is {self.width} wide, as the encoder: a guess, after CAE v2's ViT-S. "
            "CAE's paper and scripts give no width for ViT-Ti and ViT-S; the code's default is "
            f"--config.method.regressor.width={OFFICIAL_WIDTH}.",
        )

    @nn.compact
    def __call__(
        self,
        latents: Float[Array, "b v w"],
        ids_v: Int[Array, "b v"],
        ids_m: Int[Array, "b m"],
        train: bool = False,
    ) -> Float[Array, "b m w"]:
        """Return predicted latents of the masked patches.

        Args:
          latents: the encoder's output for the visible patches, without CLS.
          ids_v, ids_m: the visible and the masked patches.
          train: whether branches are dropped.
        """
        assert self.width is not None, "the method fills in the encoder's width"
        latents = latents.astype(self.dtype)
        place = functools.partial(positions, self.grid, self.width, self.positions)
        pos_v, pos_m = (place(ids).astype(self.dtype) for ids in (ids_v, ids_m))
        token = self.param("mask_token", clipped_normal(0.02), (1, 1, self.width), jnp.float32)
        x = jnp.broadcast_to(token.astype(self.dtype), (*ids_m.shape, self.width))
        for i in range(self.depth):
            block = RegressorBlock(
                heads=self.heads,
                layer_scale=self.layer_scale,
                drop_path=drop_rate(self.drop_path, i, self.depth),
                dtype=self.dtype,
                name=f"block_{i:02d}",
            )
            x = block(x, latents, pos_m, pos_v, train)
        return layer_norm("norm", self.dtype)(x) if self.final_norm else x


class LatentDecoder(Network):
    """CAE's decoder (section 3.2): blocks over masked patches alone, then a linear head.

    Attributes:
      depth: number of blocks; 0 = a linear head on the regressor's output (Table 2, no decoder).
      heads: 12 in the official code, for every width.
      layer_scale, drop_path: as in `Regressor`.
      out, grid: derived by the method: width of a prediction, and (height, width) in patches.
    """

    depth: Whole = 4
    heads: Count = 12
    layer_scale: Positive | None = 0.1
    drop_path: Rate = 0.1
    out: int = 0
    grid: tuple[int, int] = (0, 0)
    dtype: Dtype = jnp.float32

    DERIVED = ("out", "grid")

    @nn.compact
    def __call__(
        self, latents: Float[Array, "b m w"], ids: Int[Array, "b m"], train: bool = False
    ) -> Float[Array, "b m o"]:
        """Return predictions for the patches `ids` from their latents."""
        x = latents.astype(self.dtype)
        if self.depth:
            x = x + positions(self.grid, x.shape[-1], "yx", ids).astype(self.dtype)
        x = run_blocks(
            x,
            self.depth,
            None,
            train,
            drop_path=self.drop_path,
            heads=self.heads,
            bias="qv",
            layer_scale=self.layer_scale,
            dtype=self.dtype,
        )
        if self.depth:
            x = layer_norm("norm", self.dtype)(x)
        return dense(self.out, "head", self.dtype)(x)


class SharedHead(Network):
    """CAE v2's head, which visible and masked latents share (appendix B.1).

    Attributes:
      order: "ln_fc" = LayerNorm, then linear (code); "fc_ln" = linear, then LayerNorm (paper).
        Derived by the method.
      out: width of the teacher; derived by the method.
    """

    order: Literal["ln_fc", "fc_ln"] = "ln_fc"
    out: int = 0
    dtype: Dtype = jnp.float32

    DERIVED = ("order", "out")

    @nn.compact
    def __call__(self, x: Float[Array, "b t w"]) -> Float[Array, "b t o"]:
        head, norm = dense(self.out, "head", self.dtype), layer_norm("norm", self.dtype)
        return norm(head(x)) if self.order == "fc_ln" else head(norm(x))

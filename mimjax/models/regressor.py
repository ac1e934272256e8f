"""CAE's latent contextual regressor and latent decoder (Chen et al. 2022, section 3).

The regressor predicts the latents of masked patches from those of visible ones by cross-attention;
the decoder maps predicted latents to targets and sees masked patches only. Positions are fixed and
explicit, so tokens never return to raster order. CAE v2's shared head stands here too; the decoders
of MAE and BootMAE do not (`models.decoders`).
"""

from __future__ import annotations

import functools
import itertools
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mimjax import errors
from mimjax.models.attention import Form, attend_by_heads, run_blocks, with_bias
from mimjax.models.decoders import apart, positions
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
from mimjax.task import ByPlace, Encoded, Predictor, Student
from mimjax.values import Count, Positive, Rate, Whole

SMALL = (192, 384)  # widths of ViT-Ti and ViT-S
OFFICIAL_WIDTH = 768  # --decoder_embed_dim of CAE's code


class CrossAttention(nn.Module):
    """Attention with separate inputs for queries, keys and values, and biases on q and v alone.

    Attributes:
      attention_form: how it is computed, see `attend`.
    """

    heads: int
    dtype: Dtype = jnp.float32
    attention_form: Form = "auto"

    @nn.compact
    def __call__(self, q, k, v):
        width = q.shape[-1]
        inner = self.heads * (width // self.heads)
        layer = functools.partial(dense, inner, dtype=self.dtype, bias=False)
        q, k, v = layer(name="q")(q), layer(name="k")(k), layer(name="v")(v)
        q, v = with_bias(self, q, "q_bias"), with_bias(self, v, "v_bias")
        out = attend_by_heads(q, k, v, self.heads, form=self.attention_form)
        return dense(width, "proj", self.dtype)(out)


class RegressorBlock(Branch):
    """One block of the regressor: masked queries attend to visible latents and to themselves.

    Keys carry positions, values do not. As in the official code, the MLP's residual starts from the
    normalized tokens, where a pre-norm block would normalize the input of the branch alone.
    """

    heads: int = 12
    mlp_ratio: float = 4.0
    dtype: Dtype = jnp.float32
    attention_form: Form = "auto"

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
        cross = CrossAttention(self.heads, self.dtype, self.attention_form, name="cross_attn")
        y = cross(query, key, value)
        x = layer_norm("norm2_cross", self.dtype)(x + self.residual(y, "gamma_1_cross", train))
        y = Mlp(self.mlp_ratio, self.dtype, name="mlp_cross")(x)
        return x + self.residual(y, "gamma_2_cross", train)


class Regressor(Predictor):
    """CAE's latent contextual regressor (section 3.2): latents of masked patches from visible ones.

    It is as wide as the encoder's tokens; `ViT.project` narrows these (CAE-Large).

    Attributes:
      depth, heads: 4 and 12 in the official code, for every size.
      mlp_ratio: hidden width of the MLPs / width.
      layer_scale, drop_path: see `Branch`; the rate rises linearly over these blocks alone.
      final_norm: whether a norm stands after the last block (CAE v2 has none).
      attention_form: see `ViT`.
      width, grid, pos_grid: derived; the grids are (height, width) in patches, see `ViT`.
    """

    depth: Count = 4
    heads: Count = 12
    mlp_ratio: Positive = 4.0
    layer_scale: Positive | None = 0.1
    drop_path: Rate = 0.1
    final_norm: bool = True
    width: int = 0
    grid: tuple[int, int] = (0, 0)
    pos_grid: tuple[int, int] | None = None
    dtype: Dtype = jnp.float32
    attention_form: Form = "auto"

    DERIVED = ("width", "grid", "pos_grid")
    positions: ClassVar[str] = "yx"  # the coordinate that comes first in the fixed positions

    def sized(self, encoder: Student, out: int) -> Regressor:
        return self.clone(width=out, grid=encoder.grid, pos_grid=encoder.pos_grid)

    def places(self, encoder: Student, given: tuple[str, ...]) -> tuple[str, ...]:
        return () if encoder.use_mask_token else ("masked",)

    def inputs(self, encoded: Encoded, at: tuple[str, ...]) -> tuple[Any, ...]:
        latents = encoded.tokens[:, encoded.prefix :]
        return latents, encoded.ids_v, encoded.ids_m, encoded.sequences, encoded.train

    def check(self, key: str, encoder: Student) -> None:
        check_heads(key, self.heads, self.width)
        if self.width % 4:
            setting = "width" if self.width == encoder.width else "project"
            raise errors.ConfigError(
                f"{key.rpartition('.')[0]}.encoder.{setting}: {self.width}; allowed: multiples of "
                "4 (the regressor's sine-cosine positions)"
            )

    def guesses(self, encoder: Student) -> tuple[str, ...]:
        if encoder.width not in SMALL or self.width != encoder.width or not self.final_norm:
            return ()
        return (
            f"the regressor is {self.width} wide, as the encoder: a guess, after CAE v2's ViT-S. "
            "CAE's paper and scripts give no width for ViT-Ti and ViT-S; the code's default is "
            f"--config.method.encoder.project={OFFICIAL_WIDTH}.",
        )

    @nn.compact
    def __call__(
        self,
        latents: Float[Array, "b v w"],
        ids_v: Int[Array, "b v"],
        ids_m: Int[Array, "b m"],
        sequences: int = 1,
        train: bool = False,
    ) -> dict[str, Float[Array, "b m w"]]:
        """Return predicted latents of the masked patches, {"masked": [b m w]}.

        Args:
          latents: the encoder's output for the visible patches, without CLS.
          ids_v, ids_m: the visible and the masked patches.
          sequences: number of sets of masked patches, of one size, each predicted apart.
          train: whether branches are dropped.
        """
        b = len(ids_m)
        latents, ids_v = apart(latents.astype(self.dtype), sequences), apart(ids_v, sequences)
        ids_m = ids_m.reshape(b * sequences, -1)
        place = functools.partial(positions, self.grid, self.pos_grid, self.width, self.positions)
        pos_v, pos_m = (place(ids).astype(self.dtype) for ids in (ids_v, ids_m))
        token = self.param("mask_token", clipped_normal(0.02), (1, 1, self.width), jnp.float32)
        x = jnp.broadcast_to(token.astype(self.dtype), (*ids_m.shape, self.width))
        for i in range(self.depth):
            block = RegressorBlock(
                heads=self.heads,
                mlp_ratio=self.mlp_ratio,
                layer_scale=self.layer_scale,
                drop_path=drop_rate(self.drop_path, i, self.depth),
                dtype=self.dtype,
                attention_form=self.attention_form,
                name=f"block_{i:02d}",
            )
            x = block(x, latents, pos_m, pos_v, train)
        x = layer_norm("norm", self.dtype)(x) if self.final_norm else x
        return {"masked": x.reshape(b, -1, self.width)}


def check_heads(key: str, heads: int, width: int) -> None:
    """Check that the width gives each head at least one channel: a head has width // heads.

    Raises:
      ConfigError: there are more heads than numbers.
    """
    if heads > width:
        raise errors.ConfigError(f"{key}.heads: {heads}; allowed: 1 to {width}, its width")


class LatentDecoder(Predictor):
    """CAE's decoder (section 3.2): blocks over predicted latents alone, then a linear head.

    Attributes:
      depth: number of blocks; 0 = a linear head on the regressor's output (Table 2, no decoder).
      heads: 12 in the official code, for every width.
      mlp_ratio, layer_scale, drop_path, attention_form: as in `Regressor`.
      out, grid, pos_grid: derived: width of a prediction, and (height, width) in patches.
    """

    depth: Whole = 4
    heads: Count = 12
    mlp_ratio: Positive = 4.0
    layer_scale: Positive | None = 0.1
    drop_path: Rate = 0.1
    out: int = 0
    grid: tuple[int, int] = (0, 0)
    pos_grid: tuple[int, int] | None = None
    dtype: Dtype = jnp.float32
    attention_form: Form = "auto"

    DERIVED = ("out", "grid", "pos_grid")

    def sized(self, encoder: Student, out: int) -> LatentDecoder:
        return self.clone(out=out, grid=encoder.grid, pos_grid=encoder.pos_grid)

    def places(self, encoder: Student, given: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(place for place in given if place == "masked")

    def inputs(self, encoded: Encoded, at: tuple[str, ...]) -> tuple[Any, ...]:
        return encoded.at(at)["masked"], encoded.ids_m, encoded.train

    def check(self, key: str, encoder: Student) -> None:
        if self.depth:
            check_heads(key, self.heads, encoder.out_width)

    @nn.compact
    def __call__(
        self, latents: Float[Array, "b m w"], ids: Int[Array, "b m"], train: bool = False
    ) -> dict[str, Float[Array, "b m o"]]:
        """Return predictions for the patches `ids` from their latents, {"masked": [b m o]}."""
        x = latents.astype(self.dtype)
        if self.depth:
            x = x + positions(self.grid, self.pos_grid, x.shape[-1], "yx", ids).astype(self.dtype)
        x = run_blocks(
            x,
            self.depth,
            None,
            train,
            drop_path=self.drop_path,
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            bias="qv",
            layer_scale=self.layer_scale,
            dtype=self.dtype,
            attention_form=self.attention_form,
        )
        if self.depth:
            x = layer_norm("norm", self.dtype)(x)
        return {"masked": dense(self.out, "head", self.dtype)(x)}


class SharedHead(Predictor):
    """CAE v2's head, which visible and masked latents share (appendix B.1).

    Attributes:
      order: "ln_fc" = LayerNorm, then linear (code); "fc_ln" = linear, then LayerNorm (paper).
      out: width of the teacher; derived.
    """

    order: Literal["ln_fc", "fc_ln"] = "ln_fc"
    out: int = 0
    dtype: Dtype = jnp.float32

    DERIVED = ("out",)

    @nn.compact
    def __call__(self, tokens: ByPlace) -> dict[str, Float[Array, "b _ o"]]:
        """Return predictions by place from the tokens [b k w] there."""
        head, norm = dense(self.out, "head", self.dtype), layer_norm("norm", self.dtype)
        one = (lambda x: norm(head(x))) if self.order == "fc_ln" else (lambda x: head(norm(x)))
        # all places at once: devices then sum one gradient of the kernel, not one for each place
        ends = list(itertools.accumulate(x.shape[1] for x in tokens.values()))
        together = one(jnp.concatenate(list(tokens.values()), axis=1))
        return dict(zip(tokens, jnp.split(together, ends[:-1], axis=1)))

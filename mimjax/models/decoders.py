"""Decoders of MAE and BootMAE: from visible latents to predictions for the masked patches.

Tokens stand in the order [CLS, visible, masked] and carry their positions explicitly; attention
does not depend on order, so tokens are never scattered back into raster order. CAE's decoder stands
in `models.regressor`. Sources: MAE, section 3; BootMAE, sections 3.3 and 3.4 and appendix A.
"""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mimjax import errors
from mimjax.models.attention import Bias, Form, run_blocks
from mimjax.models.layers import Dtype, InitScheme, clipped_normal, dense, layer_norm, torch_uniform
from mimjax.models.vit import FixedPositions, Positioned, fixed_positions
from mimjax.task import ByPlace, Encoded, Predictor, Student, gather_rows
from mimjax.values import Count, Index, Positive


def positions(
    grid: tuple[int, int], made_for: tuple[int, int] | None, width: int, order: str, ids
) -> Float[Array, "b k d"]:
    """Return the rows `ids` [b k] of the fixed position table; the rest as in `fixed_positions`."""
    return jnp.asarray(fixed_positions(grid, width, order, made_for))[ids]


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


def starts(prefix: int, visible: int) -> dict[str, int]:
    """Return where each place begins among tokens in the order [prefix, visible, masked]."""
    return {"cls": 0, "visible": prefix, "masked": prefix + visible}


def first_read(prefix: int, visible: int, at: tuple[str, ...]) -> int:
    """Return the number of tokens before the first of the places, see `starts`."""
    return min(starts(prefix, visible)[place] for place in at)


def at_places(
    last: Any, x: jax.Array, prefix: int, visible: int, rows: int, at: tuple[str, ...]
) -> ByPlace:
    """Return predictions at places from tokens in the order [prefix, visible, masked].

    Args:
      last: makes predictions of tokens [b k d].
      x: [b*s t d], where the masked patches of an image are s sets, one row each. Tokens before
        the first of the places are not among them.
      prefix, visible: numbers of prefix tokens and of visible patches.
      rows: b, the number of images.
    """
    begin, first = starts(prefix, visible), first_read(prefix, visible, at)
    end = {"cls": 1, "visible": begin["masked"], "masked": first + x.shape[1]}
    part = lambda place: x[:, begin[place] - first : end[place] - first]
    return {place: last(part(place).reshape(rows, -1, x.shape[-1])) for place in at}


def apart(x: jax.Array, sequences: int) -> jax.Array:
    """Return rows [b ...] repeated, one for each set of masked patches, [b*s ...]."""
    return x if sequences == 1 else jnp.repeat(x, sequences, axis=0)


class MAEDecoder(Positioned, Predictor):
    """MAE's decoder (section 3): mask tokens, positions on every token, plain blocks, linear head.

    Attributes:
      width, depth, heads: sizes; 512, 8 and 16 for every size of the encoder.
      mlp_ratio: None = that of the encoder's first convolutional stage where it has some (ConvMAE's
        code), else 4.
      pos_embed, bias, init_scheme, attention_form: as in `ViT`.
      out, grid, pos_grid, mask_tokens, prefix: derived. `out` is the width of a prediction, `grid`
        (height, width) in patches, `pos_grid` that of the encoder. Without `mask_tokens` the
        encoder has put tokens at the masked patches already (ablation c). `prefix` is the number
        of tokens before the patches.
    """

    width: Count = 512
    depth: Count = 8
    heads: Count = 16
    mlp_ratio: Positive | None = None
    pos_embed: FixedPositions = "sincos_xy"
    bias: Bias = "full"
    init_scheme: InitScheme = "mae"
    out: int = 0
    grid: tuple[int, int] = (0, 0)
    pos_grid: tuple[int, int] | None = None
    mask_tokens: bool = True
    prefix: int = 1
    dtype: Dtype = jnp.float32
    attention_form: Form = "auto"

    DERIVED = ("out", "grid", "pos_grid", "mask_tokens", "prefix")

    def sized(self, encoder: Student, out: int) -> MAEDecoder:
        stages = getattr(encoder, "stage_mlp_ratios", ())
        return self.clone(
            out=out,
            grid=encoder.grid,
            pos_grid=encoder.pos_grid,
            mask_tokens=not encoder.use_mask_token,
            prefix=encoder.num_prefix,
            mlp_ratio=self.mlp_ratio or (stages[0] if stages else 4.0),
        )

    def places(self, encoder: Student, given: tuple[str, ...]) -> tuple[str, ...]:
        return ("cls", "visible", "masked") if encoder.num_prefix else ("visible", "masked")

    def inputs(self, encoded: Encoded, at: tuple[str, ...]) -> tuple[Any, ...]:
        tokens, prefix = encoded.tokens, encoded.prefix
        if encoded.whole:  # all tokens come out of the encoder: bring them into the order here
            order = jnp.concatenate([encoded.ids_v, encoded.ids_m], axis=1)
            patches = gather_rows(tokens[:, prefix:], order)
            tokens = jnp.concatenate([tokens[:, :prefix], patches], axis=1)
        return tokens, encoded.ids_v, encoded.ids_m, encoded.sequences, at

    def check(self, key: str, encoder: Student) -> None:
        errors.heads(key, self)
        errors.sine_cosine(key, self)

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "b t d"],
        ids_v: Int[Array, "b v"],
        ids_m: Int[Array, "b m"],
        sequences: int = 1,
        at: tuple[str, ...] = ("masked",),
    ) -> dict[str, Float[Array, "b _ o"]]:
        """Return predictions by place.

        Args:
          tokens: the encoder's output: prefix + v tokens, or prefix + v + m without `mask_tokens`.
          ids_v, ids_m: the visible and the masked patches.
          sequences: number of sets of masked patches, of one size, each predicted apart.
          at: the places that are predicted.
        """
        b = len(tokens)
        x = apart(dense(self.width, "embed", self.dtype)(tokens), sequences)
        ids_v, ids_m = apart(ids_v, sequences), ids_m.reshape(b * sequences, -1)
        if self.mask_tokens:
            token = self.param(
                "mask_token", nn.initializers.normal(0.02), (1, 1, self.width), jnp.float32
            )
            token = jnp.broadcast_to(token.astype(x.dtype), (*ids_m.shape, self.width))
            x = jnp.concatenate([x, token], axis=1)
        ids = jnp.concatenate([ids_v, ids_m], axis=1)
        pos = positions(self.grid, self.pos_grid, self.width, self.positions, ids)
        x = x + jnp.pad(pos, ((0, 0), (self.prefix, 0), (0, 0))).astype(x.dtype)  # zeros for CLS
        x = run_blocks(
            x,
            self.depth,
            heads=self.heads,
            bias=self.bias,
            init_scheme=self.init_scheme,
            mlp_ratio=self.mlp_ratio or 4.0,
            dtype=self.dtype,
            attention_form=self.attention_form,
            first=first_read(self.prefix, ids_v.shape[1], at),
        )
        norm, head = layer_norm("norm", self.dtype), dense(self.out, "head", self.dtype)
        return at_places(lambda y: head(norm(y)), x, self.prefix, ids_v.shape[1], b, at)


class InjectedDecoder(Positioned, Predictor):
    """BootMAE's regressor and predictor (sections 3.3, 3.4; appendix A).

    It has a mask token of its own and adds positions to mask tokens only; each of its blocks
    cross-attends to the output of one encoder block.

    Attributes:
      width: 512 for pixels; None = the encoder's width, for features.
      depth: number of blocks; 2 in both branches.
      heads: None = the encoder's heads, as in the code (a head has width // heads channels).
      inject: the encoder's block that every block reads, negative from the end; None = there is no
        cross-attention (paper Table 2).
      head: the last layer: "linear", "pixel" = `PixelHead`, or "mlp" = two layers with a GELU
        between (the paper's "MLP head" of the predictor).
      pos_embed, bias, init_scheme, attention_form: as in `ViT`.
      out, grid, pos_grid, prefix, channels: derived.
    """

    width: Count | None = None
    depth: Count = 2
    heads: Count | None = None
    inject: Index | None = -1
    head: Literal["linear", "pixel", "mlp"] = "linear"
    pos_embed: FixedPositions = "sincos_yx"
    bias: Bias = "qv"
    init_scheme: InitScheme = "bootmae"
    out: int = 0
    grid: tuple[int, int] = (0, 0)
    pos_grid: tuple[int, int] | None = None
    prefix: int = 1
    channels: int = 3
    dtype: Dtype = jnp.float32
    attention_form: Form = "auto"

    DERIVED = ("out", "grid", "pos_grid", "prefix", "channels")

    def sized(self, encoder: Student, out: int) -> InjectedDecoder:
        return self.clone(
            out=out,
            grid=encoder.grid,
            pos_grid=encoder.pos_grid,
            prefix=encoder.num_prefix,
            channels=encoder.channels,
            width=self.width or encoder.width,
            heads=self.heads or encoder.heads,
        )

    def places(self, encoder: Student, given: tuple[str, ...]) -> tuple[str, ...]:
        if encoder.use_mask_token:  # it brings mask tokens of its own
            return ()
        return ("cls", "visible", "masked") if encoder.num_prefix else ("visible", "masked")

    def inputs(self, encoded: Encoded, at: tuple[str, ...]) -> tuple[Any, ...]:
        context = None if self.inject is None else encoded.blocks[self.inject]
        if context is not None and context.shape[1] != encoded.tokens.shape[1]:
            raise errors.ConfigError(
                f"method.encoder: block {self.inject}, which a decoder's `inject` names, has "
                f"{context.shape[1]} tokens; allowed: {encoded.tokens.shape[1]}, as after the norm"
            )
        return encoded.tokens, context, encoded.ids_v, encoded.ids_m, encoded.sequences, at

    def check(self, key: str, encoder: Student) -> None:
        if self.inject is not None:
            errors.block_index(f"{key}.inject", self.inject, encoder.depth)
        errors.heads(key, self, floor=True)
        errors.sine_cosine(key, self)
        if self.head == "pixel" and self.out != encoder.patch**2 * encoder.channels:
            raise errors.ConfigError(
                f"{key}.head: 'pixel' for predictions of {self.out} numbers; allowed: for pixels "
                "alone, else linear, mlp"
            )

    @nn.compact
    def __call__(
        self,
        latents: Float[Array, "b t d"],
        context: Float[Array, "b t e"] | None,
        ids_v: Int[Array, "b v"],
        ids_m: Int[Array, "b m"],
        sequences: int = 1,
        at: tuple[str, ...] = ("masked",),
    ) -> dict[str, Float[Array, "b _ o"]]:
        """Return predictions by place.

        Args:
          latents: the encoder's output after the final norm, prefix + v tokens.
          context: output of the encoder block that is injected.
          ids_v, ids_m: the visible and the masked patches.
          sequences: number of sets of masked patches, of one size, each predicted apart.
          at: the places that are predicted.
        """
        assert self.width is not None, "`sized` fills in the encoder's width"
        assert self.heads is not None, "`sized` fills in the encoder's heads"
        b = len(latents)
        x = apart(dense(self.width, "down", self.dtype)(latents), sequences)
        ids_m = ids_m.reshape(b * sequences, -1)
        token = self.param("mask_token", clipped_normal(0.02), (1, 1, self.width), jnp.float32)
        pos = positions(self.grid, self.pos_grid, self.width, self.positions, ids_m)
        x = jnp.concatenate([x, (token + pos).astype(x.dtype)], axis=1)
        x = run_blocks(
            x,
            self.depth,
            None if context is None else apart(context, sequences),
            heads=self.heads,
            bias=self.bias,
            init_scheme=self.init_scheme,
            dtype=self.dtype,
            attention_form=self.attention_form,
            first=first_read(self.prefix, ids_v.shape[1], at),
        )
        norm, last = layer_norm("norm", self.dtype), self.last()
        return at_places(lambda y: last(norm(y)), x, self.prefix, ids_v.shape[1], b, at)

    def last(self) -> Any:
        """Return the last layer."""
        if self.head == "pixel":
            return PixelHead(self.out, self.channels, dtype=self.dtype, name="head")
        linear = dense(self.out, "head", self.dtype)
        if self.head == "linear":
            return linear
        assert self.width is not None, "`sized` fills in the encoder's width"
        hidden = dense(self.width, "head_hidden", self.dtype)
        return lambda x: linear(nn.gelu(hidden(x), approximate=False))

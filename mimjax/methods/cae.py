"""CAE: context autoencoder (Chen et al. 2022), arXiv:2202.03026.

The encoder sees visible patches; a regressor predicts the latents of the masked ones and is
aligned with what the encoder itself makes of them; a decoder maps predicted latents to targets.
Defaults follow the official code (Atten4Vis/CAE), in which the aligned latents are the current
encoder's; the older official repository's lagging copy is `align_target`.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from mimjax import errors
from mimjax.masking.base import Masking
from mimjax.methods.ema import copy_f32, lerp
from mimjax.methods.masked import TargetTask
from mimjax.models.regressor import LatentDecoder, Projection, Regressor
from mimjax.models.vit import ViT
from mimjax.rng import named
from mimjax.targets.base import Target
from mimjax.targets.dalle import DallE
from mimjax.task import Batch, Key, LossOutput, PyTree
from mimjax.values import NonNegative, Rate

ENCODER = ViT(pos_embed="sincos_yx", bias="qv", init_scheme="cae", layer_scale=0.1, drop_path=0.1)


@dataclasses.dataclass(frozen=True)
class LatentTask(TargetTask):
    """What CAE and CAE v2 share: an encoder on visible patches and a regressor of latents.

    Attributes:
      encoder: fixed positions, row first; q and v biases; layer scale 0.1.
      regressor: its width None is the encoder's; another brings a projection.
      masking: exactly 98 of 196 block-wise (ratio 0.5), blocks of 16 patches or more.
    """

    encoder: ViT = ENCODER
    masking: Masking = Masking(kind="block", ratio=0.5, rounding="cae")
    regressor: Regressor = Regressor()

    def __post_init__(self):
        super().__post_init__()
        grid, width = self.encoder.grid, self.regressor.width or self.encoder.width
        regressor = self.regressor.clone(grid=grid, width=width)
        if regressor.heads > width:
            raise errors.ConfigError(
                f"method.regressor.heads: {regressor.heads}; allowed: 1 to {width}, its width"
            )
        if regressor.depth:
            errors.sine_cosine("method.regressor", regressor)
        object.__setattr__(self, "regressor", regressor)  # derived fields of a frozen dataclass

    @property
    def projection(self) -> Projection | None:
        """Between encoder and regressor, where their widths differ."""
        width = self.regressor.width
        if width is None or width == self.encoder.width:
            return None
        return Projection(width, self.encoder.dtype)

    def init_latents(self, key: Key):
        """Parameters of encoder, projection and regressor; tokens [1 1+v w]; latents [1 m w]."""
        images, ids_v, ids_m = self.example()
        f, encoder = self.encoder.init_with_output(named(key, "encoder"), images, ids_v)
        params, tokens = {"encoder": encoder["params"]}, f.tokens
        if self.projection:
            tokens, out = self.projection.init_with_output(named(key, "projection"), tokens)
            params["projection"] = out["params"]
        latents, out = self.regressor.init_with_output(
            named(key, "regressor"), self.patches(tokens), ids_v, ids_m
        )
        params["regressor"] = out["params"]
        return params, tokens, latents

    def encode(self, params: PyTree, batch: Batch, ids, key: Key, train: bool):
        """The encoder's tokens of CLS and of the patches `ids`, [b 1+k d]."""
        variables = {"params": params["encoder"]}
        rngs = {"drop_path": key}
        return self.encoder.apply(variables, batch["image"], ids, None, train, rngs=rngs).tokens

    def project(self, params: PyTree, tokens):
        """Tokens at the regressor's width."""
        if self.projection:
            return self.projection.apply({"params": params["projection"]}, tokens)
        return tokens

    def patches(self, tokens: jax.Array) -> jax.Array:
        """Tokens without CLS, [b k d]."""
        return tokens[:, self.encoder.num_prefix :]

    def visible(self, params: PyTree, batch: Batch, key: Key, train: bool):
        """Projected tokens of CLS and of the visible patches, [b 1+v w]."""
        tokens = self.encode(params, batch, batch["ids_v"], named(key, "encoder"), train)
        return self.project(params, tokens)

    def regress(self, params: PyTree, tokens, batch: Batch, key: Key, train: bool):
        """Predicted latents [b m w] of the masked patches, from `visible` tokens."""
        return self.regressor.apply(
            {"params": params["regressor"]},
            self.patches(tokens),
            batch["ids_v"],
            batch["ids_m"],
            train,
            rngs={"drop_path": named(key, "regressor")},
        )


@dataclasses.dataclass(frozen=True)
class CAE(LatentTask):
    """Context autoencoder.

    Attributes:
      encoder, regressor, decoder: networks; heads 12 in the last two for every size (code).
        regressor.width differs from the encoder's in Large as released: a projection then stands
        between them. decoder.depth=0 = a linear head (Table 2, no decoder).
      target: DALL-E tokens (section 4.1); Table 7 has others. `distance` serves those that are no
        codes (CAE v2's baseline with CLIP latents: its loss is not published, "mse" is ours).
      align_weight: 2 (section 4.1); 0 = no alignment (Table 2).
      align_target: what predicted latents are aligned with: "current" = the encoder of this step
        on the masked patches (code); "ema" = its average, updated with the weights before the
        optimizer's step, as in the older repository (lxtGH/CAE); "stale" = that with decay 0, one
        step behind, which is what the older repository trains by default.
      ema_decay: of align_target="ema".
    """

    target: Target = DallE()
    decoder: LatentDecoder = LatentDecoder()
    align_weight: NonNegative = 2.0
    align_target: Literal["current", "stale", "ema"] = "current"
    ema_decay: Rate = 0.996

    def __post_init__(self):
        super().__post_init__()
        decoder, width = self.decoder, self.regressor.width or self.encoder.width
        if not self.regressor.depth:
            raise errors.ConfigError(
                "method.regressor.depth: 0; allowed: 1 or more (nothing else predicts latents)"
            )
        if decoder.heads > width:
            raise errors.ConfigError(
                f"method.decoder.heads: {decoder.heads}; allowed: 1 to {width}, the regressor's "
                "width"
            )
        decoder = decoder.clone(grid=self.encoder.grid, out=self.pred_dim)
        object.__setattr__(self, "decoder", decoder)  # derived fields of a frozen dataclass

    @property
    def notes(self) -> tuple[str, ...]:
        return super().notes + self.regressor.guesses(self.encoder.width)

    def init(self, key: Key) -> tuple[PyTree, PyTree]:
        params, _, latents = self.init_latents(key)
        ids_m = self.example()[2]
        params["decoder"] = self.decoder.init(named(key, "decoder"), latents, ids_m)["params"]
        return params, {}

    def init_ema(self, params: PyTree) -> PyTree:
        if self.align_target == "current" or not self.align_weight:
            return {}
        return {"encoder": copy_f32(params["encoder"])}

    def update_ema(self, ema: PyTree, old: PyTree, new: PyTree, step) -> PyTree:
        """The average takes in the encoder that this step's loss used, as in the older code."""
        decay = self.ema_decay if self.align_target == "ema" else 0.0
        return {k: lerp(v, old[k], decay) for k, v in ema.items()}

    def prepare(
        self, ema: PyTree, frozen: PyTree, batch: Batch, key: Key, step, train: bool
    ) -> Batch:
        out = self.target_batch(frozen, batch, key, train)
        if ema:
            out["align_tokens"] = self.encode(ema, out, out["ids_m"], named(key, "align"), train)
        return out

    def own_targets(self, batch: Batch) -> dict[str, jax.Array]:
        tokens = batch.get("align_tokens")
        return {} if tokens is None else {"align_tokens": self.patches(tokens)}

    def latents(self, params: PyTree, batch: Batch, key: Key, train: bool):
        """Predicted latents [b m w] of the masked patches."""
        return self.regress(params, self.visible(params, batch, key, train), batch, key, train)

    def decode(self, params: PyTree, latents, ids, key: Key, train: bool):
        """Predictions [b k o] for the patches `ids` with these latents."""
        rngs = {"drop_path": named(key, "decoder")}
        return self.decoder.apply({"params": params["decoder"]}, latents, ids, train, rngs=rngs)

    def align_latents(self, params: PyTree, batch: Batch, key: Key, train: bool):
        """What the predicted latents are aligned with, [b m w]; no gradient passes."""
        params = lax.stop_gradient(params)
        tokens = batch.get("align_tokens")
        if tokens is None:
            # a call of its own: one call for both halves of the image costs half as much again
            tokens = self.encode(params, batch, batch["ids_m"], named(key, "align"), train)
        return self.patches(self.project(params, tokens))

    def loss(
        self, params: PyTree, model_state: PyTree, batch: Batch, key: Key, step, train: bool
    ) -> LossOutput:
        latents = self.latents(params, batch, key, train)
        pred = self.decode(params, latents, batch["ids_m"], key, train)
        total, metrics, preds = self.target_loss(pred, batch)
        if self.align_weight:
            target = self.align_latents(params, batch, key, train)
            gap = latents.astype(jnp.float32) - target.astype(jnp.float32)
            align = jnp.square(gap).mean()
            total += self.align_weight * align
            metrics["loss/align"] = align
        return LossOutput(total, metrics, preds=lax.stop_gradient(preds))

    def pictures(
        self, params: PyTree, frozen: PyTree, batch: Batch, preds: dict[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """Also the paper's Figure 4: encode the full image, skip the regressor, decode.

        It shows that predicted latents lie in the space of encoded ones.
        """
        columns = super().pictures(params, frozen, batch, preds)
        if columns:
            key = jax.random.key(0)  # read by no layer: nothing is dropped here
            tokens = self.encode(params, batch, None, key, False)
            latents = self.patches(self.project(params, tokens))
            ids = jnp.arange(self.encoder.num_patches)
            ids = jnp.broadcast_to(ids, latents.shape[:2])
            values = self.decode(params, latents, ids, key, False).astype(jnp.float32)
            values = values.argmax(-1) if self.target.discrete else values
            decoded = self.target.decode(frozen, values, self.encoder, batch["image"])
            shape = columns["original"].shape
            columns["no regressor"] = jax.image.resize(decoded, shape, "nearest")
        return columns

    @property
    def story(self) -> str:
        return (
            f"the latents of the masked {self.hidden}, from the visible rest, and from these "
            f"latents {self.target.story}."
        )

    @property
    def picture_note(self) -> str:
        return (
            super().picture_note + " No regressor: the full image encoded and decoded without it "
            "(paper, Figure 4)."
        )

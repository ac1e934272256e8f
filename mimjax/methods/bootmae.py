"""BootMAE: bootstrapped masked autoencoders (Dong et al. 2022), arXiv:2207.07116.

A pixel regressor and a feature predictor read the same visible latents; the first is fed the
encoder's first block, the second its last; features come from the encoder's moving average on the
full image. Defaults follow the official code, which differs from the paper in the mask, both
losses, the lambda ramp and the EMA schedule; the paper's variants are options (see each field).
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from mimjax import errors
from mimjax import patches as pixels
from mimjax.losses import masked_mse, patch_mse, standardize
from mimjax.masking.base import Masking
from mimjax.masking.block import neighbor_weight
from mimjax.methods.ema import copy_f32, lerp
from mimjax.methods.masked import MaskedTask
from mimjax.models.decoders import InjectedDecoder
from mimjax.models.vit import ViT
from mimjax.patches import gather, patchify
from mimjax.rng import named
from mimjax.targets.pixels import Pixels
from mimjax.task import Batch, Key, LossOutput, PyTree
from mimjax.values import Index, Mean, NonNegative, Rate, Share, Some, Std


@dataclasses.dataclass(frozen=True)
class BootMAE(MaskedTask):
    """Bootstrapped masked autoencoder.

    Attributes:
      encoder, pixel_decoder, feature_decoder: networks. Decoder heads None = the encoder's, feature
        width None = the encoder's, as in the code; output widths and grids are derived.
      pixel_layer, feature_layer: encoder blocks injected into the two decoders: first and last
        (section 3.3, Table 8). `*_decoder.inject=False` removes the cross-attention (Table 2).
      masking: 120 block patches topped up to 147 (code); kind=block: the paper's block-wise 75 %.
        Blocks have 16 to 60 patches (appendix C and code).
      pixel_norm: "channel" (code); "mae" is what the paper says.
      feature_norm: "both" = LayerNorm of target and prediction (code), "target", or "none" (eq. 5).
      pixel_weight, feature_weight: 1 and lambda = 1 (eq. 6); 0 leaves the branch out.
      lambda_ramp: lambda rises linearly over this share of the epochs: 0.25 (code); 0 = paper.
      weighted_mask: weigh patches by their masked neighbors (appendix C).
      divide_by_weight: divide losses by the mean weight and not by the mean mask (code: False).
      teacher_fraction: share of the image that the EMA encoder sees (Table 5). 1 = the full image;
        less = that many patches, drawn from the masked ones; features are learned there only.
      ema_start, ema_mid, ema_end: decay 0.999 to 0.9999 over 100 epochs, then to ema_end over 300
        more (code: 0.99999 for Base, 0.9999 for Large).
      ema_per_step: let the decay move every step and not every epoch (paper's wording).
      mean, std: 0.5, as BootMAE's code.
    """

    encoder: ViT = ViT(pos_embed="sincos_yx", bias="qv", init_scheme="bootmae")
    pixel_decoder: InjectedDecoder = InjectedDecoder(width=512)
    feature_decoder: InjectedDecoder = InjectedDecoder()
    pixel_layer: Index = 0
    feature_layer: Index = -1
    masking: Masking = Masking(kind="block_random", max_block=60)
    pixel_norm: pixels.PatchNorm = "channel"
    feature_norm: Literal["both", "target", "none"] = "both"
    pixel_weight: NonNegative = 1.0
    feature_weight: NonNegative = 1.0
    lambda_ramp: Share = 0.25
    weighted_mask: bool = True
    divide_by_weight: bool = False
    teacher_fraction: Some = 1.0
    ema_start: Rate = 0.999
    ema_mid: Rate = 0.9999
    ema_end: Rate = 0.99999
    ema_per_step: bool = False
    mean: Mean = pixels.HALF
    std: Std = pixels.HALF

    def __post_init__(self):
        super().__post_init__()
        enc = self.encoder
        errors.block_index("method.pixel_layer", self.pixel_layer, enc.depth)
        errors.block_index("method.feature_layer", self.feature_layer, enc.depth)
        for name, out, width in (("pixel", self.patch_dim, 512), ("feature", enc.width, enc.width)):
            old = getattr(self, f"{name}_decoder")
            new = old.clone(
                out=out,
                grid=enc.grid,
                pixel_head=name == "pixel",
                channels=len(self.mean),
                width=old.width or width,
                heads=old.heads or enc.heads,
            )
            errors.heads(f"method.{name}_decoder", new, floor=True)
            errors.sine_cosine(f"method.{name}_decoder", new)
            object.__setattr__(self, f"{name}_decoder", new)  # derived fields
        if self.feature_weight and not 0 < self.num_teacher <= enc.num_patches:
            raise errors.ConfigError(
                f"method.teacher_fraction: {self.teacher_fraction}; allowed: 1 (the full image) or "
                f"a share of at most {self.num_masked} of {enc.num_patches} patches"
            )

    @property
    def num_teacher(self) -> int:
        """Patches whose features are predicted; 0 if the fraction cannot be had."""
        if self.teacher_fraction == 1.0:
            return self.num_masked
        count = round(self.teacher_fraction * self.encoder.num_patches)
        return count if count <= self.num_masked else 0

    @property
    def pixel_space(self) -> str | None:
        return self.pixel_norm if self.pixel_weight else None

    @property
    def story(self) -> str:
        parts = [Pixels(self.pixel_norm).story] if self.pixel_weight else []
        if self.feature_weight:
            parts.append("the features that the encoder's own moving average has of the full image")
        return f"{' and '.join(parts)}, at the masked {self.hidden}, from the visible rest."

    def init(self, key: Key) -> tuple[PyTree, PyTree]:
        images, *ids = self.example()
        f, encoder = self.encoder.init_with_output(named(key, "encoder"), images, ids[0])
        params = {"encoder": encoder["params"]}
        for name, weight in (("pixel", self.pixel_weight), ("feature", self.feature_weight)):
            if weight:
                decoder = getattr(self, f"{name}_decoder")
                variables = decoder.init(named(key, name), f.tokens, f.blocks[0], *ids)
                params[f"{name}_decoder"] = variables["params"]
        return params, {}

    def init_ema(self, params: PyTree) -> PyTree:
        return {"encoder": copy_f32(params["encoder"])} if self.feature_weight else {}

    def update_ema(self, ema: PyTree, old: PyTree, new: PyTree, step) -> PyTree:
        return {k: lerp(v, new[k], self.ema_decay(step)) for k, v in ema.items()}

    def ema_decay(self, step):
        """Set once per epoch from 0: start to mid over 100 epochs, to end over the next 300."""
        epoch = self.clock.epoch(step)
        if self.ema_per_step:
            epoch = step / self.clock.steps_per_epoch
        first = self.ema_start + epoch / 100 * (self.ema_mid - self.ema_start)
        then = self.ema_mid + jnp.clip(epoch - 100, 0, 300) / 300 * (self.ema_end - self.ema_mid)
        return jnp.where(epoch < 100, first, then)

    def lambda_(self, step):
        """Weight of the feature loss, min(lambda * (1 + epoch) / (ramp * epochs), lambda)."""
        if not self.lambda_ramp:
            return jnp.asarray(self.feature_weight)
        share = (1 + self.clock.epoch(step)) / (self.lambda_ramp * self.clock.epochs)
        return self.feature_weight * jnp.minimum(share, 1.0)

    def prepare(
        self, ema: PyTree, frozen: PyTree, batch: Batch, key: Key, step, train: bool
    ) -> Batch:
        out = self.masked_batch(batch)
        images, mask, ids_v, ids_m = (out[k] for k in ("image", "mask", "ids_v", "ids_m"))
        patches = patchify(images, self.encoder.patch)
        target = pixels.normalize_patches(patches, self.pixel_norm, len(self.mean))
        weight = neighbor_weight(mask, self.encoder.grid) if self.weighted_mask else mask
        out |= {
            "target": gather(target, ids_m),
            # what naive predictors may read; dead code in the train step
            "visible_target": gather(target, ids_v),
            "weight_m": jnp.take_along_axis(weight.astype(jnp.float32), ids_m, axis=1),
        }
        return out | self.teacher(ema, images, ids_m, key) if ema else out

    def teacher(self, ema: PyTree, images, ids_m, key: Key) -> Batch:
        """EMA features (last block before the final norm) at ids_m, or at a sample of them.

        Returns:
          "features" float32 [b k d] and "rows" [b k], their places among the masked patches.
        """
        rows = jnp.broadcast_to(jnp.arange(self.num_masked), ids_m.shape)
        prefix = self.encoder.num_prefix
        if self.teacher_fraction == 1.0:
            blocks = self.encoder.apply({"params": ema["encoder"]}, images).blocks
            return {
                "features": gather(blocks[-1][:, prefix:], ids_m).astype(jnp.float32),
                "rows": rows,
            }
        noise = jax.random.uniform(named(key, "teacher"), rows.shape)
        rows = jnp.sort(jnp.argsort(noise, axis=1)[:, : self.num_teacher], axis=1)
        ids = jnp.take_along_axis(ids_m, rows, axis=1)
        blocks = self.encoder.apply({"params": ema["encoder"]}, images, ids).blocks
        return {"features": blocks[-1][:, prefix:].astype(jnp.float32), "rows": rows}

    def own_targets(self, batch: Batch) -> dict[str, jax.Array]:
        return {"features": batch["features"]} if "features" in batch else {}

    def predict(self, params: PyTree, batch: Batch, key: Key, train: bool, all_patches=False):
        """Predictions "pixel" and "feature" (a branch left out is absent), float32 [b m d]."""
        ids = batch["ids_v"], batch["ids_m"]
        f = self.encoder.apply(
            {"params": params["encoder"]},
            batch["image"],
            ids[0],
            None,
            train,
            rngs={"drop_path": key},
        )
        out = {}
        for name, layer in (("pixel", self.pixel_layer), ("feature", self.feature_layer)):
            if f"{name}_decoder" in params:
                decoder = getattr(self, f"{name}_decoder")
                variables = {"params": params[f"{name}_decoder"]}
                pred = decoder.apply(variables, f.tokens, f.blocks[layer], *ids, all_patches)
                out[name] = pred.astype(jnp.float32)
        return out

    def loss(
        self, params: PyTree, model_state: PyTree, batch: Batch, key: Key, step, train: bool
    ) -> LossOutput:
        pred, weight = self.predict(params, batch, key, train), batch["weight_m"]
        total, metrics, preds = jnp.zeros(()), {}, {}
        if "pixel" in pred:
            loss = masked_mse(pred["pixel"], batch["target"], weight, self.divide_by_weight)
            total += self.pixel_weight * loss
            metrics["loss/pixel"] = loss
            error = patch_mse(pred["pixel"], batch["target"]).mean(-1)
            preds = {"pred": pred["pixel"], "target": batch["target"], "error": error}
        if "feature" in pred:
            feature, target = gather(pred["feature"], batch["rows"]), batch["features"]
            if self.feature_norm != "none":
                target = standardize(target)
            if self.feature_norm == "both":
                feature = standardize(feature)
            weight = jnp.take_along_axis(weight, batch["rows"], axis=1)
            loss = masked_mse(feature, target, weight, self.divide_by_weight)
            lam = self.lambda_(step)
            total += lam * loss
            metrics |= {"loss/feature": loss, "lambda": lam, "ema_decay": self.ema_decay(step)}
            preds["feature"] = feature
        return LossOutput(total, metrics, preds=lax.stop_gradient(preds))

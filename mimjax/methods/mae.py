"""MAE: masked autoencoders (He et al. 2022) - an encoder on visible patches, pixels as targets.

Defaults follow the official code at ViT-B/16. Options: pixel normalization, PCA coefficients or
the features of a frozen encoder as targets (slides' ablation d; BootMAE Tables 3 and 9), mask
tokens inside the encoder (ablation c), every mask sampler (ablation f). The official code embeds
all patches and gathers afterwards; here the visible patches are gathered first: the same function.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
import numpy as np

from mimjax import errors
from mimjax import patches as pixels
from mimjax.losses import masked_mse, patch_mse, standardize
from mimjax.methods.masked import MaskedTask
from mimjax.models.decoders import MAEDecoder
from mimjax.patches import gather, patchify
from mimjax.rng import named
from mimjax.targets.pixels import Pixels
from mimjax.task import Batch, Key, LossOutput, PyTree, Reader
from mimjax.values import Count


@dataclasses.dataclass(frozen=True)
class MAE(MaskedTask):
    """Masked autoencoder.

    Attributes:
      encoder, decoder: networks; the decoder's output width and grid are derived.
      masking: random 75 % (paper section 3).
      target: "pixels"; "pca" = leading coefficients of a patch PCA; "features" = last block of a
        frozen encoder (`config.teacher.path`) on the full image, as BootMAE's Tables 3 and 9.
      pixel_norm: "mae" (the published recipe), "channel" (BootMAE's) or "none" (the code's flag
        default).
      pca_components: 96 in the MAE paper.
      mean, std: ImageNet's, as MAE's code.
    """

    FITTED = ("pca",)

    decoder: MAEDecoder = MAEDecoder()
    target: Literal["pixels", "pca", "features"] = "pixels"
    pixel_norm: pixels.PatchNorm = "mae"
    pca_components: Count = 96

    def __post_init__(self):
        super().__post_init__()
        errors.heads("method.decoder", self.decoder)
        errors.sine_cosine("method.decoder", self.decoder)
        if self.target == "pca" and self.pca_components > self.patch_dim:
            raise errors.ConfigError(
                f"method.pca_components: {self.pca_components}; allowed: 1 to {self.patch_dim}"
            )
        decoder = self.decoder.clone(
            out={
                "pixels": self.patch_dim,
                "pca": self.pca_components,
                "features": self.encoder.width,
            }[self.target],
            grid=self.encoder.grid,
            mask_tokens=not self.encoder.use_mask_token,
        )
        object.__setattr__(self, "decoder", decoder)  # derived fields of a frozen dataclass

    @property
    def pixel_space(self) -> str | None:
        return self.pixel_norm if self.target == "pixels" else None

    @property
    def story(self) -> str:
        what = {"pca": "leading PCA coefficients", "features": "features of a frozen encoder"}
        found = f"the {what[self.target]}" if self.target in what else Pixels(self.pixel_norm).story
        return f"{found} of the masked {self.hidden}, from the visible rest."

    def init(self, key: Key) -> tuple[PyTree, PyTree]:
        images, ids_v, ids_m = self.example()
        ids = None if self.encoder.use_mask_token else ids_v
        f, encoder = self.encoder.init_with_output(named(key, "encoder"), images, ids)
        decoder = self.decoder.init(named(key, "decoder"), f.tokens, ids_v, ids_m)
        return {"encoder": encoder["params"], "decoder": decoder["params"]}, {}

    def init_frozen(self, key: Key) -> PyTree:
        if self.target == "pca":
            shape = self.patch_dim, self.pca_components
            return {"pca": {"mean": jnp.zeros(shape[:1]), "basis": jnp.zeros(shape)}}
        if self.target == "features":
            return {"encoder": self.encoder.init(key, self.example()[0])["params"]}
        return {}

    def frozen_readers(self) -> dict[str, Reader]:
        if self.target != "features":
            return {}
        return {"encoder": Reader(self.encoder, self.mean, self.std)}

    def fit_frozen(self, frozen: PyTree, sample: Callable[[int], np.ndarray]) -> PyTree:
        if self.target != "pca":
            return frozen
        images = pixels.normalize(jnp.asarray(sample(512)), self.mean, self.std)
        patches = np.asarray(patchify(images, self.encoder.patch)).reshape(-1, self.patch_dim)
        return {"pca": pixels.pca_basis(patches, self.pca_components)}

    def prepare(
        self, ema: PyTree, frozen: PyTree, batch: Batch, key: Key, step, train: bool
    ) -> Batch:
        out = self.masked_batch(batch)
        target = self.targets(frozen, out["image"])
        return out | {
            "target": gather(target, out["ids_m"]),
            # what naive predictors may read; dead code in the train step
            "visible_target": gather(target, out["ids_v"]),
        }

    def targets(self, frozen: PyTree, images):
        """Target of every patch, float32 [b n d]."""
        patches = patchify(images, self.encoder.patch)
        if self.target == "pca":
            return (patches - frozen["pca"]["mean"]) @ frozen["pca"]["basis"]
        if self.target == "features":
            f = self.encoder.apply({"params": frozen["encoder"]}, images)
            return standardize(f.read("all", layer=-1)[:, f.prefix :])
        return pixels.normalize_patches(patches, self.pixel_norm, len(self.mean))

    def predict(self, params: PyTree, batch: Batch, key: Key, train: bool, all_patches=False):
        """Predictions float32 [b m d] for ids_m (with all_patches [b n d] for [ids_v, ids_m])."""
        ids_v, ids_m, mask = batch["ids_v"], batch["ids_m"], self.encoder.use_mask_token
        f = self.encoder.apply(
            {"params": params["encoder"]},
            batch["image"],
            None if mask else ids_v,
            batch["mask"] if mask else None,
            train,
            rngs={"drop_path": key},
        )
        tokens = f.tokens
        if mask:  # all tokens come out of the encoder: bring them into the decoder's order
            order = jnp.concatenate([ids_v, ids_m], axis=1)
            prefix, patches = tokens[:, : f.prefix], tokens[:, f.prefix :]
            tokens = jnp.concatenate([prefix, gather(patches, order)], axis=1)
        pred = self.decoder.apply({"params": params["decoder"]}, tokens, ids_v, ids_m, all_patches)
        return pred.astype(jnp.float32)

    def loss(
        self, params: PyTree, model_state: PyTree, batch: Batch, key: Key, step, train: bool
    ) -> LossOutput:
        pred = self.predict(params, batch, key, train)
        loss = masked_mse(pred, batch["target"])
        error = patch_mse(pred, batch["target"]).mean(-1)
        return LossOutput(
            loss,
            {f"loss/{self.target}": loss},
            preds={"pred": pred, "target": batch["target"], "error": error},
        )

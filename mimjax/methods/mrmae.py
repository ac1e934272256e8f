"""MR-MAE: mimic before reconstruct (Gao et al. 2023), arXiv:2303.05475.

Visible tokens mimic a frozen teacher's features right after the encoder; masked pixels are
reconstructed after the decoder, as in MAE. The authors released no code: what the paper leaves
open is decided here and said to be ours, with the other readings as options.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from mimjax import errors
from mimjax import patches as pixels
from mimjax.losses import masked_mse, patch_mse, standardize, unit
from mimjax.masking.salient import Selection, select_visible
from mimjax.methods.masked import MaskedTask
from mimjax.models.conv_vit import ConvViT
from mimjax.models.decoders import MAEDecoder
from mimjax.models.heads import LinearHead
from mimjax.patches import gather, patchify
from mimjax.rng import named
from mimjax.targets.base import Target, checked_views
from mimjax.targets.clip import CLIP
from mimjax.targets.pixels import Pixels
from mimjax.task import Batch, Key, LossOutput, PyTree, Reader, View
from mimjax.values import NonNegative


@dataclasses.dataclass(frozen=True)
class MRMAE(MaskedTask):
    """Mimic before reconstruct.

    Attributes:
      encoder: MCMAE's hierarchical one (the paper's final model) or, for the ablations, a ViT; its
        `fuse_layers` are summed before the norm (section 3.3, "multi-layer fusion": the paper names
        no layers; quarter points are ours).
      decoder: MAE's, 8 blocks (section 4.1); width and heads are MAE's, the paper gives none.
      masking: ratio 0.75: section 4.1's "mask ratio 25 %" is the visible share everywhere else.
      target: the teacher's patch tokens after its last norm, not projected (ours: the paper's width
        is the encoder's).
      select: which patches are visible, "focused mimicking" (section 3.3): "topk" = those that the
        teacher's CLS token attends to most, mean over heads of the last block (ours: a literal
        reading); "sample" = drawn by attention without replacement, as MILAN; "random".
      target_norm: of each teacher token: "none" (the paper mentions none), "layernorm" or "l2".
      pixel_weight, mimic_weight: 0.5 and 0.5 (section 4.1); 0 leaves a loss out (Table 3).
      mimic_at: "encoder" = visible tokens; "decoder" = both targets after the decoder, at masked
        patches: the "semantic conflict" of Figure 1 (b) and Table 3.
      pixel_norm: see `pixels.normalize_patches`; "mae" is MCMAE's command, the paper says nothing.
    """

    encoder: ConvViT = ConvViT(fuse_layers=(2, 5, 8, 10))  # pyright: ignore
    decoder: MAEDecoder = MAEDecoder()
    target: Target = CLIP(project=False)
    mimic_head: LinearHead = LinearHead(init_scheme="mae")
    select: Selection = "topk"
    target_norm: Literal["none", "layernorm", "l2"] = "none"
    pixel_weight: NonNegative = 0.5
    mimic_weight: NonNegative = 0.5
    mimic_at: Literal["encoder", "decoder"] = "encoder"
    pixel_norm: pixels.PatchNorm = "mae"

    def __post_init__(self):
        super().__post_init__()
        errors.heads("method.decoder", self.decoder)
        errors.sine_cosine("method.decoder", self.decoder)
        if not (self.pixel_weight or self.mimic_weight):
            raise errors.ConfigError(
                "method.pixel_weight, method.mimic_weight: both 0; allowed: one of them above 0"
            )
        if self.select != "random" and not self.target.has_attention:
            raise errors.ConfigError(
                f"method.select: {self.select!r} needs a teacher whose CLS token's attention is "
                f"known, and {type(self.target).__name__} has none; allowed: random"
            )
        _ = self.views  # raises where the target's grid is not the student's
        dim = self.target.out_dim(self.encoder)
        both = self.mimic_at == "decoder"
        ratios = self.encoder.stage_mlp_ratios  # a ViT has none
        decoder = self.decoder.clone(
            out=self.patch_dim + (dim if both else 0),
            grid=self.encoder.grid,
            prefix=self.encoder.num_prefix,
            mlp_ratio=ratios[0] if ratios else 4.0,  # as MCMAE's code
        )
        # derived fields of a frozen dataclass
        object.__setattr__(self, "decoder", decoder)
        object.__setattr__(self, "mimic_head", self.mimic_head.clone(out=dim))

    @property
    def views(self) -> dict[str, View]:
        return super().views | checked_views(self.target, self.encoder, len(self.mean))

    @property
    def mask_fn(self) -> None:
        """Patches are chosen on the device, where the teacher is."""
        return None

    @property
    def decodes(self) -> bool:
        return bool(self.pixel_weight or self.mimic_at == "decoder")

    def init(self, key: Key) -> tuple[PyTree, PyTree]:
        images, ids_v, ids_m = self.example()
        f, encoder = self.encoder.init_with_output(named(key, "encoder"), images, ids_v)
        params = {"encoder": encoder["params"]}
        if self.decodes:
            variables = self.decoder.init(named(key, "decoder"), f.tokens, ids_v, ids_m)
            params["decoder"] = variables["params"]
        if self.mimic_weight and self.mimic_at == "encoder":
            head = self.mimic_head.init(named(key, "mimic_head"), f.tokens)
            params["mimic_head"] = head["params"]
        return params, {}

    def init_frozen(self, key: Key) -> PyTree:
        return self.target.init_frozen(named(key, "target"), self.encoder)

    def frozen_readers(self) -> dict[str, Reader]:
        return self.target.readers()

    def prepare(
        self, ema: PyTree, frozen: PyTree, batch: Batch, key: Key, step, train: bool
    ) -> Batch:
        """Also "attention" [b n], the teacher's (mean over heads), for pictures."""
        attention, visible = None, self.encoder.num_patches - self.num_masked
        if self.select == "random":
            hidden = self.target.encode(frozen, batch, self.encoder)
            attention = jnp.ones((len(hidden), self.encoder.num_patches))
        else:
            hidden, heads = self.target.encode_with_attention(frozen, batch, self.encoder)
            attention = heads.mean(1)
        ids_v, ids_m = select_visible(attention, visible, self.select, named(key, "select"))
        images = pixels.normalize(batch["image"], self.mean, self.std)
        where = ids_v if self.mimic_at == "encoder" else ids_m
        hidden = gather(hidden[:, self.target.num_prefix :], where)
        out = self.assemble(images, ids_v, ids_m, self.target.read(frozen, hidden))
        return out | {"attention": attention}

    def assemble(self, images, ids_v, ids_m, features) -> Batch:
        """What `loss` reads, from normalized images, ids and the teacher's tokens."""
        patches = patchify(images, self.encoder.patch)
        target = pixels.normalize_patches(patches, self.pixel_norm, len(self.mean))
        return {
            "image": images,
            "ids_v": ids_v,
            "ids_m": ids_m,
            "target": gather(target, ids_m),
            # what naive predictors may read; dead code in the train step
            "visible_target": gather(target, ids_v),
            "features": self.normalize(features),
        }

    def normalize(self, features):
        """The teacher's tokens as they are mimicked, float32 [b k d]."""
        if self.target_norm == "layernorm":
            return standardize(features)
        return unit(features) if self.target_norm == "l2" else features

    def predict(self, params: PyTree, batch: Batch, key: Key, train: bool) -> dict[str, jax.Array]:
        """Predictions "pixel" [b m p] and "mimic" [b k d], float32, of what is learned."""
        ids_v, ids_m = batch["ids_v"], batch["ids_m"]
        rngs, out = {"drop_path": key}, {}
        variables = {"params": params["encoder"]}
        f = self.encoder.apply(variables, batch["image"], ids_v, None, train, rngs=rngs)
        if "decoder" in params:
            decoded = self.decoder.apply({"params": params["decoder"]}, f.tokens, ids_v, ids_m)
            decoded = decoded.astype(jnp.float32)
            out["pixel"] = decoded[..., : self.patch_dim]
            if self.mimic_at == "decoder":
                out["mimic"] = decoded[..., self.patch_dim :]
        if "mimic_head" in params:
            tokens = f.tokens[:, f.prefix :]
            mimic = self.mimic_head.apply({"params": params["mimic_head"]}, tokens)
            out["mimic"] = mimic.astype(jnp.float32)
        return out

    def loss(
        self, params: PyTree, model_state: PyTree, batch: Batch, key: Key, step, train: bool
    ) -> LossOutput:
        pred = self.predict(params, batch, key, train)
        total, metrics, preds = jnp.zeros(()), {}, {}
        if "pixel" in pred and self.pixel_weight:
            loss = masked_mse(pred["pixel"], batch["target"])
            total += self.pixel_weight * loss
            metrics["loss/pixel"] = loss
            error = patch_mse(pred["pixel"], batch["target"]).mean(-1)
            preds = {"pred": pred["pixel"], "target": batch["target"], "error": error}
        if "mimic" in pred and self.mimic_weight:
            loss = masked_mse(pred["mimic"], batch["features"])
            total += self.mimic_weight * loss
            metrics["loss/mimic"] = loss
        return LossOutput(total, metrics, preds=lax.stop_gradient(preds))

    def pictures(
        self, params: PyTree, frozen: PyTree, batch: Batch, preds: dict[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """Original, the teacher's attention, the visible patches and the reconstruction."""
        image, encoder = batch["image"], self.encoder
        heat = batch["attention"] / batch["attention"].max(-1, keepdims=True)
        order = jnp.argsort(jnp.concatenate([batch["ids_v"], batch["ids_m"]], 1), axis=1)
        original, visible = self.shown(image, order >= batch["ids_v"].shape[1])
        columns = {
            "original": original,
            "attention": original * (0.15 + 0.85 * self.spread(heat[..., None])),
            "visible": visible,
        }
        if "pred" in preds:
            full = jnp.concatenate([batch["visible_target"], preds["pred"]], axis=1)
            values = gather(full, order)
            pixel = Pixels(self.pixel_norm, self.mean, self.std)
            columns["reconstruction"] = pixel.decode({}, values, encoder, image)  # pyright: ignore
        return columns

    @property
    def story(self) -> str:
        where = "visible" if self.mimic_at == "encoder" else "masked"
        pixel = f"{Pixels(self.pixel_norm).story} of the masked {self.hidden}"
        parts = [pixel] * bool(self.pixel_weight)
        parts += [f"{self.target.story} of the {where} ones"] * bool(self.mimic_weight)
        return f"{' and '.join(parts)}, from the visible ones."

    @property
    def picture_note(self) -> str:
        chosen = "at random" if self.select == "random" else "by the teacher's attention"
        return f"Visible patches chosen {chosen}. " + Pixels(self.pixel_norm).picture_note

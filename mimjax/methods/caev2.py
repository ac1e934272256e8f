"""CAE v2: context autoencoder with CLIP latent alignment (Zhang et al. 2023), arXiv:2211.09799.

CAE's encoder and regressor; one head, shared by visible and predicted masked latents, is aligned
with a frozen teacher's tokens. Defaults follow the official code, in which one mean over all
tokens, CLS among them, is the loss and the head normalizes first; the paper's are options.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from mimjax import errors
from mimjax.losses import distance
from mimjax.methods.cae import LatentTask
from mimjax.models.regressor import SharedHead
from mimjax.patches import gather
from mimjax.rng import named
from mimjax.targets.base import Target
from mimjax.targets.clip import CLIP
from mimjax.targets.colors import feature_colors
from mimjax.task import Batch, Key, LossOutput, PyTree
from mimjax.values import NonNegative


@dataclasses.dataclass(frozen=True)
class CAEv2(LatentTask):
    """CAE v2.

    Attributes:
      encoder, regressor, head: networks. regressor.depth 0 leaves it out: only visible latents are
        aligned (Table 4).
      masking: block-wise; 49 or 30 of 196 for small sizes, 98 for Base (section 3.1).
      target: a teacher with one CLS token before its patches.
      distance: "cosine" (eq. 2), "mse" or "smooth_l1" (Table 3), between vectors of length one in
        the code's form; the last two compare vectors as they are.
      head_order: "ln_fc" (code) or "fc_ln" (appendix B.1).
      loss_form: "code" = one mean over CLS, visible and masked tokens; "paper" = the mean over
        visible plus the mean over masked patches (eq. 2), about twice as large.
      visible_weight, masked_weight: 1 and 1; 0 leaves a loss out (Table 2). The CLS token counts
        as visible in the code's form.
    """

    target: Target = CLIP()
    distance: Literal["mse", "cosine", "smooth_l1"] = "cosine"
    head: SharedHead = SharedHead()
    head_order: Literal["ln_fc", "fc_ln"] = "ln_fc"
    loss_form: Literal["code", "paper"] = "code"
    visible_weight: NonNegative = 1.0
    masked_weight: NonNegative = 1.0

    def __post_init__(self):
        super().__post_init__()
        if self.target.discrete or self.target.num_prefix != 1:
            raise errors.ConfigError(
                f"method.target.type: {type(self.target).__name__} is no teacher with a CLS token; "
                "allowed: mimjax.targets.clip:CLIP, mimjax.targets.encoder:EncoderFeatures"
            )
        if not self.visible_weight and not (self.masked_weight and self.regressor.depth):
            raise errors.ConfigError(
                "method.visible_weight, method.masked_weight: no loss is left; allowed: one of "
                "them above 0 (and regressor.depth above 0 for the masked one)"
            )
        regressor = self.regressor.clone(final_norm=False)
        object.__setattr__(self, "regressor", regressor)  # derived fields of a frozen dataclass
        head = self.head.clone(order=self.head_order, out=self.pred_dim)
        object.__setattr__(self, "head", head)

    @property
    def regresses(self) -> bool:
        """Whether masked latents are predicted and learned."""
        return bool(self.regressor.depth and self.masked_weight)

    def init(self, key: Key) -> tuple[PyTree, PyTree]:
        params, tokens, _ = self.init_latents(key)
        if not self.regresses:
            del params["regressor"]
        params["head"] = self.head.init(named(key, "head"), tokens)["params"]
        return params, {}

    def prepare(
        self, ema: PyTree, frozen: PyTree, batch: Batch, key: Key, step, train: bool
    ) -> Batch:
        out = self.masked_batch(batch)
        hidden = self.target.encode(frozen, batch, self.encoder)
        order = [out["ids_v"] + 1, out["ids_m"] + 1]
        if self.loss_form == "code":
            order.insert(0, jnp.zeros_like(order[0][:, :1]))  # CLS
        ids = jnp.concatenate(order if self.regresses else order[:-1], axis=1)
        return out | {"target": self.target.read(frozen, gather(hidden, ids))}

    def outputs(self, params: PyTree, batch: Batch, key: Key, train: bool):
        """The head's output for CLS, visible and, with a regressor, masked tokens: [b t o]."""
        tokens = self.visible(params, batch, key, train)
        if self.regresses:
            masked = self.regress(params, tokens, batch, key, train)
            tokens = jnp.concatenate([tokens, masked], axis=1)
        return self.head.apply({"params": params["head"]}, tokens)

    def loss(
        self, params: PyTree, model_state: PyTree, batch: Batch, key: Key, step, train: bool
    ) -> LossOutput:
        pred, seen = self.outputs(params, batch, key, train), batch["ids_v"].shape[1]
        if self.loss_form == "code":
            seen += 1  # CLS counts as visible
        else:
            pred = self.patches(pred)
        apart = distance(self.distance, pred, batch["target"])
        visible, masked = apart[:, :seen], apart[:, seen:]
        total, metrics = jnp.zeros(()), {}
        # one joint mean over the tokens that count, or a mean of each set
        parts = {"visible": (visible, self.visible_weight), "masked": (masked, self.masked_weight)}
        parts = {k: v for k, v in parts.items() if v[1] and v[0].shape[1]}
        joint = sum(x.shape[1] for x, _ in parts.values())
        for name, (x, weight) in parts.items():
            metrics[f"loss/{name}"] = x.mean()
            share = x.shape[1] / joint if self.loss_form == "code" else 1.0
            total += weight * share * x.mean()
        preds = {"pred": pred, "target": batch["target"]}
        if masked.shape[1]:
            preds["error"] = masked.mean(-1)
        return LossOutput(total, metrics, preds=lax.stop_gradient(preds))

    def pictures(
        self, params: PyTree, frozen: PyTree, batch: Batch, preds: dict[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """Original, masked image, and the latents of teacher and student as colors.

        The student's masked patches are the regressor's predictions; without a regressor gray.
        """
        image, ids = batch["image"], batch["ids_v"]
        colors = feature_colors(batch["target"], preds["pred"])
        if self.loss_form == "code":
            colors = tuple(self.patches(c) for c in colors)  # CLS has no place in a picture
        if self.regresses:
            ids = jnp.concatenate([ids, batch["ids_m"]], axis=1)
        rows = jnp.arange(len(ids))[:, None]
        blank = jnp.full((len(ids), self.encoder.num_patches, 3), 0.5)
        teacher, student = (self.spread(blank.at[rows, ids].set(c)) for c in colors)
        original, masked = self.shown(image, batch["mask"])
        return {"original": original, "masked": masked, "teacher": teacher, "student": student}

    @property
    def story(self) -> str:
        masked = f", and through a regressor of the masked {self.hidden}" * self.regresses
        return f"{self.target.story} of the visible patches{masked}."

    @property
    def picture_note(self) -> str:
        return (
            "Colors: the three leading principal components of the teacher's latents of these "
            "images. Student: aligned latents of visible patches, predicted ones of masked patches."
        )

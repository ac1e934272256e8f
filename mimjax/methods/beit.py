"""BEiT: BERT pretraining of image transformers (Bao et al. 2022), arXiv:2106.08254.

The encoder sees all patches, masked ones as a learned token, and predicts their codes by a linear
head. Defaults follow the official code (microsoft/unilm), which shares one relative position bias
among the blocks and scales layers, neither of which the paper's first version mentions.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jax import lax

from mimjax import errors
from mimjax.masking.base import Masking
from mimjax.methods.masked import TargetTask
from mimjax.models.heads import LinearHead
from mimjax.models.vit import ViT
from mimjax.patches import gather
from mimjax.rng import named
from mimjax.targets.base import Target
from mimjax.targets.dalle import DallE
from mimjax.task import Batch, Key, LossOutput, PyTree


@dataclasses.dataclass(frozen=True)
class BEiT(TargetTask):
    """BEiT version 1.

    Attributes:
      encoder: rel_pos "shared" (code), "per_block" or "none"; pos_embed "none" (code) or
        "learned"; layer_scale 0.1 for Base, 1e-5 for Large.
      masking: 75 of 196 patches block-wise. kind "block": exactly so many; "block_at_most": the
        official sampler, which stops short in a third of the images. Its ids are padded with
        visible patches of weight 0, so that shapes stay static; the loss is the mean over the
        masked patches of the global batch.
      target: DALL-E tokens.
    """

    WEIGHS_MASKS = True

    encoder: ViT = ViT(
        pos_embed="none",
        rel_pos="shared",
        layer_scale=0.1,
        bias="qv",
        init_scheme="beit",
        drop_path=0.1,
        use_mask_token=True,
    )
    masking: Masking = Masking(kind="block", ratio=0.38, max_block=None)
    target: Target = DallE()
    head: LinearHead = LinearHead()

    def __post_init__(self):
        super().__post_init__()
        if not self.encoder.use_mask_token:
            raise errors.ConfigError(
                "method.encoder.use_mask_token: False; BEiT's encoder sees mask tokens: True"
            )
        object.__setattr__(self, "head", self.head.clone(out=self.pred_dim))

    def init(self, key: Key) -> tuple[PyTree, PyTree]:
        images, _, ids_m = self.example()
        mask = jnp.zeros((len(images), self.encoder.num_patches), bool)
        f, encoder = self.encoder.init_with_output(named(key, "encoder"), images, None, mask)
        head = self.head.init(named(key, "head"), gather(f.tokens[:, f.prefix :], ids_m))
        return {"encoder": encoder["params"], "head": head["params"]}, {}

    def prepare(
        self, ema: PyTree, frozen: PyTree, batch: Batch, key: Key, step, train: bool
    ) -> Batch:
        out = self.target_batch(frozen, batch, key, train)
        if not self.masking.exact:
            # `split` puts visible patches first: where too few are masked, the first of the
            # static number of "masked" ids are visible ones. Weights have mean 1 over the batch.
            real = jnp.take_along_axis(batch["mask"], out["ids_m"], axis=1).astype(jnp.float32)
            # Should a batch have no masked patch at all, its loss is 0 and not the mean of nothing.
            out["weight_m"] = real / jnp.maximum(real.mean(), 1 / real.size)
        return out

    def loss(
        self, params: PyTree, model_state: PyTree, batch: Batch, key: Key, step, train: bool
    ) -> LossOutput:
        f = self.encoder.apply(
            {"params": params["encoder"]},
            batch["image"],
            None,
            batch["mask"],
            train,
            rngs={"drop_path": named(key, "encoder")},
        )
        tokens = gather(f.tokens[:, f.prefix :], batch["ids_m"])
        pred = self.head.apply({"params": params["head"]}, tokens)
        total, metrics, preds = self.target_loss(pred, batch)
        return LossOutput(total, metrics, preds=lax.stop_gradient(preds))

"""BEiT: BERT pretraining of image transformers (Bao et al. 2022, arXiv:2106.08254).

The encoder sees all patches, masked ones as a learned token, and a linear head predicts the codes
that a frozen tokenizer gives the masked ones (section 2).

  loss = mean_m CE(head(encoder(x, mask)), codes)

Defaults follow the official code (microsoft/unilm), which shares one relative position bias among
the blocks and scales layers; the paper's first version mentions neither.

  what       default                        other form, as --config.method.<this>
  masks      75 of 196 patches block-wise,  masking=BlockAtMost (the code's sampler, which stops
             exactly                        short in a third of the images)
  positions  a shared relative bias         encoder.rel_pos=none encoder.pos_embed=learned
  scale      0.1 (Base; Large: 1e-5)        encoder.layer_scale=None
  codes      of DALL-E                      code_target=DVAE, VQGAN, VQKD; Pixels or CLIP with
                                            code.loss=MSE
"""

from __future__ import annotations

import dataclasses

from mimjax.losses import CrossEntropy
from mimjax.masking.base import Masking
from mimjax.masking.block import Block
from mimjax.methods.mim import MIM, Term
from mimjax.models.heads import LinearHead
from mimjax.models.vit import ViT
from mimjax.targets.base import Target
from mimjax.targets.dalle import DallE
from mimjax.task import EncoderNetwork, Predictor


@dataclasses.dataclass(frozen=True)
class BEiT(MIM):
    """The parts in the order of the data: what is seen, targets, networks, what is learned."""

    encoder: EncoderNetwork = ViT(
        pos_embed="none",
        rel_pos="shared",
        layer_scale=0.1,
        bias="qv",
        init_scheme="beit",
        drop_path=0.1,
        use_mask_token=True,
    )
    masking: Masking = Block(ratio=0.38)
    code_target: Target = DallE()
    head: Predictor = LinearHead()
    code: Term = Term("code_target", "head", loss=CrossEntropy())

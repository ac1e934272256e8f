"""CAE v2: context autoencoder with CLIP latent alignment (Zhang et al. 2023, arXiv:2211.09799).

CAE's encoder and regressor; one head, which visible and predicted masked latents share, is aligned
with a frozen teacher's tokens.

  loss = mean over class token, visible and masked tokens of 1 - cos(head(z), teacher(x))    (code)
  loss = mean_v (1 - cos) + mean_m (1 - cos)                                         (2, the paper)

Defaults follow the official code. Where the paper differs, its form is an override:

  what    code (default)                  paper, as --config.method.<this>
  loss    one mean over all tokens        token.at=visible masked.weight=1.0 (about twice as large)
  head    norm, then linear               head.order=fc_ln (appendix B.1)
  masks   98 of 196 block-wise (Base)     masking.ratio=0.25 (S), 0.15 (Ti; section 3.1)
  rows    of Table 2                      token.at=masked, or regressor=None token.at=cls+visible
          of Table 3                      token.loss=MSE or SmoothL1, between vectors as they are
          of Table 4 at depth 0           regressor=None token.at=cls+visible
  weight  1                               token.weight (latent_alignment_loss_weight in the code)
"""

from __future__ import annotations

import dataclasses

from mimjax.losses import Cosine
from mimjax.masking.base import Masking
from mimjax.masking.block import Block
from mimjax.methods.cae import ENCODER
from mimjax.methods.mim import MIM, Term
from mimjax.models.regressor import Regressor, SharedHead
from mimjax.targets.base import Target
from mimjax.targets.clip import CLIP
from mimjax.task import EncoderNetwork, Predictor


@dataclasses.dataclass(frozen=True)
class CAEv2(MIM):
    """The parts in the order of the data: what is seen, targets, networks, what is learned."""

    encoder: EncoderNetwork = ENCODER
    masking: Masking = Block(ratio=0.5)
    teacher_target: Target = CLIP()
    regressor: Predictor | None = Regressor(final_norm=False)
    head: Predictor = SharedHead()
    token: Term = Term("teacher_target", "head", at="cls+visible+masked", loss=Cosine())
    masked: Term = Term("teacher_target", "head", at="masked", loss=Cosine(), weight=0.0)

"""CAE: context autoencoder (Chen et al. 2022, arXiv:2202.03026).

The encoder sees the visible patches. A regressor predicts from their latents those of the masked
patches; these predicted latents are aligned with what the encoder itself makes of the masked
patches, and a decoder predicts codes of a tokenizer from them (section 3).

  z = regressor(encoder(x_v))
  loss = mean_m CE(decoder(z), codes)  +  2 mean_m |z - encoder(x_m)|^2                          (1)

No gradient passes through the aligned target encoder(x_m): it is made in `prepare`. Defaults follow
the official code (Atten4Vis/CAE). Other forms are overrides:

  what       default                                other form, as --config.method.<this>
  aligned    current encoder, as code and paper     align_target.of=average average=Average (the
  target                                            older repository, lxtGH/CAE) with
                                                    average.takes=old average.decay.value=0.0 (by
                                                    default one step behind) or 0.996 (an average)
  masks      98 of 196 block-wise, exactly          masking=Random masking.ratio=0.5
  decoder    4 blocks and a linear layer            decoder.depth=0 (Table 2, no decoder)
  align      weight 2 (section 4.1)                 align.weight=0.0 (Table 2, no alignment)
  codes      of DALL-E                              code_target=VQGAN, DVAE, VQKD (Table 7), or CLIP
                                                    with code.loss=MSE (CAE v2's baseline, the loss
                                                    not published)
  heads      12 of regressor and decoder for every  regressor.heads=16 decoder.heads=16 (what the
             width: the code ignores its flag       script of Large asks for)
  widths     the encoder's                          encoder.project=768 (Large as its script runs,
                                                    where a line continuation is missing): a linear
                                                    layer and a norm behind the encoder, which the
                                                    aligned target passes too and export drops
  noise      drop path 0.1 in the target's pass     align_target.noise=False
             too, with a key of its own
"""

from __future__ import annotations

import dataclasses

from mimjax.losses import MSE, CrossEntropy
from mimjax.masking.base import Masking
from mimjax.masking.block import Block
from mimjax.methods.mim import MIM, Term
from mimjax.models.regressor import LatentDecoder, Regressor
from mimjax.models.vit import ViT
from mimjax.targets.base import Target
from mimjax.targets.dalle import DallE
from mimjax.targets.own import OwnFeatures
from mimjax.task import EncoderNetwork, Predictor

# CAE's and CAE v2's: fixed positions, row first; biases of q and v
ENCODER = ViT(pos_embed="sincos_yx", bias="qv", init_scheme="cae", layer_scale=0.1, drop_path=0.1)


@dataclasses.dataclass(frozen=True)
class CAE(MIM):
    """The parts in the order of the data: what is seen, targets, networks, what is learned.

    The regressor reads the latents of visible patches without the class token; the norm before its
    MLP replaces the stream (code). The decoder sees predicted latents of masked patches alone.
    """

    encoder: EncoderNetwork = ENCODER
    masking: Masking = Block(ratio=0.5)
    code_target: Target = DallE()
    align_target: Target = OwnFeatures(of="current", masked_share=1.0, noise=True)
    regressor: Predictor | None = Regressor()
    decoder: Predictor = LatentDecoder()
    code: Term = Term("code_target", "decoder", loss=CrossEntropy())
    align: Term = Term("align_target", "regressor", loss=MSE(), weight=2.0)

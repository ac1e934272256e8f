"""MAE: masked autoencoders (He et al. 2022, arXiv:2111.06377).

The encoder sees the visible patches; a decoder with mask tokens predicts the pixels of the masked
ones (section 3).

  loss = mean_m |decoder(encoder(x_v)) - norm(x_m)|^2

Defaults follow the official code at ViT-B/16 and its published recipe. The code embeds all patches
and gathers afterwards; here the visible patches are gathered first: the same function.

  what     default                          other form, as --config.method.<this>
  pixels   normalized in each patch         pixel_target.norm=none (the code's flag default)
  target   pixels                           pixel_target=PCA (slides, d); DallE, DVAE with
                                            pixel.loss=CrossEntropy (d); CLIP; EncoderFeatures
                                            (BootMAE, Tables 3 and 9)
  masks    147 of 196 patches at random     masking=Block masking.ratio=0.5, masking=Regular (f)
  mask     in the decoder alone             encoder.use_mask_token=True (c)
  tokens
"""

from __future__ import annotations

import dataclasses

from mimjax.masking.base import Masking, Random
from mimjax.methods.mim import MIM, Term
from mimjax.models.decoders import MAEDecoder
from mimjax.targets.base import Target
from mimjax.targets.pixels import Pixels
from mimjax.task import Predictor


@dataclasses.dataclass(frozen=True)
class MAE(MIM):
    """The parts in the order of the data: what is seen, targets, networks, what is learned."""

    masking: Masking = Random(ratio=0.75)
    pixel_target: Target = Pixels(norm="patch")
    decoder: Predictor = MAEDecoder()
    pixel: Term = Term("pixel_target", "decoder")

"""MCMAE / ConvMAE: a masked autoencoder whose encoder begins with masked convolutions.

Gao et al. 2022, arXiv:2205.03892; defaults are the official code's at Base. One mask on the grid of
patches serves all scales; only masked patches are predicted, by MAE's decoder without a class
token, whose MLP ratio is that of the encoder's first stage (code).

  loss = mean_m |decoder(encoder(x_v)) - norm(x_m)|^2

  what      default                     other form, as --config.method.<this>
  views     one mask of an image        masking=Complementary (FastConvMAE: an image is seen with
                                        four complementary sets of visible patches at once; they
                                        cost the stages no more than one pass over the image)
  pixels    normalized in each patch    pixel_target.norm=none (the script's default)
  fusion    of all stages               encoder.fuse_stages=False
"""

from __future__ import annotations

import dataclasses

from mimjax.methods.mae import MAE
from mimjax.models.conv_vit import ConvViT
from mimjax.task import EncoderNetwork


@dataclasses.dataclass(frozen=True)
class MCMAE(MAE):
    """MAE's parts on the hierarchical encoder."""

    encoder: EncoderNetwork = ConvViT()

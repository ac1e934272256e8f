"""MR-MAE: mimic before reconstruct (Gao et al. 2023, arXiv:2303.05475).

The visible tokens mimic a frozen teacher's features right after the encoder; the masked pixels are
reconstructed after the decoder, as in MAE. The teacher also says which patches stay visible: those
that its class token attends to most ("focused mimicking", section 3.3).

  loss = 0.5 mean_m |decoder - norm(x)|^2  +  0.5 mean_v |linear(encoder) - teacher(x)|^2   (1, 2)

The authors released no code. What the paper leaves open is decided here and marked "ours":

  what       paper                            default              other, as --config.method.<this>
  visible    "most salient tokens"            largest attention    masking.select=sample (MILAN) or
                                              of the last block,   masking=Random
                                              mean of heads: ours
  mask       "mask ratio 25 %": the visible   ratio 0.75
  teacher    features of CLIP ViT-B/16        after the last norm, mimic_target=DINO or Joint
                                              not projected: ours  (Table 4)
  norm of    not mentioned                    none                 mimic.normalize=target or
  features                                                         mimic.loss=Cosine (both at length
                                                                   one, MILAN's) or DirectionMSE
  distance   squared norm, a sum              mean over channels: ours; one factor for both losses
  norm of    not mentioned                    patch (MCMAE's       pixel_target.norm=none
  pixels                                      command)
  fused      "multiple intermediate layers"   quarter points of    encoder.fuse_layers=(10,) = MCMAE
  layers                                      the depth: ours
  encoder    MCMAE's                          the same             encoder=ViT (ablations)
  Table 3    one loss alone                   both, 0.5            pixel.weight=0.0, or the other
  Figure 1b  both after the decoder           no                   pixel_target=Joint of Pixels and
             ("semantic conflict")                                 CLIP with pixel.weight=1.0 and
                                                                   mimic.weight=0.0; 768 wide each
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from mimjax.losses import Loss, unit
from mimjax.masking.base import Masking
from mimjax.masking.salient import Salient
from mimjax.methods.mim import MIM, Term
from mimjax.models.conv_vit import ConvViT
from mimjax.models.decoders import MAEDecoder
from mimjax.models.heads import LinearHead
from mimjax.targets.base import Target
from mimjax.targets.clip import CLIP
from mimjax.targets.pixels import Pixels
from mimjax.task import EncoderNetwork, Predictor


@dataclasses.dataclass(frozen=True)
class DirectionMSE(Loss):
    """Mean squared error to the target at length one, the prediction as it is: unlike MILAN."""

    def __call__(self, pred, target):
        return jnp.square(pred - unit(target)).mean(-1)


@dataclasses.dataclass(frozen=True)
class MRMAE(MIM):
    """The parts in the order of the data: what is seen, targets, networks, what is learned."""

    encoder: EncoderNetwork = ConvViT(
        fuse_layers=(2, 5, 8, 10)
    )  # their sum precedes the final norm
    masking: Masking = Salient(ratio=0.75, reads="mimic_target", select="topk")
    pixel_target: Target = Pixels(norm="patch")
    mimic_target: Target = CLIP(project=False)
    decoder: Predictor = MAEDecoder()  # 8 blocks (section 4.1); width 512 and 16 heads are MAE's
    mimic_head: Predictor = LinearHead(init_scheme="mae")
    pixel: Term = Term("pixel_target", "decoder", weight=0.5)
    mimic: Term = Term("mimic_target", "mimic_head", at="visible", weight=0.5)

"""BootMAE: bootstrapped masked autoencoders (Dong et al. 2022, arXiv:2207.07116).

The encoder sees the visible patches. One decoder, fed its first block, predicts the masked pixels.
Another, fed its last block, predicts what its moving average makes of the image (3.3 and 3.4).

  loss = mean_m w |pixel - norm(x)|^2  +  lambda(t) mean_m w |LN(feature) - LN(average(x))|^2   (6)

Defaults follow the official code. Where the paper differs, its form is an override:
  what       code (default)                         paper, as --config.method.<this>
  masks      120 block patches, topped up to 147    masking=Block masking.ratio=0.75
                                                    masking.max_block=60 masking.weights=neighbors
  w          1 + share of masked neighbors          the same (appendix C); off: masking.weights=none
  norm       each color channel of a patch          pixel_target.norm=patch
  LN         target and prediction                  feature.normalize=none  (equation 5)
  lambda(t)  rises over a quarter of the epochs     feature.schedule.share=0.0
  distance   MSE, in the paper too; for a cosine:   feature.loss=Cosine feature.normalize=none
  average    its decay changes once per epoch       average.decay.per_step=True
  teacher    sees the full image                    feature_target.masked_share=0.667 (Table 5)
"""

import dataclasses

import jax.numpy as jnp

from mimjax.masking.base import Masking
from mimjax.masking.block import BlockRandom
from mimjax.methods.mim import MIM, Average, Term
from mimjax.models.decoders import InjectedDecoder
from mimjax.models.vit import ViT
from mimjax.patches import HALF
from mimjax.schedules import Schedule
from mimjax.targets.base import Target
from mimjax.targets.own import OwnFeatures
from mimjax.targets.pixels import Pixels
from mimjax.task import Clock, EncoderNetwork, Predictor
from mimjax.values import Mean, Rate, Share, Std


@dataclasses.dataclass(frozen=True)
class Lambda(Schedule):
    """Factor that rises once per epoch to 1, over a share of all epochs; share 0 = 1 from start."""

    share: Share = 0.25

    def __call__(self, step, clock: Clock):
        last = self.share * clock.epochs
        return jnp.minimum((1 + clock.epoch(step)) / last, 1.0) if last else jnp.ones(())


@dataclasses.dataclass(frozen=True)
class Momentum(Schedule):
    """Decay of the average: start to middle over 100 epochs, then to end over 300 more."""

    start: Rate = 0.999
    middle: Rate = 0.9999
    end: Rate = 0.99999  # of Base; Large stays at the middle
    per_step: bool = False

    def __call__(self, step, clock: Clock):
        epoch = step / clock.steps_per_epoch if self.per_step else clock.epoch(step)
        knots = jnp.array([[0, 100, 400], [self.start, self.middle, self.end]])
        return jnp.interp(epoch, *knots)


@dataclasses.dataclass(frozen=True)
class BootMAE(MIM):
    """The parts in the order of the data: what is seen, targets, networks, what is learned."""

    encoder: EncoderNetwork = ViT(pos_embed="sincos_yx", bias="qv", init_scheme="bootmae")
    masking: Masking = BlockRandom(ratio=0.75, weights="neighbors")
    mean: Mean = HALF
    std: Std = HALF
    pixel_target: Target = Pixels(norm="channel")
    feature_target: Target = OwnFeatures(of="average", blocks=(-1,))  # before the final norm
    pixel_decoder: Predictor = InjectedDecoder(width=512, inject=0, head="pixel")
    feature_decoder: Predictor = InjectedDecoder(width=None, inject=-1)  # None: the encoder's
    pixel: Term = Term("pixel_target", "pixel_decoder")
    feature: Term = Term("feature_target", "feature_decoder", normalize="both", schedule=Lambda())
    average: Average | None = Average(("encoder",), decay=Momentum())

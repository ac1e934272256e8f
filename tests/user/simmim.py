"""SimMIM: a simple framework for masked image modeling (Xie et al. 2022, arXiv:2111.09886).

The encoder sees all patches, masked ones as a learned token, and a linear head predicts the pixels
of the masked ones (section 3). Masks are drawn in units that are larger than a patch.

  loss = mean_m |head(encoder(x, mask)) - x_m|

Defaults follow the official code (microsoft/SimMIM) at ViT-B/16. Of the paper only those forms
stand here that the official code or its issues name.

  what       default                        other form, as --config.<this>
  rate       4e-4 of 2048 images, warm-up   optimizer.lr=8e-4, said to be the paper's (issue 16)
             of 10 epochs
  pixels     as they are                    method.pixel_target.norm=patch
  positions  a shared relative bias         method.encoder.pos_embed=learned and rel_pos=none
  masks      units of 2x2 patches           method.masking.unit=1 or 4
  loss       absolute                       method.pixel.loss=MSE or SmoothL1
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mimjax.errors import ConfigError
from mimjax.losses import L1
from mimjax.masking.base import Grid, Masking, Ratio
from mimjax.methods.mim import MIM, Term
from mimjax.models.layers import Dtype, torch_uniform
from mimjax.models.vit import ViT
from mimjax.schedules import Schedule, Warmup
from mimjax.targets.base import Target
from mimjax.targets.pixels import Pixels
from mimjax.task import ByPlace, Clock, Encoded, EncoderNetwork, Predictor, View
from mimjax.values import Count, NonNegative, Share, Whole


@dataclasses.dataclass(frozen=True)
class Units(Masking):
    """Random squares of patches, equally many in each image (3.2; MaskGenerator of the code).

    Attributes:
      ratio: share of masked units, rounded up: 30 of 49 on 14x14 patches, which are 120 of 196.
      unit: side of a square in patches; 2 = 32 pixels at patch 16.
    """

    ratio: Ratio = 0.6
    unit: Count = 2

    def num_masked(self, grid: Grid) -> int:
        return self.masked_units(grid) * self.unit**2

    def num_units(self, grid: Grid) -> int:
        """Return the number of units on this grid of patches."""
        return (grid[0] // self.unit) * (grid[1] // self.unit)

    def masked_units(self, grid: Grid) -> int:
        """Return the number of masked units on this grid of patches."""
        return math.ceil(self.num_units(grid) * self.ratio)

    def sample(self, rng: random.Random, grid: Grid, epoch: int) -> dict[str, np.ndarray]:
        chosen = rng.sample(range(self.num_units(grid)), self.masked_units(grid))
        return {"mask": self.hide(chosen, grid).reshape(-1)}

    def hide(self, order: Sequence[int], grid: Grid) -> np.ndarray:
        """Return the mask bool [h w], True = masked, that hides the first units of an order.

        Args:
          order: numbers of different units by raster, as many as are masked or more.
          grid: rows and columns of patches.
        """
        mask = np.zeros((grid[0] // self.unit, grid[1] // self.unit), bool)
        mask.reshape(-1)[order[: self.masked_units(grid)]] = True
        return mask.repeat(self.unit, 0).repeat(self.unit, 1)

    def check(self, key: str, encoder: Any) -> None:
        height, width = encoder.grid
        if height % self.unit or width % self.unit:
            sides = (n for n in range(1, min(height, width) + 1) if not (height % n or width % n))
            raise ConfigError(
                f"{key}.unit: {self.unit} does not divide a grid of {height}x{width} patches; "
                f"allowed: {', '.join(map(str, sides))}"
            )
        super().check(key, encoder)


@dataclasses.dataclass(frozen=True)
class MultiStep(Warmup, Schedule):
    """The rate of the official code: a linear rise, a constant, and a drop at each milestone.

    The code asks its scheduler after a step, with the number of that step. So a step has the rate
    that its table gives the step before, and the first two steps have that of the start.

    Attributes:
      warmup_epochs, warmup_steps: length of the rise; the steps win unless they are None.
      start: rate at the start of the rise as a share of the peak; 0.005 = 5e-7 / 1e-4.
      milestones: epochs at which the rate is multiplied by `gamma`; none of them in the warm-up.
      gamma: factor of a drop.
    """

    warmup_epochs: NonNegative = 10.0
    warmup_steps: Whole | None = None
    start: Share = 0.005
    milestones: tuple[NonNegative, ...] = (700.0,)
    gamma: Share = 0.1

    def rate(self, step: Any, clock: Clock, peak: float) -> jax.Array:
        asked = jnp.maximum(jnp.asarray(step) - 1, 0)
        warmup = self.warmup(clock)
        rising = self.start + (1 - self.start) * asked / max(warmup, 1)
        drops = sum(asked >= epoch * clock.steps_per_epoch for epoch in self.milestones)
        return peak * jnp.where(asked < warmup, rising, self.gamma ** jnp.asarray(drops))

    def words(self) -> str:
        drops = [f", times {self.gamma:g} at epoch {epoch:g}" for epoch in self.milestones]
        return f"warm-up {self.warmup_words}, then constant{''.join(drops)}"


class PatchHead(Predictor):
    """Linear map from tokens to pixels: the 1x1 convolution before the code's pixel shuffle.

    Weights and biases begin as PyTorch draws them.

    Attributes:
      out: numbers in a patch; derived.
    """

    out: int = 0
    dtype: Dtype = jnp.float32

    DERIVED = ("out",)

    def inputs(self, encoded: Encoded, at: tuple[str, ...]) -> tuple[Any, ...]:
        return (encoded.at(at),)

    @nn.compact
    def __call__(self, tokens: ByPlace) -> ByPlace:
        """Return predictions [b k out] by place from the tokens [b k w] there."""
        init = torch_uniform(next(iter(tokens.values())).shape[-1])
        layer = nn.Dense(
            self.out, True, self.dtype, kernel_init=init, bias_init=init, name="linear"
        )
        return {place: layer(x) for place, x in tokens.items()}


@dataclasses.dataclass(frozen=True)
class SimMIM(MIM):
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
    masking: Masking = Units()
    pixel_target: Target = Pixels(norm="none")
    head: Predictor = PatchHead()
    pixel: Term = Term("pixel_target", "head", loss=L1())

    @property
    def views(self) -> dict[str, View]:
        """The images with torchvision's default filter, which the official transform leaves."""
        image = super().views["image"]._replace(resample="bilinear")
        return super().views | {"image": image}

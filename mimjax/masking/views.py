"""Several masks of one image at once: each is a row of the batch, and rows of an image stand
together.
"""

from __future__ import annotations

import dataclasses
import random

import jax.numpy as jnp
import numpy as np

from mimjax.errors import ConfigError
from mimjax.masking.base import Grid, Random
from mimjax.task import Batch, Student


@dataclasses.dataclass(frozen=True)
class Complementary(Random):
    """Random visible sets that fill the image together, one row each (FastConvMAE).

    At ratio 0.75 an image has four rows in training; evaluation reads the first alone.

    Attributes:
      ratio, rounding, weights: see `Random`.
    """

    def sample(self, rng: random.Random, grid: Grid, epoch: int) -> dict[str, np.ndarray]:
        n = grid[0] * grid[1]
        visible = n - self.num_masked(grid)
        rank = np.asarray(rng.sample(range(n), n)) // visible
        return {"mask": rank[None] != np.arange(n // visible)[:, None]}

    def expand(self, batch: Batch, train: bool) -> Batch:
        masks = batch["mask"] if train else batch["mask"][:, :1]
        out = {k: jnp.repeat(x, masks.shape[1], axis=0) for k, x in batch.items()}
        return out | {"mask": masks.reshape(-1, masks.shape[2])}

    def check(self, key: str, encoder: Student) -> None:
        super().check(key, encoder)
        visible = encoder.num_patches - self.num_masked(encoder.grid)
        if encoder.num_patches % visible:
            raise ConfigError(
                f"{key}.ratio: {self.ratio} shows {visible} of {encoder.num_patches} patches; "
                "allowed: visible sets that fill the image (0.75 of a number divisible by 4)"
            )

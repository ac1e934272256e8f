"""Block-wise masks: BEiT's generator and its forms in BootMAE and CAE.

Samplers take a `random.Random` and return bool[n], True = masked, n in raster order. Given Python's
seed, `block_mask` reproduces the masks of BootMAE's generator bit for bit.
"""

from __future__ import annotations

import dataclasses
import math
import random
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from mimjax.masking.base import Grid, Masking, Ratio, Weights, count
from mimjax.patches import mask_of, split
from mimjax.task import Batch, Key, Prepared, Student
from mimjax.values import Count, Some, Whole

OFFICIAL_PATCHES = 196  # the 14x14 grid on which the papers give their block counts
# The generator has no bound in the official code. With the official constants on 14x14 no
# rectangle of 20,000 masks needed more than 151 tries: the bound never changes an official mask.
MAX_TRIES = 10_000
ATTEMPTS = 10  # BEiT's generator gives up after so many tries that add nothing


def block_mask(
    rng: random.Random,
    grid: Grid,
    num_block: int,
    min_block: int = 16,
    max_block: int = 60,
    min_aspect: float = 0.3,
) -> np.ndarray:
    """Block-wise mask of exactly `num_block` patches (BEiT's generator as BootMAE and CAE have it).

    Rectangles are drawn until the count is reached. If MAX_TRIES tries find no rectangle, what is
    lacking is filled at random.
    """
    mask = block_mask_at_most(rng, grid, num_block, min_block, max_block, min_aspect, MAX_TRIES)
    if lacking := num_block - int(mask.sum()):
        mask[rng.sample(list(np.flatnonzero(~mask)), lacking)] = True
    return mask


def block_mask_at_most(
    rng: random.Random,
    grid: Grid,
    num_block: int,
    min_block: int = 16,
    max_block: int = 75,
    min_aspect: float = 0.3,
    tries: int = ATTEMPTS,
) -> np.ndarray:
    """BEiT's own generator: stops short of `num_block` when ten tries add nothing.

    Of 2,000 official masks with 75 asked for, 31 % had fewer, down to 66.
    """
    mask, count, new = np.zeros(grid, bool), 0, 1
    while count < num_block and new:
        cap = min(num_block - count, max_block)
        new = add_rectangle(rng, mask, cap, min_block, min_aspect, tries)
        count += new
    return mask.reshape(-1)


def add_rectangle(
    rng: random.Random,
    mask: np.ndarray,
    cap: int,
    min_block: int,
    min_aspect: float,
    tries: int,
) -> int:
    """Masks one random rectangle with 1..cap new patches in place; returns how many (0 = gave up).

    The order of the draws (area, aspect, top, left) and Python's rounding are the official ones.
    """
    height, width = mask.shape
    log_aspect = math.log(min_aspect), math.log(1 / min_aspect)
    for _ in range(tries):
        area = rng.uniform(min_block, cap)
        aspect = math.exp(rng.uniform(*log_aspect))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if w < width and h < height:
            top, left = rng.randint(0, height - h), rng.randint(0, width - w)
            window = mask[top : top + h, left : left + w]
            new = h * w - int(window.sum())
            if 0 < new <= cap:
                window[...] = True
                return new
    return 0


def shuffled(rng: random.Random, block: np.ndarray) -> list[int]:
    """Return BootMAE's order of patches: free ones and then the block's, both shuffled."""
    free, taken = np.flatnonzero(~block).tolist(), np.flatnonzero(block).tolist()
    rng.shuffle(free)
    rng.shuffle(taken)
    return free + taken


def hide(order: list[int], roll: int, num_masked: int) -> np.ndarray:
    """Return BootMAE's final mask bool[n], True = masked.

    The order is rolled right by `roll`, which exchanges as many block patches for free ones; the
    first n - num_masked patches are visible.
    """
    order = order[len(order) - roll :] + order[: len(order) - roll]
    mask = np.ones(len(order), bool)
    mask[order[: len(order) - num_masked]] = False
    return mask


# ------------------------------------------------------------------ settings
@dataclasses.dataclass(frozen=True)
class _Blocks(Masking):
    """What the kinds of block-wise masks share.

    Attributes:
      ratio: share of masked patches, see `masking.base.count`.
      min_block, max_block: patches of a block on 14x14, scaled by n / 196 on other grids (at least
        1, the largest at least the smallest); max_block None = all that are masked (BEiT, CAE);
        BootMAE has 60.
      min_aspect: aspect ratios are log-uniform in (min_aspect, 1 / min_aspect).
    """

    ratio: Ratio = 0.5
    min_block: Count = 16
    max_block: Count | None = None
    min_aspect: Some = 0.3

    def num_masked(self, grid: Grid) -> int:
        return count(self.ratio, grid)

    def sizes(self, grid: Grid) -> tuple[int, int, float]:
        """Return the smallest and the largest block on this grid, and the aspect."""
        scale = grid[0] * grid[1] / OFFICIAL_PATCHES
        least = max(1, round(self.min_block * scale))
        largest = self.max_block and max(least, round(self.max_block * scale))
        return least, largest or self.num_masked(grid), self.min_aspect


@dataclasses.dataclass(frozen=True)
class Block(_Blocks):
    """Blocks alone, the same number of patches in each image (CAE; BEiT's default here).

    Attributes:
      ratio, min_block, max_block, min_aspect: see `_Blocks`.
      weights: see `masking.base.patch_weights`.
    """

    weights: Weights = "none"

    def sample(self, rng: random.Random, grid: Grid, epoch: int) -> dict[str, np.ndarray]:
        return {"mask": block_mask(rng, grid, self.num_masked(grid), *self.sizes(grid))}


@dataclasses.dataclass(frozen=True)
class BlockAtMost(_Blocks):
    """BEiT's own sampler, which stops short of the number in a third of the images.

    The ids of masked patches are padded with visible ones of weight 0, so that shapes are static;
    the weights have mean 1 over the whole batch.

    Attributes:
      ratio: 75 of 196 patches by default (--num_mask_patches).
      min_block, max_block, min_aspect: see `_Blocks`.
    """

    weights = "masked"

    ratio: Ratio = 0.38

    def sample(self, rng: random.Random, grid: Grid, epoch: int) -> dict[str, np.ndarray]:
        return {"mask": block_mask_at_most(rng, grid, self.num_masked(grid), *self.sizes(grid))}

    def choose(
        self, batch: Batch, encoder: Student, attention: jax.Array | None, key: Key
    ) -> Prepared:
        ids_v, ids_m = split(batch["mask"], self.num_masked(encoder.grid))
        # `split` puts visible patches first: where too few are masked, the first of the static
        # number of "masked" ids are visible ones.
        real = jnp.take_along_axis(batch["mask"], ids_m, axis=1).astype(jnp.float32)
        # Should a batch have no masked patch at all, its loss is 0 and not the mean of nothing.
        weight = real / jnp.maximum(real.mean(), 1 / real.size)
        return Prepared(batch["image"], ids_v, ids_m, batch["mask"], weight, attention)


@dataclasses.dataclass(frozen=True)
class BlockRandom(Block):
    """BootMAE's code: blocks, topped up at random, with a few block patches exchanged.

    Attributes:
      ratio, min_block, max_block, min_aspect, weights: see `Block`.
      num_block: patches in blocks on 14x14, scaled as the sizes of blocks are.
      roll_max: how many block patches may be exchanged for others at most; 0 = none.
      roll: the number of exchanged patches is drawn for each "image", so that a mask does not
        depend on its batch, or for all images of a "batch" at once, as in the code.
    """

    ratio: Ratio = 0.75
    max_block: Count | None = 60
    num_block: Count = 120
    roll_max: Whole = 3
    roll: Literal["image", "batch"] = "image"

    def sample(self, rng: random.Random, grid: Grid, epoch: int) -> dict[str, np.ndarray]:
        n = grid[0] * grid[1]
        number = min(n - 1, max(1, round(self.num_block * n / OFFICIAL_PATCHES)))
        order = shuffled(rng, block_mask(rng, grid, number, *self.sizes(grid)))
        if self.roll == "batch":
            return {"order": np.asarray(order, np.int32)}
        return {"mask": hide(order, rng.randint(0, self.roll_max), self.num_masked(grid))}

    def choose(
        self, batch: Batch, encoder: Student, attention: jax.Array | None, key: Key
    ) -> Prepared:
        if self.roll == "batch":
            last = jax.random.randint(key, (), 0, self.roll_max + 1)
            order = jnp.roll(batch["order"], last, axis=1)
            masked = order[:, -self.num_masked(encoder.grid) :]
            batch = batch | {"mask": mask_of(masked, encoder.num_patches)}
        return super().choose(batch, encoder, attention, key)

"""Which patches are masked: the settings, and the choice among the kinds of masks.

The data pipeline calls the sampler once per image, on the host (`data/pipeline.py`): it takes a
`random.Random` of (seed, epoch, index) and returns bool[n], True = masked, n in raster order.
Random and grid masks are drawn here, blocks in `block.py`. A method that chooses patches by a
teacher's attention draws no mask on the host; see `salient.py`.

Every kind but "block_at_most" masks exactly `num_masked` patches, so that shapes are static.
"""

from __future__ import annotations

import dataclasses
import random
from typing import Annotated, Literal, get_args

import numpy as np

from mimjax import values
from mimjax.errors import ConfigError
from mimjax.masking.block import Grid, block_mask, block_mask_at_most, block_random_mask
from mimjax.task import MaskFn
from mimjax.values import Count, Range, Whole

OFFICIAL_PATCHES = 196  # the 14x14 grid on which the papers give their block counts
Kind = Literal["random", "block", "block_random", "block_at_most", "grid"]
EXACT = tuple(k for k in get_args(Kind) if k != "block_at_most")  # no mask has fewer than asked


def random_mask(rng: random.Random, num_patches: int, num_masked: int) -> np.ndarray:
    """Draw a uniformly random mask of exactly `num_masked` patches (MAE section 3)."""
    mask = np.zeros(num_patches, bool)
    mask[rng.sample(range(num_patches), num_masked)] = True
    return mask


def grid_mask(grid: Grid) -> np.ndarray:
    """Return the mask that keeps the top-left patch of every 2x2 cell (MAE's "grid 75")."""
    mask = np.ones(grid, bool)
    mask[::2, ::2] = False
    return mask.reshape(-1)


@dataclasses.dataclass(frozen=True)
class Masking:
    """Which patches are masked; counts are exact for any grid.

    Attributes:
      kind: "random" (MAE), "block" (blocks alone: BEiT's default here, CAE), "block_random"
        (BootMAE's code: blocks topped up at random), "block_at_most" (BEiT's code: blocks that may
        cover fewer patches; for methods that weigh patches by whether they are masked) or "grid"
        (MAE ablation f).
      ratio: share of masked patches.
      rounding: how the ratio becomes a number of the n patches. "mae" = n - int(n (1 - ratio)) are
        masked, as in MAE's and ConvMAE's code; it also gives the numbers that the scripts of BEiT
        (75 of 196), BootMAE (147), CAE (98) and CAE v2 (30, 49, 98) name. "cae" = the same, but
        int(n ratio) for kind "random", as in CAE's generator: 29 and not 30 of 196 at 0.15.
      num_block, min_block, max_block: 120 (BootMAE) and 16 on 14x14, scaled by n / 196 elsewhere
        (at least 1, maximum at least the minimum). `num_block` is read by "block_random" only;
        max_block None = the number of masked patches (BEiT, CAE); BootMAE has 60.
      min_aspect: aspect ratios are log-uniform in (min_aspect, 1 / min_aspect).
      roll_max: how many block patches may be exchanged for others (0 = none).
    """

    kind: Kind = "random"
    ratio: Annotated[float, Range(0, 1, low_open=True, high_open=True)] = 0.75
    rounding: Literal["mae", "cae"] = "mae"
    num_block: Count = 120
    min_block: Count = 16
    max_block: Count | None = None
    min_aspect: values.Some = 0.3
    roll_max: Whole = 3

    def __post_init__(self):
        values.check(self, "method.masking")
        if self.kind == "grid" and self.ratio != 0.75:
            raise ConfigError(
                f"method.masking.ratio: {self.ratio}; kind=grid keeps one patch in four: 0.75"
            )

    @property
    def exact(self) -> bool:
        """Whether every mask has exactly `num_masked` patches; those of "block_at_most" may not."""
        return self.kind in EXACT

    def num_masked(self, grid: Grid) -> int:
        """The static number of masked patches on this grid."""
        n = grid[0] * grid[1]
        if self.kind == "grid":
            return int(grid_mask(grid).sum())
        masked = n - int(n * (1 - self.ratio))
        if self.rounding == "cae" and self.kind == "random":
            masked = int(n * self.ratio)
        if not 0 < masked < n:
            raise ConfigError(
                f"method.masking.ratio: {self.ratio} masks {masked} of {n} patches; "
                "allowed: at least one masked and one visible"
            )
        return masked

    def sampler(self, grid: Grid) -> MaskFn:
        """The host sampler (random.Random) -> bool[n]; picklable, for worker processes."""
        return _Sampler(self, grid)


@dataclasses.dataclass(frozen=True)
class _Sampler:
    masking: Masking
    grid: Grid

    def __call__(self, rng: random.Random) -> np.ndarray:
        m, n = self.masking, self.grid[0] * self.grid[1]
        masked = m.num_masked(self.grid)
        if m.kind == "random":
            return random_mask(rng, n, masked)
        if m.kind == "grid":
            return grid_mask(self.grid)
        scale = n / OFFICIAL_PATCHES
        least = max(1, round(m.min_block * scale))
        most = masked if m.max_block is None else max(least, round(m.max_block * scale))
        if m.kind in ("block", "block_at_most"):
            make = block_mask if m.kind == "block" else block_mask_at_most
            return make(rng, self.grid, masked, least, most, m.min_aspect)
        num_block = min(n - 1, max(1, round(m.num_block * scale)))
        block = block_mask(rng, self.grid, num_block, least, most, m.min_aspect)
        return block_random_mask(rng, block, masked, m.roll_max)

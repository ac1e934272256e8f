"""Masks: the official host samplers, and the static-shape index arithmetic on the device.

Host samplers take a `random.Random` and return bool[n], True = masked, n in raster order. Given
Python's seed, `block_mask` reproduces the masks of BootMAE's generator bit for bit. Counts are
exact, so shapes are static; BEiT's own generator, which may fall short, is the one exception.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable
from typing import Annotated, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mimjax import values
from mimjax.errors import ConfigError
from mimjax.values import Count, Range, Whole

Grid = tuple[int, int]
MaskFn = Callable[[random.Random], np.ndarray]
OFFICIAL_PATCHES = 196  # the 14x14 grid on which the papers give their block counts
# The generator has no bound in the official code. With the official constants on 14x14 no
# rectangle of 20,000 masks needed more than 151 tries: the bound never changes an official mask.
MAX_TRIES = 10_000
ATTEMPTS = 10  # BEiT's generator gives up after so many tries that add nothing
Kind = Literal["random", "block", "block_random", "block_at_most", "grid"]
EXACT = tuple(k for k in get_args(Kind) if k != "block_at_most")  # no mask has fewer than asked
Selection = Literal["topk", "sample", "random"]  # of `select_visible`


# ------------------------------------------------------------------ on the device
def split(mask: Bool[Array, "b n"], num_masked: int) -> tuple[Int[Array, "b v"], Int[Array, "b m"]]:
    """Visible ids and masked ids, both in raster order (one stable argsort, no communication)."""
    order = jnp.argsort(mask, axis=1, stable=True)
    num_visible = mask.shape[1] - num_masked
    return order[:, :num_visible], order[:, num_visible:]


def select_visible(
    attention: Float[Array, "b n"], num_visible: int, how: str, key: jax.Array
) -> tuple[Int[Array, "b v"], Int[Array, "b m"]]:
    """Visible and masked ids, both in raster order, chosen by what a teacher attends to.

    MR-MAE's focused mimicking. Its paper (arXiv 2303.05475) selects "the most salient tokens" and
    published no code: "topk" is its literal reading, "sample" what MILAN does.

    Args:
      attention: not negative; need not sum to 1.
      num_visible: static, as everything about the shapes.
      how: "topk" = the largest attention, of equal ones the first; "sample" = drawn without
        replacement with probabilities proportional to attention (Gumbel noise on its logarithm),
        those of none last; "random" = uniformly.
      key: not read by "topk".
    """
    score = attention.astype(jnp.float32)
    if how == "sample":
        score = jnp.log(score) + jax.random.gumbel(key, score.shape)
    elif how == "random":
        score = jax.random.uniform(key, score.shape)
    elif how != "topk":
        raise values.wrong("selection of patches", how, Selection)
    # argsort, not lax.top_k, for which the partitioner gathers a sharded batch
    order = jnp.argsort(-score, axis=1, stable=True)
    return jnp.sort(order[:, :num_visible], axis=1), jnp.sort(order[:, num_visible:], axis=1)


def gather(x: Float[Array, "b n d"], ids: Int[Array, "b k"]) -> Float[Array, "b k d"]:
    """Rows `ids` of each example."""
    return jnp.take_along_axis(x, ids[..., None], axis=1)


def neighbor_weight(mask: Bool[Array, "b n"], grid: Grid) -> Float[Array, "b n"]:
    """BootMAE's loss weight: m * avgpool3(m) + m, zero padding counted in the divisor.

    Patches deep inside a block weigh up to 2, single ones 10/9 (paper appendix C; formula from the
    official code).
    """
    m = mask.astype(jnp.float32).reshape(-1, *grid)
    padded = jnp.pad(m, ((0, 0), (1, 1), (1, 1)))
    h, w = grid
    pooled = sum(padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)) / 9.0
    return (m * pooled + m).reshape(-1, h * w)


# ------------------------------------------------------------------ on the host
def mask_from_noise(noise: np.ndarray, num_visible: int) -> np.ndarray:
    """MAE's random mask: the `num_visible` smallest entries of float[... n] stay visible."""
    mask = np.ones(noise.shape, bool)
    keep = np.argsort(noise, axis=-1, kind="stable")[..., :num_visible]
    np.put_along_axis(mask, keep, False, axis=-1)
    return mask


def random_mask(rng: random.Random, num_patches: int, num_masked: int) -> np.ndarray:
    """Uniformly random mask of exactly `num_masked` patches (MAE section 3)."""
    mask = np.zeros(num_patches, bool)
    mask[rng.sample(range(num_patches), num_masked)] = True
    return mask


def block_mask(
    rng: random.Random,
    grid: Grid,
    num_block: int,
    min_block: int = 16,
    max_block: int = 60,
    min_aspect: float = 0.3,
) -> np.ndarray:
    """Block-wise mask of exactly `num_block` patches (BEiT's generator as BootMAE and CAE have it).

    Rectangles are drawn until the count is reached; the remainder is filled at random should a
    rectangle fail MAX_TRIES times.
    """
    height, width = grid
    mask = np.zeros(grid, bool)
    count = 0
    while count < num_block:
        new = add_rectangle(rng, mask, min(num_block - count, max_block), min_block, min_aspect)
        if not new:
            free = np.flatnonzero(~mask.reshape(-1))
            mask.reshape(-1)[rng.sample(list(free), num_block - count)] = True
            break
        count += new
    return mask.reshape(height * width)


def block_mask_at_most(
    rng: random.Random,
    grid: Grid,
    num_block: int,
    min_block: int = 16,
    max_block: int = 75,
    min_aspect: float = 0.3,
) -> np.ndarray:
    """BEiT's own generator: stops short of `num_block` when ten tries add nothing.

    Of 2,000 official masks with 75 asked for, 31 % had fewer, down to 66.
    """
    mask, count, new = np.zeros(grid, bool), 0, 1
    while count < num_block and new:
        cap = min(num_block - count, max_block)
        new = add_rectangle(rng, mask, cap, min_block, min_aspect, ATTEMPTS)
        count += new
    return mask.reshape(-1)


def add_rectangle(
    rng: random.Random,
    mask: np.ndarray,
    cap: int,
    min_block: int,
    min_aspect: float,
    tries: int = MAX_TRIES,
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


def block_random_mask(
    rng: random.Random, block: np.ndarray, num_masked: int, roll_max: int
) -> np.ndarray:
    """BootMAE's final mask: block patches, topped up at random, with up to `roll_max` exchanged.

    The official order of patches is [free, shuffled] + [block, shuffled], rolled right by r in
    0..roll_max; the first n - num_masked are visible. The official r is shared by a batch; here
    every image draws its own, so that a mask does not depend on its batch.
    """
    free, taken = list(np.flatnonzero(~block)), list(np.flatnonzero(block))
    rng.shuffle(free)
    rng.shuffle(taken)
    r = rng.randint(0, roll_max)
    order = free + taken
    order = order[len(order) - r :] + order[: len(order) - r]
    mask = np.ones(len(order), bool)
    mask[order[: len(order) - num_masked]] = False
    return mask


def grid_mask(grid: Grid) -> np.ndarray:
    """Keeps the top-left patch of every 2x2 cell (MAE's ablation f, "grid 75")."""
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
        """Whether every mask has `num_masked` patches; else it may have fewer."""
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

"""Block-wise masks: BEiT's generator, its forms in BootMAE and CAE, and BootMAE's weights.

Samplers take a `random.Random` and return bool[n], True = masked, n in raster order. Given Python's
seed, `block_mask` reproduces the masks of BootMAE's generator bit for bit.
"""

from __future__ import annotations

import math
import random

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

Grid = tuple[int, int]  # (rows, columns) of patches
# The generator has no bound in the official code. With the official constants on 14x14 no
# rectangle of 20,000 masks needed more than 151 tries: the bound never changes an official mask.
MAX_TRIES = 10_000
ATTEMPTS = 10  # BEiT's generator gives up after so many tries that add nothing


def neighbor_weight(mask: Bool[Array, "b n"], grid: Grid) -> Float[Array, "b n"]:
    """Return BootMAE's loss weight of each patch, m * avgpool3(m) + m.

    Zero padding counts in the average. Patches deep inside a block weigh up to 2, single ones 10/9
    (paper appendix C; formula from the official code).
    """
    m = mask.astype(jnp.float32).reshape(-1, *grid)
    padded = jnp.pad(m, ((0, 0), (1, 1), (1, 1)))
    h, w = grid
    pooled = sum(padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)) / 9.0
    return (m * pooled + m).reshape(-1, h * w)


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

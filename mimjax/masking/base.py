"""Which patches are hidden: the base class, and random and regular masks.

A masking draws on the host (`sample`, once per image in `data/pipeline.py`, from a `random.Random`
of (seed, epoch, index)) or on the device (`choose`, once per step), where a teacher may decide.
Counts of visible and masked patches are static. Blocks are drawn in `block.py`, masks by a
teacher's attention in `salient.py`, several masks of one image in `views.py`.
"""

from __future__ import annotations

import dataclasses
import random
from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mimjax.errors import ConfigError
from mimjax.patches import split
from mimjax.task import Batch, Key, Prepared, Student, View
from mimjax.values import Range

Grid = tuple[int, int]  # (rows, columns) of patches
Ratio = Annotated[float, Range(0, 1, low_open=True, high_open=True)]
Weights = Literal["none", "neighbors", "neighbors_mean"]  # see `patch_weights`


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


def patch_weights(mask: jax.Array, ids_m: jax.Array, grid: Grid, how: str) -> jax.Array | None:
    """Return the weights of the masked patches, float32 [b m]; None = all weigh 1.

    Args:
      mask: bool [b n].
      ids_m: ids of the masked patches, [b m].
      how: "none"; "neighbors" = `neighbor_weight` (BootMAE's code, whose losses they make about 1.8
        times as large); "neighbors_mean" = the same divided by their mean over the batch.
    """
    if how == "none":
        return None
    weight = jnp.take_along_axis(neighbor_weight(mask, grid), ids_m, axis=1)
    return weight / weight.mean() if how == "neighbors_mean" else weight


@dataclasses.dataclass(frozen=True)
class Masking:
    """Base class of kinds of masking.

    A kind of a user's own defines `num_masked` and `sample`, or `choose`. The attributes below are
    fixed by the class; a subclass that annotates one makes it a setting.

    Attributes:
      reads: name of the target whose attention decides; "" = none.
      sequences: number of sets of masked patches, each of which is predicted apart.
      weights: how masked patches are weighed; "none" = alike.
    """

    PLUGGABLE: ClassVar[bool] = True
    HOME: ClassVar[tuple[str, ...]] = tuple(
        f"mimjax.masking.{name}" for name in ("base", "block", "salient", "views")
    )
    reads = ""
    sequences = 1
    weights = "none"

    def num_masked(self, grid: Grid) -> int:
        """Return the static number of masked patches on this grid."""
        raise NotImplementedError(type(self).__name__)

    def views(self, encoder: Student) -> dict[str, View]:
        """Return the images that it needs beside the student's, by name."""
        return {}

    def sample(self, rng: random.Random, grid: Grid, epoch: int) -> dict[str, np.ndarray]:
        """Make arrays of one image on the host; they enter the batch under these names.

        As a rule {"mask": bool [n]}, True = masked, n in raster order.
        """
        return {}

    def expand(self, batch: Batch, train: bool) -> Batch:
        """Return the batch with several rows per image, which stand together; here one."""
        return batch

    def choose(
        self, batch: Batch, encoder: Student, attention: jax.Array | None, key: Key
    ) -> Prepared:
        """Return normalized images, ids and weights, made on the device.

        Args:
          batch: "image" float32 [b h w c], and what `sample` made.
          attention: that of the target `reads`, float32 [b n].
          key: for random numbers.
        """
        mask = batch["mask"]
        ids_v, ids_m = split(mask, self.num_masked(encoder.grid))
        weight = patch_weights(mask, ids_m, encoder.grid, self.weights)
        return Prepared(batch["image"], ids_v, ids_m, mask, weight, attention)

    def check(self, key: str, encoder: Student) -> None:
        """Raise a ConfigError for settings that the encoder's grid does not allow."""
        masked, n = self.num_masked(encoder.grid), encoder.num_patches
        if not 0 < masked < n:
            ratio = getattr(self, "ratio", None)
            found = f"{key}: {type(self).__name__}" if ratio is None else f"{key}.ratio: {ratio}"
            raise ConfigError(
                f"{found} masks {masked} of {n} patches; allowed: at least one masked and one "
                "visible"
            )


def count(ratio: float, grid: Grid) -> int:
    """Return n - int(n (1 - ratio)), the number of masked patches in MAE's and ConvMAE's code.

    It also gives the numbers that the scripts of BEiT (75 of 196), BootMAE (147), CAE (98) and CAE
    v2 (30, 49, 98) name.
    """
    n = grid[0] * grid[1]
    return n - int(n * (1 - ratio))


@dataclasses.dataclass(frozen=True)
class Random(Masking):
    """Uniformly random patches, of which each image has the same number (MAE, section 3).

    Attributes:
      ratio: share of masked patches.
      rounding: how the ratio becomes a number: "mae", see `count`; "cae" = int(n ratio), as in
        CAE's generator of random masks: 29 and not 30 of 196 at 0.15.
      weights: see `patch_weights`.
    """

    ratio: Ratio = 0.75
    rounding: Literal["mae", "cae"] = "mae"
    weights: Weights = "none"

    def num_masked(self, grid: Grid) -> int:
        if self.rounding == "cae":
            return int(grid[0] * grid[1] * self.ratio)
        return count(self.ratio, grid)

    def sample(self, rng: random.Random, grid: Grid, epoch: int) -> dict[str, np.ndarray]:
        mask = np.zeros(grid[0] * grid[1], bool)
        mask[rng.sample(range(mask.size), self.num_masked(grid))] = True
        return {"mask": mask}


@dataclasses.dataclass(frozen=True)
class Regular(Masking):
    """All but the top-left patch of every 2x2 cell (MAE's "grid 75", ablation f).

    Attributes:
      weights: see `patch_weights`.
    """

    weights: Weights = "none"

    def num_masked(self, grid: Grid) -> int:
        return grid[0] * grid[1] - (-(-grid[0] // 2)) * (-(-grid[1] // 2))

    def sample(self, rng: random.Random, grid: Grid, epoch: int) -> dict[str, np.ndarray]:
        mask = np.ones(grid, bool)
        mask[::2, ::2] = False
        return {"mask": mask.reshape(-1)}

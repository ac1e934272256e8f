"""Masks chosen by what a frozen teacher attends to, on the device (MR-MAE's focused mimicking)."""

from __future__ import annotations

import dataclasses
import random
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mimjax.errors import ConfigError
from mimjax.masking.base import Grid, Random
from mimjax.patches import mask_of
from mimjax.task import Batch, Key, Prepared, Student
from mimjax.values import Text

Selection = Literal["topk", "sample"]  # of `select_visible`


def select_visible(
    attention: Float[Array, "b n"], num_visible: int, how: Selection, key: jax.Array
) -> tuple[Int[Array, "b v"], Int[Array, "b m"]]:
    """Choose visible and masked ids, both in raster order, by what a teacher attends to.

    MR-MAE's focused mimicking. Its paper (arXiv 2303.05475) selects "the most salient tokens" and
    published no code: "topk" is its literal reading, "sample" what MILAN does.

    Args:
      attention: not negative; need not sum to 1.
      num_visible: static, as everything about the shapes.
      how: "topk" = the largest attention, of equal ones the first; "sample" = drawn without
        replacement with probabilities proportional to attention (Gumbel noise on its logarithm),
        those of none last.
      key: not read by "topk".
    """
    score = attention.astype(jnp.float32)
    if how == "sample":
        score = jnp.log(score) + jax.random.gumbel(key, score.shape)
    # argsort, not lax.top_k, for which the partitioner gathers a sharded batch
    order = jnp.argsort(-score, axis=1, stable=True)
    return jnp.sort(order[:, :num_visible], axis=1), jnp.sort(order[:, num_visible:], axis=1)


@dataclasses.dataclass(frozen=True)
class Salient(Random):
    """The patches that a teacher attends to stay visible.

    Attributes:
      ratio, rounding, weights: see `Random`.
      reads: name of the target whose class token's attention decides, as a rule that of the last
        block, averaged over heads.
      select: see `select_visible`.
    """

    reads: Annotated[str, Text("the name of a target")] = "mimic_target"
    select: Selection = "topk"

    def sample(self, rng: random.Random, grid: Grid, epoch: int) -> dict[str, np.ndarray]:
        return {}

    def choose(
        self, batch: Batch, encoder: Student, attention: jax.Array | None, key: Key
    ) -> Prepared:
        assert attention is not None, "the method passes that of the target"
        visible = encoder.num_patches - self.num_masked(encoder.grid)
        masked = select_visible(attention, visible, self.select, key)[1]
        mask = mask_of(masked, encoder.num_patches)
        return super().choose(batch | {"mask": mask}, encoder, attention, key)

    def check(self, key: str, encoder: Student) -> None:
        super().check(key, encoder)
        if not self.reads:
            raise ConfigError(f"{key}.reads: ''; allowed: the name of a target with attention")

"""Attention of a trained encoder on full images; a program asks for it, no run does.

Nothing is masked here, so every patch can be attended to, which is no training input of methods
that drop patches.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mimjax import patches, progress
from mimjax.errors import ConfigError
from mimjax.inference.samples import Bench, Subset
from mimjax.models.attention_maps import attention_maps, num_blocks
from mimjax.plots import heat_maps

CHUNK = 8  # images at a time: a map has (1 + patches)^2 numbers per head


class Attention:
    """Reads the attention of one encoder on some test images.

    Attributes:
      grid: rows and columns of patches.
      depth, heads: of the encoder.
      num_prefix: tokens before the patches; 0 = no CLS.
    """

    def __init__(self, bench: Bench, count: int, like: Any):
        """`like` is the encoder's (abstract) parameters.

        Raises:
          ConfigError: the encoder has no attention.
        """
        task: Any = bench.task  # the encoder, mean and std are no part of the base class
        self.bench, self.task, self.depth = bench, task, num_blocks(like)
        if not self.depth:
            name = f"{type(task.encoder).__name__} of {type(task).__name__}"
            raise ConfigError(
                f"--model: the encoder {name} has no attention; allowed: a transformer"
            )
        self.images = Subset(bench.test, count)
        self.heads, self.grid = task.encoder.heads, task.encoder.grid
        view = {"image": task.views["image"]}  # no tokenizer's second view, no masks
        size = min(CHUNK, len(self.images))
        self.batches = [b["image"] for b in bench.batches(self.images, view, batch_size=size)]
        shape = jax.eval_shape(lambda p, x: self._maps(p, x, (0,)), like, self.batches[0]).shape
        self.num_prefix = shape[-1] - math.prod(self.grid)

    def queries(self, wanted: str | None) -> str:
        """Whose attention is shown; None = "cls" where there is one, else "mean".

        Raises:
          ConfigError: "cls" for an encoder without it.
        """
        if wanted == "cls" and not self.num_prefix:
            raise ConfigError("--queries: 'cls', but this encoder has no CLS token; allowed: mean")
        return wanted or ("cls" if self.num_prefix else "mean")

    def read(
        self, params: Any, layers: list[int], heads: list[int] | None, queries: str
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The images, uint8 [b h w 3], and their maps by name, see `heatmaps.by_name`."""
        maps = self.bench.jit(lambda p, x: self._maps(p, x, tuple(layers)))
        shares = [
            heat_maps.on_patches(jax.device_get(maps(params, x)), queries, self.num_prefix)
            for x in progress.track(self.batches, "attention", unit="batch")
        ]
        count = len(self.images)
        images = np.concatenate([np.asarray(x) for x in self.batches])[:count]
        share = np.concatenate(shares, axis=1)[:, :count]
        return images, heat_maps.by_name(share, layers, heads)

    def _maps(self, params, images, layers) -> jax.Array:
        images = patches.normalize(images, self.task.mean, self.task.std)
        return attention_maps(self.task.encoder, params, jnp.asarray(images), layers)

"""Attention of a run's encoder on full images; only a program asks for it.

Nothing is masked here: every patch can be attended to, which methods that drop patches never see
in training.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mimjax import patches, progress
from mimjax.errors import ConfigError
from mimjax.inference.samples import Bench, Subset
from mimjax.models.attention_maps import attention_maps, num_blocks
from mimjax.plots import heat_maps
from mimjax.task import Pretraining

CHUNK = 8  # images at a time: a map has (1 + patches)^2 numbers per head


class Attention:
    """The attention of an encoder on some test images.

    Attributes:
      grid: rows and columns of patches.
      depth, heads: numbers of the encoder's blocks and of their heads.
      num_prefix: number of tokens before the patches; 0 = no CLS.
    """

    def __init__(self, bench: Bench, count: int, like: Any):
        """Take at most `count` images; `like` is the encoder's (abstract) parameters.

        Raises:
          ConfigError: the encoder has no attention.
        """
        task = bench.task
        if not isinstance(task, Pretraining) or not num_blocks(like):
            network = f"{type(task.encoder).__name__} of " if isinstance(task, Pretraining) else ""
            raise ConfigError(
                f"--model: the encoder {network}{type(task).__name__} has no attention; allowed: a "
                "transformer"
            )
        self.bench, self.task, self.depth = bench, task, num_blocks(like)
        self.images = Subset(bench.test, count)
        self.heads, self.grid = task.encoder.heads, task.encoder.grid
        view = {"image": task.views["image"]}  # no tokenizer's second view, no masks
        size = min(CHUNK, len(self.images))
        self.batches = [b["image"] for b in bench.batches(self.images, view, batch_size=size)]
        self.num_prefix = task.encoder.num_prefix

    def queries(self, wanted: str | None) -> str:
        """Return the tokens whose attention is shown; None = "cls" where there is one, or "mean".

        Raises:
          ConfigError: "cls" for an encoder without it.
        """
        if wanted == "cls" and not self.num_prefix:
            raise ConfigError("--queries: 'cls', but this encoder has no CLS token; allowed: mean")
        return wanted or ("cls" if self.num_prefix else "mean")

    def read(
        self, params: Any, layers: list[int], heads: list[int] | None, queries: str
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the images, uint8 [b h w 3], and their maps by name, see `heat_maps.by_name`."""
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

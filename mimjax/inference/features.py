"""Frozen features for k-NN and linear probes: raw pixels, untrained and pretrained encoder.

One compiled call per batch gives every candidate (pool, layer) of an encoder, so that both
encoders are searched in the same way. "Untrained" is the run's own state at step 0, also after
a restart or when weights were loaded.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mimjax import patches
from mimjax.inference.samples import Bench, Subset
from mimjax.rng import step_key
from mimjax.task import TrainState

ROWS = ("raw_pixels", "untrained", "pretrained")


class Splits(NamedTuple):
    """The same features of both splits, float32 [n d] each."""

    train: np.ndarray
    test: np.ndarray


def candidates(features: Any) -> dict[str, jax.Array]:
    """Every (pool, layer) of `Features`, float32 [b d], under names like "cls of block_03"."""
    pools = ("cls", "mean") if features.num_prefix else ("mean",)
    layers = {f"block_{i:02d}": i for i in range(len(features.blocks))} | {"norm": None}
    return {
        f"{pool} of {name}": features.read(pool, layer).astype(jnp.float32)
        for pool in pools
        for name, layer in layers.items()
    }


def encode(encoder: Any, params: Any, images: jax.Array, mean: Any, std: Any) -> Any:
    """The encoder's `Features` of full images, uint8 [b h w c]."""
    return encoder.apply({"params": params}, patches.normalize(images, mean, std))


class FeatureBank:
    """Extracts features once for all probes of an evaluation.

    Attributes:
      labels: of both splits, int64 [n]; without those of images that have none or could not be
        read, which is known after the first `read`.
      readers: how many probes read each row; the features are freed after the last one.
    """

    def __init__(self, bench: Bench, readers: int = 2):
        self.bench, self.readers = bench, readers
        self.labels = self._all_labels = Splits(bench.train.labels(), bench.test.labels())
        self._weights = bench.jit(lambda weight: weight)
        self._encode = bench.jit(self._encode_images)
        self._flatten = bench.jit(
            lambda x: {"all pixels": x.reshape(len(x), -1).astype(jnp.float32) / 255}
        )
        self._kept: dict[str, tuple[Any, int, dict[str, Splits]]] = {}

    def read(self, row: str, state: TrainState) -> dict[str, Splits]:
        """Candidates of one row of ROWS by name."""
        # By identity: the probes of one evaluation share the work, a later state does not.
        params, left, features = self._kept.pop(row, (None, 0, {}))
        if params is not state.params:
            left, features = self.readers, self._make(row, state.params)
        if left > 1:
            self._kept[row] = state.params, left - 1, features
        return features

    def _make(self, row: str, params: Any) -> dict[str, Splits]:
        if row == "raw_pixels":
            return self._both(self._flatten)
        encoder = params["encoder"]
        if row == "untrained":
            encoder = self._untrained(like=encoder)
        return self._both(lambda images: self._encode(encoder, images))

    def _untrained(self, like: Any) -> Any:
        """The encoder's parameters at step 0, laid out as those of `like`."""
        key = step_key(self.bench.seed, "init", 0)
        init = lambda: self.bench.task.init(key)[0]["encoder"]
        return jax.jit(init, out_shardings=jax.tree.map(lambda x: x.sharding, like))()

    def _encode_images(self, encoder, images):
        task: Any = self.bench.task  # the encoder, mean and std are no part of the base class
        return candidates(encode(task.encoder, encoder, images, task.mean, task.std))

    def _both(self, fn) -> dict[str, Splits]:
        train, test = (self._extract(fn, s) for s in (self.bench.train, self.bench.test))
        kept = train.pop("kept"), test.pop("kept")
        self.labels = Splits(*(y[k] for y, k in zip(self._all_labels, kept)))
        return {name: Splits(train[name], test[name]) for name in train}

    def _extract(self, fn, split: Subset) -> dict[str, np.ndarray]:
        """Features of the labeled images that could be read; which these are, "kept" bool."""
        views = {"image": self.bench.task.views["image"]}  # no tokenizer's second view, no masks
        batches = self.bench.batches(split, views)
        outputs, weights = [], []
        for batch in batches:
            outputs.append(jax.device_get(fn(batch["image"])))
            weights.append(jax.device_get(self._weights(batch["weight"])))
        kept = (np.concatenate(weights)[: len(split)] > 0) & (split.labels() >= 0)
        join = lambda name: np.concatenate([o[name] for o in outputs])[: len(split)][kept]
        return {name: join(name) for name in outputs[0]} | {"kept": kept}

"""Monitors of the encoder and of targets that need no labels and predict no accuracy.

`feature_std` and `rankme` tell whether the encoder still distinguishes images. Both read the mean
of all patch tokens after the final norm, on full test images, the same ones at every step. RankMe
(Garrido et al. 2023, arXiv:2210.02885, eq. 1) is the number of directions that the features use, at
most the smaller of their width and the number of images. `target_variance/<name>` is the share of
a target's mean square that depends on the image, for targets that the run's own moving average
makes. A target with no such variance has collapsed, however low its loss is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mimjax import patches
from mimjax.evaluators.base import Evaluator
from mimjax.inference.samples import Bench
from mimjax.rng import named, step_key
from mimjax.task import Pretraining, TrainState, pretraining
from mimjax.values import NonNegative

# Measured with BootMAE on digits. In a healthy run the variance falls to 0.006 while the encoder
# forgets its random features, and ends at 0.6 to 0.85. A run made to collapse (features alone,
# unnormalized, decay 0.5) fell below 0.003 within 150 steps and stayed at 0.0014. The curve tells
# more than the threshold.
COLLAPSED = 0.003


@dataclasses.dataclass(frozen=True)
class Health(Evaluator):
    """Measure spread and rank of the features, and the variance of the run's own targets.

    Attributes:
      warn_below: a target variance below it is called a collapse in a warning; 0 = no warning.
    """

    warn_below: NonNegative = COLLAPSED

    def make(self, bench: Bench) -> HealthMeasure:
        """Return the function that measures."""
        return HealthMeasure(bench, self.warn_below)


class HealthMeasure:
    """Yields feature_std, rankme and target_variance/<name>; what a task lacks is left out."""

    def __init__(self, bench: Bench, warn_below: float = COLLAPSED):
        self.bench, self.warn_below = bench, warn_below
        self._encode = bench.jit(self._features)
        self._spread = bench.jit(self._variances)
        self._outputs: tuple[bool, bool] | None = None

    def __call__(self, state: TrainState, frozen: Any) -> Iterator[tuple[str, float]]:
        has_features, has_targets = self._available(state, frozen)
        if has_features:
            encode = lambda b: self._encode(state.params["encoder"], b["image"], b["weight"])
            parts = [jax.device_get(encode(b)) for b in self._batches()]
            # Rows of weight 0 fill up a batch or replace images that cannot be read.
            features = np.concatenate([x[w > 0] for x, w in parts]).astype(np.float64)
            yield "feature_std", float(features.std(0).mean())
            yield "rankme", rankme(features)
        if has_targets:
            variances = jax.device_get(self._spread(state, frozen, self._first_batch()))
            for name, value in sorted(variances.items()):
                if not value >= self.warn_below:  # NaN is a collapse, too.
                    self.bench.warn(int(state.step), collapsed(name, float(value)))
                yield f"target_variance/{name}", float(value)

    def _batches(self) -> Iterator[dict[str, jax.Array]]:
        # Neither the masks nor a tokenizer's view are needed.
        view = {"image": self.bench.task.views["image"]}
        return self.bench.batches(self.bench.test, view)

    def _first_batch(self) -> dict[str, jax.Array]:
        """Return the first test images with all that the task reads."""
        return next(self.bench.batches(self.bench.test, mask_fn=self.bench.task.mask_fn))

    def _available(self, state: TrainState, frozen: Any) -> tuple[bool, bool]:
        """Return whether the task has features, and own targets; computed once, on shapes."""
        if self._outputs is None:
            batch, has_features = self._first_batch(), isinstance(self.bench.task, Pretraining)
            has_targets = bool(jax.tree.leaves(state.ema)) and bool(
                jax.eval_shape(self._variances, state, frozen, batch)
            )
            self._outputs = has_features, has_targets
        return self._outputs

    # ---------------------------------------------------------------- compiled
    def _features(self, encoder, images, weight):
        """Return the mean patch tokens, float32 [b d], and the rows' weights [b]."""
        task = pretraining(self.bench.task)
        images = patches.normalize(images, task.mean, task.std)
        features = task.encoder.apply({"params": encoder}, images)
        return features.read("mean").astype(jnp.float32), weight

    def _variances(self, state, frozen, batch):
        """Return `variance_share` of each of the run's own targets, by the target's name."""
        if "mask" in batch:  # With one mask for all, the k-th targets of all images are one patch.
            mask = jnp.broadcast_to(batch["mask"][:1], batch["mask"].shape)
            batch = batch | {"mask": mask}
        key = named(step_key(self.bench.seed, "eval", 0), "prepare")
        task, weight = self.bench.task, batch["weight"]
        prepared = task.prepare(state.ema, frozen, batch, key, state.step, False)
        return {k: variance_share(x, weight) for k, x in task.own_targets(prepared).items()}


def rankme(features: np.ndarray) -> float:
    """Return exp of the entropy of the normalized singular values of features [n d]."""
    values = np.linalg.svd(features, compute_uv=False)
    share = values / max(values.sum(), 1e-300) + 1e-7
    return float(np.exp(-(share * np.log(share)).sum()))


def variance_share(target: jax.Array, weight: jax.Array) -> jax.Array:
    """Return the variance over images as a share of the mean square, float32 [] in [0, 1].

    Args:
      target: [b k d]; the variance is taken at each of the k places and d channels.
      weight: [b], 0 for rows that do not count.
    """
    x, w = target.astype(jnp.float32), weight / weight.sum()
    mean = jnp.einsum("b,bkd->kd", w, x)
    spread = jnp.einsum("b,bkd->", w, jnp.square(x - mean))
    return spread / jnp.maximum(jnp.einsum("b,bkd->", w, jnp.square(x)), 1e-30)


def collapsed(name: str, value: float) -> str:
    """Return the warning about a collapsed target."""
    return (
        f"the target {name!r} has collapsed: {100 * (1 - value):.1f} % of it is the same for every "
        "image, so its loss can fall without anything being learned. Look at the moving average "
        "(ema_decay), the weight of the other losses and the normalization of the target"
    )

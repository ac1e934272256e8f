"""Monitors of the encoder and of targets that need no labels and predict no accuracy.

`feature_std` and `rankme` tell whether the encoder still distinguishes images. Both read the mean
of all patch tokens after the final norm, on full test images, the same ones at every step. RankMe
(Garrido et al. 2023, arXiv:2210.02885, eq. 1) is the number of directions that the features use, at
most the smaller of their width and the number of images. `target_variance/<name>` is the share of
a target's mean square that depends on the image, for targets that read the run's own weights
(`Target.of`). A target with no such variance has collapsed, however low its loss is.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mimjax.evaluators.base import Evaluator
from mimjax.inference.encoders import encode_images
from mimjax.inference.samples import Bench
from mimjax.methods.mim import MIM
from mimjax.rng import named, step_key
from mimjax.task import Prepared, Pretraining, TrainState, gather_rows, pretraining
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

    UNLABELED: ClassVar[bool] = True

    warn_below: NonNegative = COLLAPSED

    def make(self, bench: Bench) -> HealthMeasure:
        """Return the function that measures."""
        return HealthMeasure(bench, self.warn_below)


class HealthMeasure:
    """A measurement: feature_std, rankme, target_variance/<name>; what a task lacks is left out."""

    def __init__(self, bench: Bench, warn_below: float = COLLAPSED):
        self.bench, self.warn_below = bench, warn_below
        self._encode = bench.jit(self._features)
        self._spread = bench.jit(self._variances)
        targets = bench.task.targets if isinstance(bench.task, MIM) else {}
        self.own = [name for name, target in targets.items() if target.of]

    def __call__(self, state: TrainState, frozen: Any) -> Iterator[tuple[str, float]]:
        task = self.bench.task
        if isinstance(task, Pretraining):
            encoder = task.evaluated(state)
            encode = lambda b: self._encode(encoder, b["image"], b["weight"])
            view = {"image": task.views["image"]}  # neither masks nor a tokenizer's view are needed
            parts = [jax.device_get(encode(b)) for b in self.bench.batches(self.bench.test, view)]
            # Rows of weight 0 fill up a batch or replace images that cannot be read.
            features = np.concatenate([x[w > 0] for x, w in parts]).astype(np.float64)
            if not np.isfinite(features).all():
                self.bench.warn(int(state.step), "features are not finite: health is NaN")
            yield "feature_std", float(features.std(0).mean())
            yield "rankme", rankme(features)
        if self.own:
            first = next(self.bench.batches(self.bench.test, sample=task.sample))
            variances = jax.device_get(self._spread(state, frozen, first))
            for name, value in sorted(variances.items()):
                if not value >= self.warn_below:  # NaN is a collapse, too.
                    self.bench.warn(int(state.step), collapsed(name, float(value)))
                yield f"target_variance/{name}", float(value)

    # ---------------------------------------------------------------- compiled
    def _features(self, encoder, images, weight):
        """Return the mean patch tokens, float32 [b d], and the rows' weights [b]."""
        task = pretraining(self.bench.task)
        features = encode_images(task.encoder, encoder, images, task.mean, task.std)
        return features.read("mean").astype(jnp.float32), weight

    def _variances(self, state, frozen, batch):
        """Return `variance_share` of each of the run's own targets, by the target's name."""
        task, weight = self.bench.task, batch["weight"]
        # With one mask for all, the k-th targets of all images are one patch.
        for name in task.sample(random.Random(0), 0):
            batch = batch | {name: jnp.broadcast_to(batch[name][:1], batch[name].shape)}
        key = named(step_key(self.bench.seed, "eval", 0), "prepare")
        prepared, _ = task.prepare(state, frozen, batch, key, False)
        return {name: variance_share(patches_of(prepared, name), weight) for name in self.own}


def rankme(features: np.ndarray) -> float:
    """Return exp of the entropy of the normalized singular values of features [n d].

    It is NaN where the features are not finite.
    """
    if not np.isfinite(features).all():
        return math.nan
    values = np.linalg.svd(features, compute_uv=False)
    share = values / max(values.sum(), 1e-300) + 1e-7
    return float(np.exp(-(share * np.log(share)).sum()))


def patches_of(prepared: Prepared, name: str) -> jax.Array:
    """Return a target's values [b k d] at one and the same k patches of all images.

    These are all patches in raster order where the target knows them. Otherwise they are those that
    it knows, which must be the same ones in all images.
    """
    values, rows = prepared.shown[name], prepared.shown_rows[name]
    found = [values[place] for place in ("visible", "masked") if place in values]
    if len(found) == 2 and not rows:
        ids = jnp.concatenate([prepared.ids_v, prepared.ids_m], axis=1)
        return gather_rows(jnp.concatenate(found, axis=1), jnp.argsort(ids, axis=1))
    return found[-1]


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
        "image, so its loss can fall without anything being learned. Look at the moving average, "
        "if it reads one (ema_decay), the weight of the other losses and the normalization of the "
        "target"
    )

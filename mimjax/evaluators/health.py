"""Is the encoder still telling images apart? Monitors that need no label and predict no accuracy.

`feature_std` and `rankme` of the encoder's output on full test images: the mean of all patch tokens
after the final norm, the same images at every step. RankMe (Garrido et al. 2023, arXiv:2210.02885,
eq. 1) is the number of directions that the features use, at most the smaller of their width and the
number of images. `target_variance/<name>`: how much of a target that the run's own average makes
depends on the image at all; a target that does not is collapsed, however low its loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mimjax import patches
from mimjax.inference.samples import Bench
from mimjax.rng import named, step_key
from mimjax.task import Pretraining, TrainState, pretraining

# Measured with BootMAE on digits: a healthy run dips to 0.006 while the encoder forgets its random
# features, and ends at 0.6 to 0.85; one made to collapse (features alone, unnormalized, decay 0.5)
# fell below 0.003 within 150 steps and stayed at 0.0014. The curve tells more than the threshold.
COLLAPSED = 0.003


class Health:
    """Yields feature_std, rankme and target_variance/<name>; a task without them is left out.

    Attributes:
      warn: (step, text) -> None, called for a collapsed target at every evaluation.
    """

    name = "health"

    def __init__(self, bench: Bench, warn: Callable[[int, str], None]):
        self.bench, self.warn = bench, warn
        self._encode = bench.jit(self._features)
        self._spread = bench.jit(self._variances)
        self._possible: tuple[bool, bool] | None = None

    def __call__(self, state: TrainState, frozen: Any) -> Iterator[tuple[str, float]]:
        encodes, averages = self._has(state, frozen)
        if encodes:
            encode = lambda b: self._encode(state.params["encoder"], b["image"], b["weight"])
            parts = [jax.device_get(encode(b)) for b in self._batches()]
            # rows of weight 0 fill up a batch or stand in for images that cannot be read
            features = np.concatenate([x[w > 0] for x, w in parts]).astype(np.float64)
            yield "feature_std", float(features.std(0).mean())
            yield "rankme", rankme(features)
        if averages:
            found = jax.device_get(self._spread(state, frozen, self._batch()))
            for name, value in sorted(found.items()):
                if not value >= COLLAPSED:
                    self.warn(int(state.step), collapsed(name, float(value)))
                yield f"target_variance/{name}", float(value)

    def _batches(self) -> Iterator[dict[str, jax.Array]]:
        view = {"image": self.bench.task.views["image"]}  # no tokenizer's second view, no masks
        return self.bench.batches(self.bench.test, view)

    def _batch(self) -> dict[str, jax.Array]:
        """The first images as the task reads them."""
        return next(self.bench.batches(self.bench.test, mask_fn=self.bench.task.mask_fn))

    def _has(self, state: TrainState, frozen: Any) -> tuple[bool, bool]:
        """Whether the encoder gives features, and whether there are own targets; on shapes."""
        if self._possible is None:
            batch, encodes = self._batch(), isinstance(self.bench.task, Pretraining)
            averages = bool(jax.tree.leaves(state.ema)) and bool(
                jax.eval_shape(self._variances, state, frozen, batch)
            )
            self._possible = encodes, averages
        return self._possible

    # ---------------------------------------------------------------- compiled
    def _features(self, encoder, images, weight):
        """Mean patch tokens, float32 [b d], and the rows' weights."""
        task = pretraining(self.bench.task)
        images = patches.normalize(images, task.mean, task.std)
        found = task.encoder.apply({"params": encoder}, images)
        return found.read("mean").astype(jnp.float32), weight

    def _variances(self, state, frozen, batch):
        """{name: share of a target's energy that differs between images at the same place}."""
        if "mask" in batch:  # one mask for all: the k-th target of every image is the same patch
            mask = jnp.broadcast_to(batch["mask"][:1], batch["mask"].shape)
            batch = batch | {"mask": mask}
        key = named(step_key(self.bench.seed, "eval", 0), "prepare")
        task, weight = self.bench.task, batch["weight"]
        prepared = task.prepare(state.ema, frozen, batch, key, state.step, False)
        return {k: variance_share(x, weight) for k, x in task.own_targets(prepared).items()}


def rankme(features: np.ndarray) -> float:
    """Exp of the entropy of the normalized singular values of [n d] features."""
    values = np.linalg.svd(features, compute_uv=False)
    share = values / max(values.sum(), 1e-300) + 1e-7
    return float(np.exp(-(share * np.log(share)).sum()))


def variance_share(target: jax.Array, weight: jax.Array) -> jax.Array:
    """Variance over images, at each place and channel, as a share of the mean square; in [0, 1].

    Args:
      target: [b k d]; weight: [b], 0 for rows that do not count.
    """
    x, w = target.astype(jnp.float32), weight / weight.sum()
    mean = jnp.einsum("b,bkd->kd", w, x)
    spread = jnp.einsum("b,bkd->", w, jnp.square(x - mean))
    return spread / jnp.maximum(jnp.einsum("b,bkd->", w, jnp.square(x)), 1e-30)


def collapsed(name: str, value: float) -> str:
    """The warning."""
    return (
        f"the target {name!r} has collapsed: {100 * (1 - value):.1f} % of it is the same for every "
        "image, so its loss can fall without anything being learned. Look at the moving average "
        "(ema_decay), the weight of the other losses and the normalization of the target"
    )

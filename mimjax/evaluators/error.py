"""Held-out masked error of the model beside two naive predictors.

The naive predictors see no more than the model or learn nothing. All three values are means over
the masked patches of the test split, in which every patch has the same weight: squared errors in
the space of the target, or the cross-entropy of codes in nats. A task without `preds["error"]` has
no such error and yields nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mimjax.evaluators.base import Evaluator
from mimjax.inference.samples import Bench
from mimjax.patches import gather
from mimjax.rng import named, step_key
from mimjax.task import TrainState
from mimjax.train.step import eval_step

NAIVE = ("mean_image_error", "visible_mean_error")


@dataclasses.dataclass(frozen=True)
class MaskedError(Evaluator):
    """Measure the held-out masked error; see `ErrorMeasure` for its values."""

    def make(self, bench: Bench) -> ErrorMeasure:
        """Return the function that measures."""
        return ErrorMeasure(bench)


class ErrorMeasure:
    """Yields masked_error, mean_image_error and visible_mean_error.

    The "mean image" predicts at each position the mean target that the training images have there.
    The "visible mean" predicts for every masked patch the mean of the image's own visible targets.
    For codes these are frequencies instead of means. Both depend on no parameter, so they are
    computed once. A task whose prepared batch has neither `visible_target` nor `visible_codes`
    yields the first value only.

    Attributes:
      codes: the size of the vocabulary, 0 where targets are vectors; known after the first call.
      values: the values of the last call by name; {} before it, or where the task has no error.
    """

    def __init__(self, bench: Bench):
        self.bench = bench
        self.values: dict[str, float] = {}
        self.codes = 0
        self._naive: dict[str, float] | None = None
        self._outputs: tuple[bool, bool] | None = None
        self._model = bench.jit(self._model_errors)
        self._targets = bench.jit(self._target_sum)
        self._naives = bench.jit(self._naive_errors)

    def __call__(self, state: TrainState, frozen: Any) -> Iterator[tuple[str, float]]:
        has_error, has_visible = self._available(state, frozen)
        if not has_error:
            return
        rows = [self._model(state, frozen, batch) for batch in self._batches("test")]
        self.values = {"masked_error": _means(rows)[0]}
        if has_visible:
            if self._naive is None:
                self._naive = self._measure_naive(state, frozen)
            self.values |= self._naive
        yield from self.values.items()

    def _batches(self, split: str) -> Iterator[dict[str, jax.Array]]:
        return self.bench.batches(getattr(self.bench, split), mask_fn=self.bench.task.mask_fn)

    def _available(self, state: TrainState, frozen: Any) -> tuple[bool, bool]:
        """Return whether the task has an error, and visible targets; computed once, on shapes."""
        if self._outputs is None:
            batch = next(self._batches("test"))
            task, seed = self.bench.task, self.bench.seed
            prepared, out = jax.eval_shape(
                lambda s, f, b: eval_step(s, f, b, task=task, seed=seed), state, frozen, batch
            )
            self.codes = out.preds["pred"].shape[-1] if "visible_codes" in prepared else 0
            has_visible = "visible_target" in prepared or "visible_codes" in prepared
            self._outputs = "error" in out.preds, has_visible
        return self._outputs

    def _measure_naive(self, state: TrainState, frozen: Any) -> dict[str, float]:
        total, count = np.zeros(()), 0.0
        for batch in self._batches("train"):
            part, weight = jax.device_get(self._targets(state, frozen, batch))
            # The host adds batches in float64, so that the sum over many of them stays exact.
            total, count = total + part.astype(np.float64), count + float(weight)
        mean_image = total / count
        if self.codes:  # One image more in which all codes are alike: no probability is 0.
            mean_image = (total + 1 / self.codes) / (count + 1)
        mean_image = np.asarray(mean_image, np.float32)
        rows = [self._naives(state, frozen, b, mean_image) for b in self._batches("test")]
        return dict(zip(NAIVE, _means(rows)))

    # ---------------------------------------------------------------- compiled
    def _model_errors(self, state, frozen, batch):
        """Return the errors of the images, float32 [1 b], and their weights [b]."""
        _, out = eval_step(state, frozen, batch, task=self.bench.task, seed=self.bench.seed)
        return out.preds["error"][None], batch["weight"]

    def _prepare(self, state, frozen, batch):
        """Prepare the batch with the key of `eval_step`, so that masks made on the device agree."""
        key = named(step_key(self.bench.seed, "eval", 0), "prepare")
        return self.bench.task.prepare(state.ema, frozen, batch, key, state.step, False)

    def _target_sum(self, state, frozen, batch):
        """Return the sum of the targets at each position, [n d], and the number of rows in it.

        For codes the sum counts how often each of the d codes occurs at each position.
        """
        p = self._prepare(state, frozen, batch)
        ids = jnp.concatenate([p["ids_v"], p["ids_m"]], axis=1)
        if self.codes:
            target = jnp.concatenate([p["visible_codes"], p["target"]], axis=1)
            counts = jnp.zeros((ids.shape[1], self.codes))
            weight = jnp.broadcast_to(batch["weight"][:, None], ids.shape)
            return counts.at[ids, target].add(weight), batch["weight"].sum()
        target = jnp.concatenate([p["visible_target"], p["target"]], axis=1)
        in_order = gather(target.astype(jnp.float32), jnp.argsort(ids, axis=1))
        return jnp.einsum("bnd,b->nd", in_order, batch["weight"]), batch["weight"].sum()

    def _naive_errors(self, state, frozen, batch, mean_image):
        """Return the naive errors in the order of NAIVE, float32 [2 b], and the weights [b]."""
        p = self._prepare(state, frozen, batch)
        if self.codes:
            seen, hits = p["visible_codes"], p["target"]
            # The image's own frequencies, with one draw from those of all images added.
            start = jnp.broadcast_to(mean_image.mean(0), (len(seen), self.codes))
            own = start.at[jnp.arange(len(seen))[:, None], seen].add(1.0) / (seen.shape[1] + 1)
            chance = mean_image[p["ids_m"], hits], jnp.take_along_axis(own, hits, axis=1)
            return jnp.stack([-jnp.log(x).mean(1) for x in chance]), batch["weight"]
        guesses = mean_image[p["ids_m"]], p["visible_target"].mean(1, keepdims=True)
        errors = [jnp.square(p["target"] - guess).mean((1, 2)) for guess in guesses]
        return jnp.stack(errors), batch["weight"]


def _means(rows: list[tuple[jax.Array, jax.Array]]) -> list[float]:
    """Return the k weighted means over the rows of pairs (values [k b], weights [b])."""
    values, weights = zip(*jax.device_get(rows))
    means = np.average(np.concatenate(values, axis=1), axis=1, weights=np.concatenate(weights))
    return [float(mean) for mean in means]

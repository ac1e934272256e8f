"""Held-out masked error of the model beside two naive predictors.

The naive predictors see no more than the model or learn nothing. All three values are those of the
first term's loss, before weights: a mean over the masked patches of an image, and over the images
of the test split. A task that predicts nothing has no such error and yields nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mimjax.evaluators.base import Evaluator
from mimjax.inference import presentation
from mimjax.inference.reconstruction import eval_step
from mimjax.inference.samples import Bench
from mimjax.losses import standardize
from mimjax.methods.mim import MIM
from mimjax.methods.parts import Term
from mimjax.rng import named, step_key
from mimjax.task import Prepared, Task, TrainState, gather_rows, pretraining, split_places

NAIVE = ("mean_image_error", "visible_mean_error")


@dataclasses.dataclass(frozen=True)
class MaskedError(Evaluator):
    """Measure the held-out masked error; see `ErrorMeasure` for its values."""

    UNLABELED: ClassVar[bool] = True

    def make(self, bench: Bench) -> ErrorMeasure:
        """Return the function that measures."""
        return ErrorMeasure(bench)


class Guessed(NamedTuple):
    """The term that naive predictors are compared in.

    Attributes:
      term: the first one that is learned.
      codes: the size of the vocabulary, 0 where targets are vectors.
      fixed: whether its target depends on no weights of the run.
    """

    term: Term
    codes: int
    fixed: bool


def guessed(task: Task) -> Guessed | None:
    """Return the term that naive predictors can be compared in; None = there is none.

    They need a target that is known at every patch, and predictions at masked patches.
    """
    if not isinstance(task, MIM):
        return None
    term = next(iter(task.terms.values()))
    target, encoder = task.targets[term.target], task.encoder
    known = {"visible", "masked"} <= set(target.places(encoder))
    if not known or "masked" not in split_places(term.at) or target.kind == "probabilities":
        return None
    codes = target.width(encoder) if target.kind == "codes" else 0
    return Guessed(term, codes, not target.of)


class ErrorMeasure:
    """A measurement that yields masked_error, mean_image_error and visible_mean_error.

    The "mean image" predicts at each position the mean target that the training images have there.
    The "visible mean" predicts for every masked patch the mean of the image's own visible targets.
    For codes these are frequencies instead of means. Both are computed once where the target
    depends on no weights of the run. Where no naive predictor can be had, see `guessed`, there is
    the first value alone.

    Attributes:
      codes: the size of the vocabulary, 0 where targets are vectors.
      values: the values of the last call by name; {} before it, or where the task has no error.
    """

    def __init__(self, bench: Bench):
        self.bench = bench
        self.values: dict[str, float] = {}
        self.guessed = guessed(bench.task)
        self.codes = self.guessed.codes if self.guessed else 0
        self._naive: dict[str, float] | None = None
        self._shapes: tuple[bool, bool] | None = None
        self._model = bench.jit(self._model_errors)
        self._targets = bench.jit(self._target_sum)
        self._naives = bench.jit(self._naive_errors)

    def __call__(self, state: TrainState, frozen: Any) -> Iterator[tuple[str, float]]:
        has_error, has_naive = self._available(state, frozen)
        if not has_error:
            return
        rows = [self._model(state, frozen, batch) for batch in self._batches("test")]
        self.values = {"masked_error": _means(rows)[0]}
        if has_naive and self.guessed:
            if self._naive is None or not self.guessed.fixed:
                self._naive = self._measure_naive(state, frozen)
            self.values |= self._naive
        yield from self.values.items()

    def _batches(self, split: str) -> Iterator[dict[str, jax.Array]]:
        return self.bench.batches(getattr(self.bench, split), sample=self.bench.task.sample)

    def _available(self, state: TrainState, frozen: Any) -> tuple[bool, bool]:
        """Return whether the task has an error, and naive ones; computed once, on shapes."""
        if self._shapes is None:
            batch = next(self._batches("test"))
            task, seed = self.bench.task, self.bench.seed
            prepared, out = jax.eval_shape(
                lambda s, f, b: eval_step(s, f, b, task=task, seed=seed), state, frozen, batch
            )
            self._shapes = bool(out.predictions), bool(self.guessed) and self._whole(prepared)
        return self._shapes

    def _whole(self, prepared: Prepared) -> bool:
        """Return whether the target is known at every patch of every image, once each."""
        assert self.guessed
        name = self.guessed.term.target
        places, rows = prepared.shown[name], prepared.shown_rows[name]
        count = prepared.ids_v.shape[1] + prepared.ids_m.shape[1]
        whole = count == pretraining(self.bench.task).encoder.num_patches
        return whole and prepared.sequences == 1 and not rows and "visible" in places

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
        task, seed = self.bench.task, self.bench.seed
        prepared, out = eval_step(state, frozen, batch, task=task, seed=seed)
        error: Any = presentation.image_error(prepared, out.predictions)
        return error[None], batch["weight"]

    def _prepare(self, state, frozen, batch) -> tuple[Prepared, jax.Array, jax.Array]:
        """Return the prepared batch and the term's targets at visible and at masked patches.

        The key is that of `eval_step`, so that masks made on the device agree.
        """
        assert self.guessed
        key = named(step_key(self.bench.seed, "eval", 0), "prepare")
        prepared, _ = self.bench.task.prepare(state, frozen, batch, key, False)
        shown = prepared.shown[self.guessed.term.target]
        form = (lambda x: x) if self.guessed.term.normalize == "none" else standardize
        return prepared, form(shown["visible"]), form(shown["masked"])

    def _target_sum(self, state, frozen, batch):
        """Return the sum of the targets at each position, [n d], and the number of rows in it.

        For codes the sum counts how often each of the d codes occurs at each position.
        """
        p, visible, masked = self._prepare(state, frozen, batch)
        ids = jnp.concatenate([p.ids_v, p.ids_m], axis=1)
        target = jnp.concatenate([visible, masked], axis=1)
        if self.codes:
            counts = jnp.zeros((ids.shape[1], self.codes))
            weight = jnp.broadcast_to(batch["weight"][:, None], ids.shape)
            return counts.at[ids, target].add(weight), batch["weight"].sum()
        in_order = gather_rows(target.astype(jnp.float32), jnp.argsort(ids, axis=1))
        return jnp.einsum("bnd,b->nd", in_order, batch["weight"]), batch["weight"].sum()

    def _naive_errors(self, state, frozen, batch, mean_image):
        """Return the naive errors in the order of NAIVE, float32 [2 b], and the weights [b]."""
        assert self.guessed
        term, (p, seen, hits) = self.guessed.term, self._prepare(state, frozen, batch)
        if self.codes:
            # The image's own frequencies, with one draw from those of all images added.
            start = jnp.broadcast_to(mean_image.mean(0), (len(seen), self.codes))
            own = start.at[jnp.arange(len(seen))[:, None], seen].add(1.0) / (seen.shape[1] + 1)
            scores = jnp.log(mean_image)[p.ids_m], jnp.log(own)[:, None]
            guesses = tuple(jnp.broadcast_to(x, (*hits.shape, self.codes)) for x in scores)
        else:
            mean = seen.mean(1, keepdims=True)
            guesses = mean_image[p.ids_m], jnp.broadcast_to(mean, hits.shape)
        if term.normalize == "both":  # a guess is treated as the model's prediction is
            guesses = tuple(standardize(guess) for guess in guesses)
        errors = [{"masked": term.loss(guess, hits)} for guess in guesses]
        return jnp.stack([presentation.mean_error(p, x, {}) for x in errors]), batch["weight"]


def _means(rows: list[tuple[jax.Array, jax.Array]]) -> list[float]:
    """Return the k weighted means over the rows of pairs (values [k b], weights [b])."""
    values, weights = zip(*jax.device_get(rows))
    means = np.average(np.concatenate(values, axis=1), axis=1, weights=np.concatenate(weights))
    return [float(mean) for mean in means]

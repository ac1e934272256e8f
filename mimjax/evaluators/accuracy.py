"""The accuracy of a task that learns classes, over the whole test split."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from mimjax.errors import ConfigError
from mimjax.evaluators.base import Evaluator, Measure
from mimjax.inference.samples import Bench, Subset
from mimjax.plugs import class_path
from mimjax.task import TrainState
from mimjax.transfer.tuning import Tuning
from mimjax.values import Count, Length

AVERAGE = "_ema"  # end of the name of what the average gives


@dataclasses.dataclass(frozen=True)
class Accuracy(Evaluator):
    """Measure top-1 and top-5 accuracy on every test image, in percent.

    Each image counts once on any number of devices; images without a label and files that cannot be
    read do not count. Where a task averages its parameters, their average is measured too, as
    "accuracy_ema".

    Attributes:
      top: how many of the likeliest classes a label may be among; of equally likely classes the
        first one comes first.
      max_images: of the test split; None = all of it, whatever `eval.max_images` says.
    """

    top: Annotated[tuple[Count, ...], Length(1)] = (1, 5)
    max_images: Count | None = None

    def parts(self, name: str, bench: Bench) -> dict[str, Measure]:
        measure, task = self.make(bench), bench.task
        parts: dict[str, Any] = {name: functools.partial(measure, name=name)}
        if isinstance(task, Tuning) and task.average is not None:
            theirs = f"{name}{AVERAGE}"
            parts[theirs] = lambda state, frozen: measure(
                state.replace(params=state.ema), frozen, theirs
            )
        return parts

    def make(self, bench: Bench) -> Any:
        """Return the function that measures.

        Raises:
          ConfigError: the task learns no classes.
        """
        task = bench.task
        if not task.learns_labels:
            raise ConfigError(
                f"eval.accuracy: on, but {class_path(type(task))} learns no classes; allowed: None"
            )
        whole = bench.test.source
        split = Subset(whole, self.max_images or len(whole))
        tops = sorted({n for n in self.top if n <= whole.num_classes})

        @bench.jit
        def count(state: TrainState, frozen: Any, batch: dict[str, jax.Array]) -> jax.Array:
            logits, label = task.classify(state, frozen, batch), batch["label"]
            counts = (batch["weight"] > 0) & (label >= 0)
            own = jnp.take_along_axis(logits, jnp.maximum(label, 0)[:, None], axis=1)
            first = jnp.arange(logits.shape[1]) < label[:, None]
            rank = ((logits > own) | ((logits == own) & first)).sum(1)
            finite = jnp.isfinite(logits).all(1)
            rows = [counts & (rank < n) for n in tops] + [counts, counts & ~finite]
            return jnp.stack([row.sum() for row in rows])

        def measure(
            state: TrainState, frozen: Any, name: str = "accuracy"
        ) -> Iterator[tuple[str, float]]:
            state = state.replace(ema={}, opt_state=())
            views = {"image": task.views["image"]}
            found = [count(state, frozen, b) for b in bench.batches(split, views)]
            sums = np.stack(jax.device_get(found)).sum(0, dtype=np.int64)
            *right, total, broken = sums.tolist()
            if broken or not total:
                what = f"{broken} rows of logits are not finite" if broken else "nothing to count"
                bench.warn(int(state.step), f"eval/{name} is NaN: {what}")
            for n, hits in zip(tops, right, strict=True):
                yield f"top{n}", float("nan") if broken or not total else 100.0 * hits / total

        return measure

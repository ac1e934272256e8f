"""The accuracy of a task that learns classes, what it confuses, and its most confident mistakes.

One pass over the test split serves all three.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from mimjax.data.sources import class_names
from mimjax.errors import ConfigError
from mimjax.evaluators.base import Evaluator, Measure
from mimjax.inference.samples import Bench, Subset
from mimjax.plots import mistakes
from mimjax.plots.reconstructions import png
from mimjax.plugs import class_path
from mimjax.storage import confusions
from mimjax.storage.confusions import Confusion, Mistake
from mimjax.task import TrainState
from mimjax.values import Count, Length, Whole

AVERAGE = "_ema"  # end of the name of what the average gives


@dataclasses.dataclass(frozen=True)
class Accuracy(Evaluator):
    """Measure top-1 and top-5 accuracy on every test image, in percent.

    Each image counts once on any number of devices; images without a label and files that cannot be
    read do not count. Where a task averages its parameters, their average is measured too, as
    "accuracy_ema". What was taken for what is counted beside it, and the most confident mistakes
    are drawn; report.html shows both.

    Attributes:
      top: how many of the likeliest classes a label may be among; of equally likely classes the
        first one comes first.
      max_images: of the test split; None = all of it, whatever `eval.max_images` says.
      mistakes: how many are drawn at the most, 0 = none.
    """

    top: Annotated[tuple[Count, ...], Length(1)] = (1, 5)
    max_images: Count | None = None
    mistakes: Whole = 36

    def parts(self, name: str, bench: Bench) -> dict[str, Measure]:
        measure, task = self.make(bench), bench.task
        parts: dict[str, Any] = {name: functools.partial(measure, name=name)}
        if task.init_ema({"head": jnp.zeros(())}):  # an average of all parameters has a head
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
        def judge(state: TrainState, frozen: Any, batch: dict[str, jax.Array]) -> Any:
            logits, label = task.classify(state, frozen, batch), batch["label"]
            own = jnp.take_along_axis(logits, jnp.maximum(label, 0)[:, None], axis=1)
            first = jnp.arange(logits.shape[1]) < label[:, None]
            return {
                "counts": (batch["weight"] > 0) & (label >= 0),
                "finite": jnp.isfinite(logits).all(1),
                "rank": ((logits > own) | ((logits == own) & first)).sum(1),
                "label": label,
                "index": batch["index"],
                "predicted": logits.argmax(1),
                "probability": jax.nn.softmax(logits).max(1),
            }

        def measure(
            state: TrainState, frozen: Any, name: str = "accuracy"
        ) -> Iterator[tuple[str, float]]:
            state = state.replace(ema={}, opt_state=())
            views = {"image": task.views["image"]}
            found = [judge(state, frozen, b) for b in bench.batches(split, views)]
            rows = jax.tree.map(lambda *x: np.concatenate(x), *jax.device_get(found))
            rows = {k: x[rows["counts"]] for k, x in rows.items()}
            total, broken = len(rows["rank"]), int((~rows["finite"]).sum())
            if broken or not total:
                what = f"{broken} rows of logits are not finite" if broken else "nothing to count"
                bench.warn(int(state.step), f"eval/{name} is NaN: {what}")
            elif jax.process_index() == 0:
                self.keep(confused(name, int(state.step), whole.num_classes, rows), bench, split)
            for n in tops:
                hits = int((rows["rank"] < n).sum())
                yield f"top{n}", float("nan") if broken or not total else 100.0 * hits / total

        return measure

    def keep(self, found: Confusion, bench: Bench, split: Subset) -> None:
        """Write counts and mistakes, with a picture of as many as are asked for."""
        shown = found.mistakes[: self.mistakes]
        if shown:
            known = class_names(split.source)
            names = known or tuple(map(str, range(found.classes)))
            words = [
                (names[m.true], f"{mistakes.percent(m.probability)} for {names[m.predicted]}")
                for m in shown
            ]
            caption = (
                f"The true class, and below it what was predicted. Wrong: {found.wrong:,} of "
                f"{found.images:,} images."
            )
            images = [pixels(split, m.index) for m in shown]
            picture, boxes = mistakes.sheet(images, words, caption)
            bench.write(found.picture, png(picture))
            shown = tuple(m._replace(box=box) for m, box in zip(shown, boxes, strict=True))
        bench.keep(found.file, dataclasses.replace(found, mistakes=shown).to_json())


def confused(name: str, step: int, classes: int, rows: dict[str, np.ndarray]) -> Confusion:
    """Return counts, and all mistakes.

    Args:
      rows: "label", "predicted", "probability" and "index" of all images that count, [n] each.
    """
    cells = confusions.count(rows["label"], rows["predicted"])
    wrong = np.flatnonzero(rows["label"] != rows["predicted"])
    order = wrong[np.lexsort((rows["index"][wrong], -rows["probability"][wrong]))]
    columns = [rows[k][order].tolist() for k in ("index", "label", "predicted", "probability")]
    return Confusion(name, step, classes, cells, tuple(map(Mistake, *columns)))


def pixels(split: Subset, index: int) -> np.ndarray | None:
    """Return an image, uint8 [h w c]; None where it cannot be read anew, whatever the reason."""
    try:
        image = np.asarray(split.image(index), np.uint8)
        return image[..., None] if image.ndim == 2 else image
    except Exception:  # a store that fails now, a user's own source: no reason to end a run
        return None

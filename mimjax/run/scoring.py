"""How a cell of an evaluation is computed: neighbors are searched, or a grid of heads is trained.

Settings are chosen on images that were left out; test images are read once, after the choice.
Padding has weight 0, so that every image counts once on any number of devices.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from mimjax import progress, sharding, stopping
from mimjax.errors import RunError
from mimjax.inference import precision
from mimjax.inference.feature_cache import Features
from mimjax.rng import step_key
from mimjax.run.cells import Result, Space
from mimjax.task import Clock, init_state
from mimjax.train import optimizers
from mimjax.train.step import train_step
from mimjax.transfer import neighbors
from mimjax.transfer.head import Reading
from mimjax.transfer.probing import Encoding, Heads, feature_name

if TYPE_CHECKING:
    from mimjax.run import protocols as p

PyTree = Any
QUEUED = 8  # updates that are sent to the devices ahead of time
Outputs = Iterator[tuple[dict[str, np.ndarray], np.ndarray]]


class Score(NamedTuple):
    """What a setting reaches, in percent; of equal settings the one with the lower loss is taken.

    Attributes:
      top1, top5: accuracies.
      loss: mean cross entropy.
    """

    top1: float
    top5: float
    loss: float = 0.0


def score(logits: np.ndarray, labels: np.ndarray) -> Score:
    """Return the scores of logits [m c]; NaN counts as wrong."""
    x = np.where(np.isfinite(logits), logits, -np.inf).astype(np.float64)
    right = np.take_along_axis(x, labels[:, None], 1)
    above = (x > right).sum(1) + (x == right)[:, :].cumsum(1)[np.arange(len(x)), labels] - 1
    broken = ~np.isfinite(right[:, 0])
    share = lambda k: 100 * float(((above < k) & ~broken).mean())
    top = x.max(1, keepdims=True)
    with np.errstate(invalid="ignore", over="ignore"):
        loss = np.log(np.exp(x - top).sum(1)) + (top - right)[:, 0]
    return Score(share(1), share(min(5, x.shape[1])), float(np.where(broken, np.inf, loss).mean()))


def nearest(
    protocol: p.Neighbors, space: Space, train: Features, cut: Any, test: Features, classes: int
) -> Result:
    """Return the result of k-NN; the database of the final score is all training images.

    Args:
      cut: places in `train` to learn from and to choose on.
    """
    fit, held = (train.take(places) for places in cut)
    neighbors.check_ks("--ks", [min(protocol.ks)], len(fit))
    ks = [k for k in protocol.ks if k <= len(fit)]
    best: tuple[float, Any, Any] = (-1.0, None, None)
    for reading in protocol.readings(space):
        stopping.check()
        x, other = fit.read(reading), held.read(reading)
        check_finite(reading, x, other)
        found = neighbors.ranked(x, fit.labels, other, ks, protocol.temperatures, 1, classes)
        for setting in found:
            if (top := setting.top(held.labels)) > best[0]:  # of equal ones the first
                best = top, reading, setting
    top, reading, chosen = best
    (final,) = neighbors.ranked(
        train.read(reading), train.labels, test.read(reading), [chosen.k], [chosen.temperature],
        5, classes,
    )  # fmt: skip
    words = f"{reading.words}, k {chosen.k}, T {chosen.temperature:g}"
    sizes = len(train), len(held), len(test)
    return Result(final.top(test.labels), final.top(test.labels, 5), top, words, *sizes)


def check_finite(reading: Reading, *parts: np.ndarray) -> None:
    """Refuse features that hold NaN: no accuracy of them means anything.

    Raises:
      RunError: some are not finite.
    """
    bad = sum(int((~np.isfinite(x)).reshape(len(x), -1).any(1).sum()) for x in parts)
    if bad:
        raise RunError(
            f"features of {bad:,} images are not finite ({reading.words}); allowed: an encoder "
            "whose outputs are numbers"
        )


# ------------------------------------------------------------------ heads
@dataclasses.dataclass(frozen=True)
class Feed:
    """Where batches of training, validation and test images come from.

    Attributes:
      batches: epoch -> batches of one pass over the images to learn from.
      held, tests: () -> batches of the others, each image once; `weight` 0 = padding.
      learned, chosen_on: numbers of images.
      frozen: parameters of the encoder where batches hold images.
    """

    batches: Callable[[int], Iterator[dict[str, np.ndarray]]]
    held: Callable[[], Iterator[dict[str, np.ndarray]]]
    tests: Callable[[], Iterator[dict[str, np.ndarray]]]
    learned: int
    chosen_on: int
    frozen: PyTree = dataclasses.field(default_factory=dict)


def cached_batches(
    part: Features, readings: Sequence[Reading], size: int, order: np.ndarray | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Yield batches of cached features; without an order each image once, the last batch padded.

    Args:
      order: places, int [k]; what does not fill a batch is left out.
    """
    count = len(part) if order is None else len(order) // size * size
    for first in range(0, count, size):
        which = np.arange(first, first + size) if order is None else order[first : first + size]
        weight = (which < len(part)).astype(np.float32)
        which = np.minimum(which, len(part) - 1)
        batch = {feature_name(r): part.read(r, which) for r in readings}
        yield batch | {"label": part.labels[which], "weight": weight}


@dataclasses.dataclass(frozen=True)
class Grid:
    """Heads that are trained side by side; equal grids are compiled once.

    Attributes:
      protocol, space: decide the heads.
      classes: their number.
      shapes: of one image's features by reading, as pairs.
      size: images of an update; per_epoch: updates of a pass.
      mesh: the devices.
      encode: computes features of images in the step; None = batches hold features.
    """

    protocol: p.Trained
    space: Space
    classes: int
    shapes: tuple[tuple[Reading, tuple[int, ...]], ...]
    size: int
    per_epoch: int
    mesh: Mesh
    encode: Callable[..., jax.Array] | None = None

    @property
    def task(self) -> Heads:
        """The task of the heads."""
        clock = Clock(self.per_epoch, self.per_epoch * self.protocol.epochs)
        members = self.protocol.members(self.space, self.classes)
        if self.encode is None:
            return Heads(clock, members, dict(self.shapes))
        return Encoding(clock, members, dict(self.shapes), encode=self.encode)


class Compiled(NamedTuple):
    """The functions of a grid.

    Attributes:
      init: key -> state.
      step: (state, parameters of the encoder, batch) -> state; donates the state.
      logits: (state, parameters of the encoder, batch) -> logits [b c] by head.
    """

    init: Callable[..., Any]
    step: Callable[..., Any]
    logits: Callable[..., Any]


@functools.lru_cache(maxsize=4)
def compiled(grid: Grid) -> Compiled:
    """Return the functions of a grid; equal grids share them."""
    task, protocol = grid.task, grid.protocol
    cfg = optimizers.OptimizerConfig(
        base_lr=protocol.base_lr,
        rule=protocol.rule,
        schedule=protocol.schedule(task.clock.total_steps),
        weight_decay=max(protocol.decays),
        decay=((r".*/bias", 0.0), (".*", 1.0)),
    )
    lr = optimizers.learning_rate(cfg, task.clock, grid.size)
    shapes = jax.eval_shape(task.init, jax.random.key(0))[0]
    decay = optimizers.weight_decay(cfg, task.clock)
    tx = optimizers.make_optimizer(cfg, shapes, lr, decay, task)
    everywhere = sharding.replicated(grid.mesh)
    init = functools.partial(init_state, task=task, tx=tx)
    step = lambda *args: train_step(*args, task=task, tx=tx)[0]  # no head draws random numbers

    def logits(state: Any, frozen: PyTree, batch: Any) -> dict[str, jax.Array]:
        features = task.features(frozen, batch)
        return task.logits(state.params, state.model_state, features)[0]

    jit = functools.partial(jax.jit, out_shardings=everywhere)
    precise = precision.precise
    return Compiled(jit(init), jit(precise(step), donate_argnums=0), jit(precise(logits)))


def train_heads(grid: Grid, feed: Feed, seed: int, what: str) -> Result:
    """Train a grid of heads, choose one on the images that were left out, and score it.

    Args:
      seed: of the heads' weights.
      what: name of the progress bar.

    Raises:
      RunError: no head of the grid gives numbers.
    """
    run, mesh, epochs = compiled(grid), grid.mesh, grid.protocol.epochs
    with jax.set_mesh(mesh):
        state = run.init(step_key(seed, "init", 0))
        for epoch in progress.track(range(epochs), what, epochs, "epoch"):
            for number, batch in enumerate(feed.batches(epoch)):
                stopping.check()
                state = run.step(state, feed.frozen, sharding.to_global(mesh, batch))
                if number % QUEUED == 0:  # simulated devices that wait for each other abort
                    jax.block_until_ready(state.step)

        def outputs(batches: Iterator[dict[str, np.ndarray]]) -> Outputs:
            """Yield logits by head, and labels, of the rows that count."""
            for batch in batches:
                stopping.check()
                counts = (batch["weight"] > 0) & (batch["label"] >= 0)
                made = run.logits(state, feed.frozen, sharding.to_global(mesh, batch))
                yield (
                    {k: x[counts] for k, x in jax.device_get(made).items()},
                    batch["label"][counts],
                )

        made, labels = joined(outputs(feed.held()))
        scores = {name: score(x, labels) for name, x in made.items()}
        best = max(scores, key=lambda name: (scores[name].top1, -scores[name].loss))
        if not np.isfinite(scores[best].loss):
            raise RunError(f"{what}: no head of the grid is finite; allowed: smaller --rates")
        made, labels = joined(({best: x[best]}, y) for x, y in outputs(feed.tests()))
    final = score(made[best], labels)
    sizes = feed.learned, feed.chosen_on, len(labels)
    return Result(final.top1, final.top5, scores[best].top1, best, *sizes)


def joined(parts: Outputs) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return logits by head and labels of all batches."""
    rows = list(parts)
    join = lambda xs: np.concatenate(list(xs))
    return {k: join(x[k] for x, _ in rows) for k in rows[0][0]}, join(y for _, y in rows)

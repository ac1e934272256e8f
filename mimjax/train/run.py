"""Everything that `build.py` makes of a config, as the loop and the rollback take it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from mimjax import sharding
from mimjax.data.pipeline import Pipeline
from mimjax.data.prefetch import Prefetched
from mimjax.storage.checkpoints import Checkpoints
from mimjax.storage.files import Workdir
from mimjax.storage.lock import RunLock
from mimjax.task import Clock, TrainState
from mimjax.train import metrics as m
from mimjax.train.optimizers import ByStep
from mimjax.train.program import Program

PyTree = Any


class Evaluator(Protocol):
    """Run at the first step, every N steps and at the last.

    Attributes:
      name: values are logged as "eval/<name>/<metric>".
    """

    name: str

    def __call__(self, state: TrainState, frozen: Any) -> Iterator[tuple[str, float]]:
        """Metric names and values; the state is read, not kept beyond the next update."""
        ...


class Length(NamedTuple):
    """How long a run is, and what decides it.

    Attributes:
      steps_per_epoch, total_steps: as in `Clock`.
      batch_size: images of an update.
      images: in the training data.
    """

    steps_per_epoch: int
    total_steps: int
    batch_size: int
    images: int

    @property
    def clock(self) -> Clock:
        return Clock(self.steps_per_epoch, self.total_steps)

    def to_json(self) -> dict[str, int]:
        """As a checkpoint keeps it."""
        return self._asdict()

    @classmethod
    def from_json(cls, found: Any) -> Length | None:
        """What `to_json` gave; None for checkpoints of older versions."""
        fits = isinstance(found, dict) and found.keys() == set(cls._fields)
        return cls(**found) if fits else None


def nothing() -> None:
    """What is called where nobody listens."""


@dataclasses.dataclass
class Run:
    """A run that can begin.

    Attributes:
      program: task, mesh, jitted functions.
      state: where the run begins (donated to the first step).
      frozen: parameters that nothing updates.
      data: the training data; `workers` and `threads` make it ahead of time.
      clock, lr: length and learning rate.
      evaluators: run at the first step, every `eval_every` steps (0 = never between) and the last.
      meta: written into every checkpoint.
      clip_norm: of the optimizer; 0 = off.
      rollbacks: how often the run may go back after a number that is not finite; 0 = it stops.
      flukes: how often it went back after one that did not come again.
      lock: says that the workdir is this run's.
      publish: writes the report.
    """

    program: Program
    state: TrainState
    frozen: PyTree
    data: Pipeline
    clock: Clock
    lr: ByStep
    log: m.Log
    lock: RunLock
    checkpoints: Checkpoints
    workdir: Workdir
    evaluators: Sequence[Evaluator] = ()
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)
    workers: int = 0
    threads: int = 8
    log_every: int = 50
    checkpoint_every: int = 1000
    eval_every: int = 0
    clip_norm: float = 0.0
    rollbacks: int = 0
    flukes: int = 0
    publish: Callable[[], None] = nothing

    @property
    def length(self) -> Length:
        """How long the run is, and what decides it."""
        return Length(*self.clock, self.data.batch_size, len(self.data.source))

    def feed(self, start: int, stop: int) -> Prefetched:
        """Batches of updates start + 1 to stop, the rows of this process."""
        rows = sharding.local_rows(self.program.mesh, self.data.batch_size)
        return self.data.iterate(start, stop, rows=rows, workers=self.workers, threads=self.threads)

    def save(self, state: TrainState) -> None:
        """Step, fingerprint and metadata go with the state: a restart needs nothing else."""
        data = {
            "step": int(state.step),
            "fingerprint": self.data.fingerprint,
            "skipped": list(self.data.skip),
            "length": self.length.to_json(),
        }
        self.checkpoints.save(state, data, self.meta)

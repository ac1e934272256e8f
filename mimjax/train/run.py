"""A run that can begin: all that the training loop and the rollback take, in one object.

`run.setup` makes it of a config. It holds the parts (task, data, log, checkpoints, lock) and passes
batches and checkpoints between them; the loop itself stands in `train.loop`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

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


# (state, parameters of the frozen networks) -> pairs of a metric's name and its value
Measure = Callable[[TrainState, PyTree], Iterable[tuple[str, float]]]


class Evaluation(NamedTuple):
    """A measurement that runs at the first step, every few steps and at the last step.

    Attributes:
      name: its values are logged as "eval/<name>/<metric>".
      measure: the function that is called; `mimjax/evaluators/base.py` describes it.
      every: steps between two calls; 0 = at the first and the last step only.
    """

    name: str
    measure: Measure
    every: int = 0


class Length(NamedTuple):
    """The length of a run, and the numbers that decide it.

    Attributes:
      steps_per_epoch, total_steps: as in `Clock`.
      batch_size: images of an update.
      images: number of images in the training data.
    """

    steps_per_epoch: int
    total_steps: int
    batch_size: int
    images: int

    @property
    def clock(self) -> Clock:
        """The clock of a run of this length."""
        return Clock(self.steps_per_epoch, self.total_steps)

    def to_json(self) -> dict[str, int]:
        """Return the length as a checkpoint keeps it."""
        return self._asdict()

    @classmethod
    def from_json(cls, value: Any) -> Length | None:
        """Return the length that `to_json` wrote; None for checkpoints of older versions."""
        fits = isinstance(value, dict) and value.keys() == set(cls._fields)
        return cls(**value) if fits else None


def no_report() -> None:
    """Write no report: the default of `Run.publish`."""


@dataclasses.dataclass
class Run:
    """A run that can begin.

    Attributes:
      program: task, mesh and jitted functions.
      state: where the run begins; donated to the first step.
      frozen: parameters that nothing updates (teachers, tokenizers).
      data: the training data; `workers` processes and `threads` prepare batches ahead of time.
      clock, lr: length and learning rate.
      log, checkpoints: the writers of records and states.
      lock: keeps other runs out of the workdir.
      evaluators: measurements beside training.
      eval_every: steps between two reports; 0 = at the first and the last step only.
      meta: written into every checkpoint.
      log_every, checkpoint_every: steps between two log lines, and between two checkpoints.
      clip_norm: of the optimizer; 0 = no clipping.
      rollbacks: how often the run may go back after a number that is not finite; 0 = it stops.
      flukes: how often it went back after one that did not come again.
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
    evaluators: Sequence[Evaluation] = ()
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)
    workers: int = 0
    threads: int = 8
    log_every: int = 50
    checkpoint_every: int = 1000
    eval_every: int = 0
    clip_norm: float = 0.0
    rollbacks: int = 0
    flukes: int = 0
    publish: Callable[[], None] = no_report

    @property
    def length(self) -> Length:
        """The length of the run, and the numbers that decide it."""
        return Length(*self.clock, self.data.batch_size, len(self.data.source))

    def feed(self, start: int, stop: int) -> Prefetched:
        """Return the batches of updates start + 1 to stop: the rows that this process makes."""
        rows = sharding.local_rows(self.program.mesh, self.data.batch_size)
        return self.data.iterate(start, stop, rows=rows, workers=self.workers, threads=self.threads)

    def save(self, state: TrainState) -> None:
        """Save a checkpoint: the state, and with it all that a restart needs.

        That is the step, the data's fingerprint, the batches left out, the length and `meta`.
        """
        data = {
            "step": int(state.step),
            "fingerprint": self.data.fingerprint,
            "skipped": list(self.data.skip),
            "length": self.length.to_json(),
        }
        self.checkpoints.save(state, data, self.meta)

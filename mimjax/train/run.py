"""What the training loop takes: a config as objects (`Setup`), and the run of it (`Run`).

`run.setup` makes a `Setup` of a config, `run.open` opens a workdir for it. A `Setup` never changes;
what changes while a run trains are the state, the batches left out and the number of flukes of a
`Run`. The loop itself stands in `train.loop`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from mimjax import sharding
from mimjax.data.index import Index
from mimjax.data.pipeline import Pipeline
from mimjax.data.prefetch import Prefetched
from mimjax.inference.model import Model
from mimjax.inference.samples import Bench
from mimjax.schema import Config
from mimjax.storage.checkpoints import Checkpoints
from mimjax.storage.files import Workdir
from mimjax.storage.lock import RunLock
from mimjax.task import Clock, Task, TrainState
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


@dataclasses.dataclass(frozen=True)
class Setup:
    """A config as objects; nothing was computed or written for it.

    Attributes:
      config: the resolved settings, as config.json will hold them.
      task, program: the task, and its jitted functions on the mesh.
      clock, lr: length and learning rate.
      pipeline: the training data; None where the number of images was given instead.
      evaluators: measurements beside training.
      index: the list of the data's files.
      bench: what the evaluators read; whoever opens the run says where they write. None = there are
        no evaluators.
      model: what `config.init_from` names, where it was open already; None = the path is read.
    """

    config: Config
    task: Task
    program: Program
    clock: Clock
    lr: ByStep
    pipeline: Pipeline | None = None
    evaluators: tuple[Evaluation, ...] = ()
    index: Index | None = None
    bench: Bench | None = None
    model: Model | None = None

    @property
    def data(self) -> Pipeline:
        """The training data."""
        assert self.pipeline is not None, "set up for a number of images"
        return self.pipeline

    @property
    def length(self) -> Length:
        """The length of the run, and the numbers that decide it."""
        return Length(*self.clock, self.data.batch_size, len(self.data.source))


def no_report(at_once: bool = True) -> None:
    """Write no report: the default of `Run.publish`."""


@dataclasses.dataclass
class Run:
    """A run that can begin: an open workdir.

    Attributes:
      setup: what never changes.
      log, checkpoints: the writers of records and states.
      lock: keeps other runs out of the workdir.
      frozen: parameters that nothing updates (teachers, tokenizers).
      state: where the run begins; donated to the first step.
      skipped: numbers of the batches that are left out.
      flukes: how often the run went back after a number that was finite the next time.
      meta: written into every checkpoint.
      publish: writes the report; (False) -> only if none was written lately.
    """

    setup: Setup
    log: m.Log
    lock: RunLock
    checkpoints: Checkpoints
    frozen: PyTree
    state: TrainState
    skipped: tuple[int, ...] = ()
    flukes: int = 0
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)
    publish: Callable[..., None] = no_report

    @property
    def workdir(self) -> Workdir:
        """Where the run writes."""
        return self.log.workdir

    @property
    def data(self) -> Pipeline:
        """The training data without the batches that are left out."""
        return dataclasses.replace(self.setup.data, skip=self.skipped)

    def feed(self, start: int, stop: int) -> Prefetched:
        """Return the batches of updates start + 1 to stop: the rows that this process makes."""
        data, c = self.data, self.setup.config.data
        rows = sharding.local_rows(self.setup.program.mesh, data.batch_size)
        return data.iterate(start, stop, rows=rows, workers=c.workers, threads=c.threads)

    def save(self, state: TrainState) -> None:
        """Save a checkpoint: the state, and with it all that a restart needs.

        That is the step, the data's fingerprint, the batches left out, the length and `meta`.
        """
        data = {
            "step": int(state.step),
            "fingerprint": self.setup.data.fingerprint,
            "skipped": list(self.skipped),
            "length": self.setup.length.to_json(),
        }
        self.checkpoints.save(state, data, self.meta)

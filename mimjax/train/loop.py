"""The one training loop: pretraining and every other task run through it.

It knows the task's contract and nothing of any method. Per step: batch, compiled step; when due:
one device_get with a finite check, a checkpoint, the evaluators.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax

from mimjax.data.pipeline import Pipeline
from mimjax.files import Workdir
from mimjax.flops import step_flops
from mimjax.task import Clock
from mimjax.train import metrics as m
from mimjax.train import sharding
from mimjax.train.checkpoints import Checkpoints
from mimjax.train.optim import Schedule
from mimjax.train.program import Program
from mimjax.train.state import TrainState

if TYPE_CHECKING:
    from mimjax.evaluators import Evaluator

PyTree = Any


@dataclasses.dataclass
class Run:
    """Everything that `build.py` makes of a config.

    Attributes:
      program: task, mesh, jitted functions.
      state: where the run begins (donated to the first step).
      frozen: parameters that nothing updates.
      data: the training data; `workers` and `threads` make it ahead of time.
      clock, lr: length and learning rate.
      evaluators: run at the first step, every `eval_every` steps (0 = never between) and the last.
      meta: written into every checkpoint.
    """

    program: Program
    state: TrainState
    frozen: PyTree
    data: Pipeline
    clock: Clock
    lr: Schedule
    log: m.Log
    checkpoints: Checkpoints
    workdir: Workdir
    evaluators: Sequence[Evaluator] = ()
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)
    workers: int = 0
    threads: int = 8
    log_every: int = 50
    checkpoint_every: int = 1000
    eval_every: int = 0


def train(run: Run) -> TrainState:
    """Trains from run.state to run.clock.total_steps; returns the final state.

    Raises:
      NonFiniteError: a loss or norm is not finite.
    """
    state, total, mesh = run.state, run.clock.total_steps, run.program.mesh
    run.state = None  # type: ignore[assignment]  # its buffers are donated below
    start = int(state.step)
    stop = StopSignal()
    with jax.set_mesh(mesh):
        compiled, meter = compile_step(run)
        if start == 0 or (due(start, run.eval_every, total) and not run.log.evaluated(start)):
            evaluate(run, state, start)
        rows = sharding.local_rows(mesh, run.data.batch_size)
        batches = run.data.iterate(
            start, total, rows=rows, workers=run.workers, threads=run.threads
        )
        checked = start
        meter.start(start)
        with batches:
            for step in range(start + 1, total + 1):  # `step` = updates made after this pass
                batch = timed_next(batches, meter)
                state, metrics = compiled(state, run.frozen, sharding.to_global(mesh, batch))
                logging = due(step, run.log_every, total) or step == 1
                stopping = stop.asked(run, step)
                saving = due(step, run.checkpoint_every, total) or stopping
                if logging or saving:
                    values = m.fetch(metrics, checked + 1, step)
                    checked = step
                if logging:
                    report(run, meter, step, values)
                if saving:
                    save(run, state)
                if due(step, run.eval_every, total):
                    evaluate(run, state, step)
                    meter.start(step)
                if stopping:
                    run.log.say(f"stopped at step {step}: the same command continues from here")
                    break
    run.checkpoints.close()
    return state


def due(step: int, every: int, total: int) -> bool:
    """Every `every` steps (0 = never) and at the last."""
    return step == total or (every > 0 and step % every == 0)


def compile_step(run: Run):
    """Compiles the train step once, ahead of time, and says what it costs."""
    begin = time.perf_counter()
    compiled = run.program.compile()
    per_image = step_flops(run.program.task)
    run.log.say(
        f"train step compiled in {time.perf_counter() - begin:.1f} s; "
        f"{per_image / 1e9:,.3g} GFLOP per image in matrix products"
    )
    per_device = per_image * run.data.batch_size / run.program.mesh.size
    return compiled, m.Meter(run.data.batch_size, run.clock.total_steps, per_device)


def timed_next(batches: Iterator, meter: m.Meter):
    begin = time.perf_counter()
    batch = next(batches)
    meter.waited += time.perf_counter() - begin
    return batch


def report(run: Run, meter: m.Meter, step: int, values: dict[str, float]) -> None:
    """One line of metrics.jsonl and one on the screen."""
    values = {
        "epoch": step / run.clock.steps_per_epoch,
        **values,
        "lr": float(run.lr(step - 1)),  # the rate that this update used
        **meter.read(step),
        **run.data.bad_files.counts(),
    }
    run.log.write(step, values)
    run.log.say(m.progress(step, run.clock.total_steps, values))


def save(run: Run, state: TrainState) -> None:
    """Step, fingerprint and metadata go with the state: a restart needs nothing else."""
    data = {"step": int(state.step), "fingerprint": run.data.fingerprint}
    run.checkpoints.save(state, data, run.meta)


def evaluate(run: Run, state: TrainState, step: int) -> None:
    """Runs every evaluator; errors are raised with the evaluator's name."""
    values = {}
    for evaluator in run.evaluators:
        try:
            for name, value in evaluator(state, run.frozen):
                values[f"eval/{evaluator.name}/{name}"] = value
        except Exception as error:
            error.add_note(f"in the evaluator {evaluator.name!r} at step {step}")
            raise
    if values:
        run.log.write(step, values)
        shown = ", ".join(f"{k.removeprefix('eval/')} {v:.4g}" for k, v in values.items())
        run.log.say(f"evaluation at step {step}: {shown}")


class StopSignal:
    """SIGTERM (preemption) asks for a last checkpoint instead of killing the run."""

    def __init__(self):
        self.received = False
        with contextlib.suppress(ValueError):  # not in the main thread: somebody else's program
            signal.signal(signal.SIGTERM, self._receive)

    def _receive(self, *_) -> None:
        self.received = True

    def asked(self, run: Run, step: int) -> bool:
        """With several processes, orbax makes them agree on the step."""
        if jax.process_count() > 1:
            return run.checkpoints.reached_preemption(step)
        return self.received

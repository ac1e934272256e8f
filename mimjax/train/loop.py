"""The one training loop: pretraining and every other task run through it.

It knows the task's contract and nothing of any method. Per step: batch, compiled step; when due:
one device_get with a finite check, a checkpoint, the evaluators.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from typing import Any

import jax

from mimjax.flops import count
from mimjax.train import metrics as m
from mimjax.train import rollback, sharding
from mimjax.train.run import Run
from mimjax.train.state import TrainState


def train(run: Run) -> TrainState:
    """Trains from run.state to run.clock.total_steps; returns the final state.

    Raises:
      NonFiniteError: a loss or norm is not finite, and the run may not roll back (again).
    """
    state, total = run.state, run.clock.total_steps
    run.state = None  # type: ignore[assignment]  # its buffers are donated below
    stop = StopSignal()
    with jax.set_mesh(run.program.mesh):
        if not run.checkpoints.steps():
            run.save(state)  # from here on a workdir without a checkpoint has lost it
        compiled, meter = compile_step(run)
        run.checkpoints.wait()
        start, error = int(state.step), None
        if start == 0 or (due(start, run.eval_every, total) and not run.log.evaluated(start)):
            evaluate(run, state, start)
        while True:
            try:
                state = advance(run, compiled, meter, stop, state)
                break
            except m.NonFiniteError as found:
                error = found.with_traceback(None)  # its frames hold the broken state
            state = rollback.recover(run, compiled, error)
    run.checkpoints.close()
    run.publish()
    return state


def advance(
    run: Run, compiled: Any, meter: m.Meter, stop: StopSignal, state: TrainState
) -> TrainState:
    """Trains from `state` (donated) to the end, or to where the run is asked to stop."""
    checked, total, mesh = int(state.step), run.clock.total_steps, run.program.mesh
    meter.start(checked)
    with run.feed(checked, total) as batches:
        for step in range(checked + 1, total + 1):  # `step` = updates made after this pass
            batch = timed_next(batches, meter)
            state, metrics = compiled(state, run.frozen, sharding.to_global(mesh, batch))
            meter.count(metrics)
            logging = due(step, run.log_every, total) or step == 1
            stopping = stop.asked(run, step)
            saving = due(step, run.checkpoint_every, total) or stopping
            if logging or saving:
                values = m.fetch(metrics, checked + 1, step)
                run.lock.check()
                checked = step
            if logging:
                report(run, meter, step, values)
            if saving:
                with meter.paused(metrics):
                    run.save(state)
            if due(step, run.eval_every, total):
                with meter.paused(metrics):
                    evaluate(run, state, step)
            if stopping:
                run.log.say(f"stopped at step {step}: the same command continues from here")
                break
    return state


def due(step: int, every: int, total: int) -> bool:
    """Every `every` steps (0 = never) and at the last."""
    return step == total or (every > 0 and step % every == 0)


def compile_step(run: Run):
    """Compiles the train step once, ahead of time, and says what it costs."""
    begin = time.perf_counter()
    traced = run.program.trace()
    compiled = run.program.compile(traced)
    per_image = count(traced.jaxpr) / run.data.batch_size
    run.log.say(
        f"train step compiled in {time.perf_counter() - begin:.1f} s; "
        f"{per_image / 1e9:,.3g} GFLOP per image in matrix products"
    )
    per_device = per_image * run.data.batch_size / run.program.mesh.size
    meter = m.Meter(run.data.batch_size, run.clock.total_steps, per_device, run.clip_norm)
    return compiled, meter


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
    run.publish()


class StopSignal:
    """SIGTERM (preemption) asks for a last checkpoint instead of killing the run.

    Of several processes any may receive it: jax's own handler, made when they joined, tells all.
    """

    def __init__(self):
        self.received = False
        if jax.process_count() > 1:
            return
        with contextlib.suppress(ValueError):  # not in the main thread: somebody else's program
            signal.signal(signal.SIGTERM, self._receive)

    def _receive(self, *_) -> None:
        self.received = True

    def asked(self, run: Run, step: int) -> bool:
        """With several processes, orbax makes them agree on the step."""
        if jax.process_count() > 1:
            return run.checkpoints.reached_preemption(step)
        return self.received

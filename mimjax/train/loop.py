"""The one training loop: pretraining and every other task run through it.

It knows the task's contract and no method. Each step takes a batch and runs the compiled train
step; when due, the loop fetches the metrics and checks that they are finite (one device_get), saves
a checkpoint and runs the evaluators. The mathematics of a step stand in `train.step`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import jax

from mimjax import progress, sharding, stopping
from mimjax.task import TrainState
from mimjax.train import metrics as m
from mimjax.train import nonfinite, profiling
from mimjax.train.flops import count
from mimjax.train.run import Run


def train(run: Run) -> TrainState:
    """Train from `run.state` to `run.setup.clock.total_steps` and return the final state.

    Raises:
      NonFiniteError: a loss or norm is not finite, and the run may not roll back (again).
      Stopped: a signal asked the run to stop, and it stopped after saving a checkpoint.
    """
    state = run.state
    run.state = None  # type: ignore[assignment]  # its buffers are donated below
    with stopping.handled(), jax.set_mesh(run.setup.program.mesh):
        if not run.checkpoints.steps():
            with stopping.saving():
                run.save(state)
                # From here on, a workdir without a checkpoint is one that has lost it.
                run.checkpoints.wait()
        stopping.SIGNALS.saved = True
        compiled, meter = compile_step(run)
        stopping.check()
        with stopping.deferred():
            start, error = int(state.step), None
            if start == 0 or (evaluation_due(run, start) and not run.log.evaluated(start)):
                evaluate_or_stop(run, state, start)
            while True:
                try:
                    state = advance(run, compiled, meter, state)
                    break
                except m.NonFiniteError as raised:
                    # the frames of the traceback keep the broken state in memory
                    error = raised.with_traceback(None)
                state = nonfinite.recover(run, compiled, error)
            with stopping.saving():
                run.checkpoints.close()
            run.publish()
    return state


def advance(run: Run, compiled: Any, meter: m.Meter, state: TrainState) -> TrainState:
    """Train from `state` (donated) to the end, and return the state there.

    Args:
      compiled: the compiled train step.
      meter: measures the speed.

    Raises:
      NonFiniteError: a metric that was fetched is not finite.
      Stopped: the run was asked to stop, and has saved a checkpoint.
    """
    checked, total, mesh = int(state.step), run.setup.clock.total_steps, run.setup.program.mesh
    c = run.setup.config
    meter.start(checked)
    bar = progress.steps(checked, total, quiet=not run.workdir.writer)
    updates = profiling.parse(c.profile.steps, total)
    trace = profiling.Trace(updates, run.workdir, run.log.say, checked)
    with run.feed(checked, total) as batches, bar, contextlib.closing(trace):
        for step in range(checked + 1, total + 1):  # `step` = updates made after this pass
            batch = timed_next(batches, meter)
            with trace.step(step):
                state, metrics = compiled(state, run.frozen, sharding.to_global(mesh, batch))
            trace.after(step, metrics)
            meter.count(metrics)
            bar.update()
            logging = due(step, c.log_every, total) or step == 1
            evaluating = evaluation_due(run, step)
            asked = stopping.due()
            saving = due(step, c.checkpoint_every, total) or asked
            # Every checkpoint and evaluation is of a state whose metrics were finite.
            if logging or saving or evaluating:
                values = m.fetch(metrics, checked + 1, step)
                run.lock.check()
                checked = step
            if logging:
                report(run, meter, step, values)
            if asked:
                raise stop(run, state)
            if saving:
                with meter.paused(metrics), stopping.saving():
                    run.save(state)
                stopping.SIGNALS.saved = True
            if evaluating:
                with meter.paused(metrics):
                    evaluate_or_stop(run, state, step)
    return state


def evaluate_or_stop(run: Run, state: TrainState, step: int) -> None:
    """Run the evaluators; where a signal ends them between two batches, save and stop.

    Raises:
      Stopped: the run was asked to stop, and has saved a checkpoint.
    """
    try:
        evaluate(run, state, step)
    except stopping.Stopped:
        raise stop(run, state) from None


def stop(run: Run, state: TrainState) -> stopping.Stopped:
    """Save a checkpoint, log that the run stops, and return the exception that ends the program."""
    step, signals = int(state.step), stopping.SIGNALS
    assert signals.asked is not None
    by = stopping.NAMES[signals.asked]
    with stopping.saving():
        run.save(state)
        run.checkpoints.close()
    text = f"stopped at step {step}: the same command continues from here ({by})"
    run.log.end(text)
    return stopping.Stopped(text, signals.code(), said=True)


def due(step: int, every: int, total: int) -> bool:
    """Return whether `step` is a multiple of `every` (0 = never) or the last one."""
    return step == total or (every > 0 and step % every == 0)


def evaluation_due(run: Run, step: int) -> bool:
    """Return whether an evaluator or the report is due after `step` updates."""
    every = [run.setup.config.eval.every, *(e.every for e in run.setup.evaluators)]
    return any(due(step, steps, run.setup.clock.total_steps) for steps in every)


def compile_step(run: Run):
    """Compile the train step ahead of time; return it and the meter that knows its FLOPs."""
    run.log.say("compiling the train step; large networks take minutes")
    begin = time.perf_counter()
    traced = run.setup.program.trace()
    compiled = run.setup.program.compile(traced)
    per_image = count(traced.jaxpr) / run.setup.data.batch_size
    run.log.say(
        f"train step compiled in {time.perf_counter() - begin:.1f} s; "
        f"{per_image / 1e9:,.3g} GFLOP per image in matrix products"
    )
    per_device = per_image * run.setup.data.batch_size / run.setup.program.mesh.size
    meter = m.Meter(
        run.setup.data.batch_size,
        run.setup.clock.total_steps,
        per_device,
        run.setup.config.optimizer.clip_norm or 0.0,
    )
    return compiled, meter


def timed_next(batches: Iterator, meter: m.Meter):
    """Return the next batch, and add the seconds that it took to the meter."""
    begin = time.perf_counter()
    batch = next(batches)
    meter.waited += time.perf_counter() - begin
    return batch


def report(run: Run, meter: m.Meter, step: int, values: dict[str, float]) -> None:
    """Write one line of metrics.jsonl and one on the screen about update `step`."""
    values = {
        "epoch": step / run.setup.clock.steps_per_epoch,
        **values,
        "lr": float(run.setup.lr(step - 1)),  # the rate that this update used
        **meter.read(step),
        **run.setup.data.bad_files.counts(),
    }
    run.log.write(step, values)
    run.log.say(m.progress(step, run.setup.clock.total_steps, values))


def evaluate(run: Run, state: TrainState, step: int) -> None:
    """Run the evaluators that are due and write the report; errors name the evaluator."""
    values, total = {}, run.setup.clock.total_steps
    if step == 0 and run.setup.evaluators:  # the first one compiles its programs, too
        run.log.say("evaluating before the first update")
    for evaluator in run.setup.evaluators:
        if step > 0 and not due(step, evaluator.every, total):
            continue  # it has its own interval
        try:
            for name, value in evaluator.measure(state, run.frozen):
                values[f"eval/{evaluator.name}/{name}"] = float(value)
        except Exception as error:
            error.add_note(f"in the evaluator {evaluator.name!r} at step {step}")
            raise
    if values:
        run.log.write(step, values)
        shown = ", ".join(f"{k.removeprefix('eval/')} {v:.4g}" for k, v in values.items())
        run.log.say(f"evaluation at step {step}: {shown}")
    run.publish(at_once=False)

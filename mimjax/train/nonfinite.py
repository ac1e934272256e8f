"""Rollback after a loss or norm that is not finite: the run continues without the batch.

The updates are made again from the last checkpoint, checking each, up to the first one that is not
finite. That update is examined (see `diagnosis`), its batch is left out from then on, and the run
continues from the state before it. The batches left out are saved with the data's position, so that
a restart decides the same. Updates are made again because copies of the state would need memory,
which is scarcer than time.
"""

from __future__ import annotations

from typing import Any

from mimjax import sharding, stopping
from mimjax.task import TrainState
from mimjax.train import diagnosis
from mimjax.train import metrics as m
from mimjax.train.run import Run


def recover(run: Run, compiled: Any, error: m.NonFiniteError) -> TrainState:
    """Return the state before the first update that is not finite.

    `run.skipped` holds that update's batch from now on, and the run's log says so.

    Args:
      compiled: the compiled train step.
      error: what the loop raised.

    Raises:
      NonFiniteError: the run may not roll back, or has rolled back as often as it may.
    """
    c, used = run.setup.config, len(run.skipped) + run.flukes
    most = c.on_nonfinite_retries if c.on_nonfinite == "rollback" else 0
    if used >= most:
        hint = "on_nonfinite=rollback leaves a batch that causes it out"
        if used:
            hint = f"rolled back {used} times already (on_nonfinite_retries)"
        error = m.NonFiniteError(f"{error}; {hint}", error.names, error.last)
        run.log.note(error.last, {"warning": str(error)})
        run.publish()
        raise error
    run.log.say(f"{', '.join(error.names)} not finite at step {error.last}: rolling back")
    first = error
    try:
        replay(run, compiled, error.last, check=True)
    except m.NonFiniteError as raised:
        first = raised.with_traceback(None)  # its frames keep the broken state in memory
    step = first.last - 1
    state = replay(run, compiled, step)
    run.log.truncate(step, rollbacks=True)
    times = f"({used + 1} of at most {most}); the run continues from step {step}"
    if first is error:
        run.flukes += 1
        run.log.warn(
            first.last,
            "the same steps, made again from the last checkpoint, were finite, with the same "
            "program and input: suspect the hardware, or a kernel that is not deterministic. "
            f"Nothing is left out {times}",
        )
        return state
    facts = diagnosis.examine(run, state, first)
    text = f"{diagnosis.describe(facts)} The batch is left out {times}"
    run.log.warn(first.last, text, nonfinite=facts)
    run.skipped = (*run.skipped, facts["skipped"])
    return state


def replay(run: Run, compiled: Any, last: int, check: bool = False) -> TrainState:
    """Make the updates from the newest checkpoint to `last` again, and return the state after them.

    Raises:
      NonFiniteError: with `check`, of the first update that is not finite.
    """
    restored = run.checkpoints.newest(run.setup.program.abstract_state, run.log.say)
    if restored is None:
        raise RuntimeError(f"{run.workdir.path}: no readable checkpoint to roll back to")
    state, mesh = restored.state, run.setup.program.mesh
    start = int(state.step)
    with run.feed(start, last) as batches:
        for step, batch in enumerate(batches, start + 1):
            stopping.sync()
            state, metrics = compiled(state, run.frozen, sharding.to_global(mesh, batch))
            if check:
                m.fetch(metrics, step, step)
    return state

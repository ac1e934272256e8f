"""Rollback after a loss or norm that is not finite: the run continues without the batch.

The updates are made again from the last checkpoint, checking each, up to the first one that is not
finite. That update is examined, its batch is left out from then on, and the run continues from the
state before it. The batches left out are saved with the data's position, so that a restart decides
the same. Updates are made again because copies of the state would need memory, which is scarcer
than time.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import PartitionSpec

from mimjax import rules, sharding, stopping
from mimjax.inference.reconstruction import eval_step
from mimjax.task import Batch, PyTree, Task, TrainState
from mimjax.train import metrics as m
from mimjax.train.run import Run
from mimjax.train.step import train_step

FEW = 5  # names in a sentence


def recover(run: Run, compiled: Any, error: m.NonFiniteError) -> TrainState:
    """Return the state before the first update that is not finite.

    `run.skipped` holds that update's batch from now on, and the run's log says so.

    Args:
      compiled: the compiled train step.
      error: what the loop raised.

    Raises:
      NonFiniteError: the run may not roll back, or has rolled back as often as it may.
    """
    used, most = len(run.skipped) + run.flukes, run.setup.options.rollbacks
    if used >= most:
        hint = "on_nonfinite=rollback leaves a batch that causes it out"
        if used:
            hint = f"rolled back {used} times already (on_nonfinite_retries)"
        error = m.NonFiniteError(f"{error}; {hint}", error.names, error.last)
        run.log.note(error.last, {"warning": str(error)})
        run.publish()
        raise error
    run.log.say(f"{', '.join(error.names)} not finite at step {error.last}: rolling back")
    _, broken = replay(run, compiled, error.last, check=True)
    step, names = broken or (error.last, error.names)
    state, _ = replay(run, compiled, step - 1)
    run.log.truncate(step - 1, rollbacks=True)
    times = f"({used + 1} of at most {most}); the run continues from step {step - 1}"
    if broken is None:
        run.flukes += 1
        run.log.warn(
            step,
            "the same steps, made again from the last checkpoint, were finite, with the same "
            "program and input: suspect the hardware, or a kernel that is not deterministic. "
            f"Nothing is left out {times}",
        )
        return state
    facts = examine(run, state, step, names)
    run.log.warn(step, f"{describe(facts)} The batch is left out {times}", nonfinite=facts)
    run.skipped = (*run.skipped, facts["skipped"])
    return state


def replay(
    run: Run, compiled: Any, last: int, check: bool = False
) -> tuple[TrainState, tuple[int, list[str]] | None]:
    """Make the updates from the newest checkpoint to `last` again.

    Returns:
      The state after them. With `check` it ends at the first update that is not finite: its number
      and the names of its metrics; None = all were finite.
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
                try:
                    m.fetch(metrics, step, step)
                except m.NonFiniteError as error:
                    return state, (step, error.names)
    return state, None


def examine(run: Run, state: TrainState, step: int, names: list[str]) -> dict[str, Any]:
    """Return what is not finite in update `step`, as metrics.jsonl keeps it.

    Args:
      state: the state before the update.
      names: the metrics that are not finite.

    Returns:
      "step", "metrics"; "parameters": paths of parameters whose gradient is not finite -> share of
      such numbers; "of": how many these are, and how many there are; "examples": indices in the
      data of examples whose own error is not finite (None where the task has no error per example);
      "batch": those of all examples; "skipped": the number of the batch.
    """
    program = run.setup.program
    with run.feed(step - 1, step) as batches:
        batch = sharding.to_global(program.mesh, next(batches))
    shares, errors = jax.device_get(
        faults(state, run.frozen, batch, task=program.task, seed=program.seed, accum=program.accum)
    )
    named = zip(rules.paths(shares), jax.tree.leaves(shares), strict=True)
    broken = {path: round(float(share), 4) for path, share in named if share}
    places, bad = run.data.indices(step - 1), None
    if errors is not None:
        fine = np.isfinite(errors).reshape(len(places), -1).all(1)
        bad = [int(i) for i in places[~fine]]
    return {
        "step": step,
        "metrics": names,
        "parameters": dict(sorted(broken.items(), key=lambda x: -x[1])[: 4 * FEW]),
        "of": [len(broken), len(jax.tree.leaves(program.abstract_state.params))],
        "examples": bad,
        "batch": [int(i) for i in places],
        "skipped": run.data.place(step - 1),
    }


@functools.partial(jax.jit, static_argnames=("task", "seed", "accum"))
def faults(
    state: TrainState, frozen: PyTree, batch: Batch, *, task: Task, seed: int, accum: int
) -> tuple[PyTree, jax.Array | None]:
    """Return the share of each parameter's gradient that is not finite, and each error, [b].

    The errors are None where the task has no error per example.
    """
    tx = optax.identity()
    bare = state.replace(opt_state=tx.init(state.params))
    # Without an optimizer the update is the gradient itself, added to finite parameters: what is
    # not finite in the new parameters is not finite in the gradient.
    new, _ = train_step(bare, frozen, batch, task=task, tx=tx, seed=seed, accum=accum)
    shares = jax.tree.map(lambda x: jnp.mean(~jnp.isfinite(x)), new.params)
    predictions = eval_step(state, frozen, batch, task=task, seed=seed)[1].predictions
    # one number per example, not finite where any error of any of its terms is not
    found = [x.sum(1) for prediction in predictions.values() for x in prediction.error.values()]
    errors = sum(found[1:], start=found[0]) if found else None
    # replicated, because every process reads all of them
    return lax.with_sharding_constraint((shares, errors), PartitionSpec())


def describe(facts: dict[str, Any]) -> str:
    """Return the facts of `examine` as sentences."""
    few = lambda names: ", ".join(map(str, names[:FEW])) + (", ..." if len(names) > FEW else "")
    (count, total), bad, batch = facts["of"], facts["examples"], facts["batch"]
    where = (
        f"Gradients that are not finite: {count} of {total} parameters "
        f"({few(list(facts['parameters']))})."
        if count
        else "Every gradient is finite: the update itself overflows; lower the rate."
    )
    which = ""
    if bad and len(bad) < len(batch):
        which = f"Examples whose error is not finite: {few(bad)} ({len(bad)} of the batch). "
    elif bad:
        which = "Every example's error is not finite: the weights, not the data. "
    elif bad is not None:
        which = "No single example's error is broken in an evaluation of the batch. "
    names = ", ".join(facts["metrics"])
    return f"{names} not finite. {where} {which}Batch: {few(batch)} ({len(batch)} examples)."

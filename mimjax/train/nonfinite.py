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

from mimjax import sharding, stopping
from mimjax.inference.reconstruction import eval_step
from mimjax.storage.verdicts import by_path
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
    facts = examine(run, state, first)
    run.log.warn(first.last, f"{describe(facts)} The batch is left out {times}", nonfinite=facts)
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


def examine(run: Run, state: TrainState, error: m.NonFiniteError) -> dict[str, Any]:
    """Return what is not finite in an update, as metrics.jsonl keeps it.

    Args:
      state: the state before the update.
      error: of the update.

    Returns:
      "step", "metrics"; "parameters": paths of parameters whose gradient is not finite -> share of
      such numbers; "of": how many these are, and how many there are; "examples": indices in the
      data of examples whose own error is not finite (None where the task has no error per example);
      "batch": those of all examples; "skipped": the number of the batch.
    """
    program, before = run.setup.program, error.last - 1
    with run.feed(before, error.last) as batches:
        batch = sharding.to_global(program.mesh, next(batches))
    shares, errors = jax.device_get(
        faults(state, run.frozen, batch, task=program.task, seed=program.seed, accum=program.accum)
    )
    shares, places, bad = by_path(shares), run.data.indices(before), None
    broken = {path: round(float(share), 4) for path, share in shares.items() if share}
    if errors is not None:
        bad = places[~np.isfinite(errors).reshape(len(places), -1).all(1)].tolist()
    return {
        "step": error.last,
        "metrics": error.names,
        "parameters": dict(sorted(broken.items(), key=lambda x: -x[1])[: 4 * FEW]),
        "of": [len(broken), len(shares)],
        "examples": bad,
        "batch": places.tolist(),
        "skipped": run.data.place(before),
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
    where = "Every gradient is finite: the update itself overflows; lower the rate."
    if count:
        names = few(list(facts["parameters"]))
        where = f"Gradients that are not finite: {count} of {total} parameters ({names})."
    which = "No single example's error is broken in an evaluation of the batch. "
    if bad is None:
        which = ""
    elif len(bad) == len(batch):
        which = "Every example's error is not finite: the weights, not the data. "
    elif bad:
        which = f"Examples whose error is not finite: {few(bad)} ({len(bad)} of the batch). "
    names = ", ".join(facts["metrics"])
    return f"{names} not finite. {where} {which}Batch: {few(batch)} ({len(batch)} examples)."

"""What is not finite in an update: metrics, gradients by parameter, examples of the batch."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import PartitionSpec

from mimjax import sharding
from mimjax.inference.reconstruction import eval_step
from mimjax.storage.verdicts import by_path
from mimjax.task import Batch, PyTree, Task, TrainState
from mimjax.train import metrics as m
from mimjax.train.run import Run
from mimjax.train.step import train_step

FEW = 5  # names in a sentence


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

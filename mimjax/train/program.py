"""The jitted functions of a run under their shardings: the loop runs them, `plan` compiles them.

Shapes come first: shardings are computed on abstract trees, and the state is created under them, so
that no device ever holds more than its share. Sharding rules themselves stand in `sharding`.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mimjax import sharding
from mimjax.rng import step_key
from mimjax.rules import Rules
from mimjax.task import Task, TrainState, init_state
from mimjax.train.step import train_step

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Program:
    """A task with its jitted functions on a mesh.

    Attributes:
      abstract_state: shapes, dtypes and shardings of the state; checkpoints restore into it.
      abstract_frozen, abstract_batch: the same of the other inputs of the step.
      init: () -> state at step 0, created under its shardings.
      step: the jitted train step; it donates the state.
      seed, accum: arguments that are bound in `step`.
    """

    task: Task
    mesh: Mesh
    abstract_state: TrainState
    abstract_frozen: PyTree
    abstract_batch: dict[str, jax.ShapeDtypeStruct]
    init: Callable[[], TrainState]
    step: Any
    seed: int = 0
    accum: int = 1

    def compile(self, traced=None):
        """Return the train step compiled for this mesh.

        Args:
          traced: what `trace` returned; None = it is traced here.
        """
        with jax.set_mesh(self.mesh):
            return (traced or self.trace()).lower().compile()

    def trace(self):
        """Return the traced train step; it has `.jaxpr` and `.lower()`."""
        with jax.set_mesh(self.mesh):
            return self.step.trace(self.abstract_state, self.abstract_frozen, self.abstract_batch)


def make_program(
    task: Task,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    rules: Rules,
    *,
    batch_size: int,
    seed: int = 0,
    accum: int = 1,
    small: int = sharding.SMALL,
) -> Program:
    """Return a task's shapes, shardings and jitted functions; nothing is computed yet.

    Args:
      tx: the optimizer.
      rules: sharding rules (regex, "fsdp" | "replicate") over parameter paths.
      batch_size: images of an update, on all devices.
      seed: of all random numbers of the run.
      accum: micro-batches of an update.
      small: tensors with fewer elements are replicated.
    """
    init = functools.partial(init_state, step_key(seed, "init", 0), task=task, tx=tx)
    shapes = jax.eval_shape(init)
    shardings = sharding.state_shardings(mesh, shapes, rules, small)
    everywhere = sharding.replicated(mesh)
    step = jax.jit(
        functools.partial(train_step, task=task, tx=tx, seed=seed, accum=accum),
        donate_argnums=0,
        out_shardings=(shardings, everywhere),
    )
    frozen = jax.eval_shape(task.init_frozen, jax.random.key(0))
    return Program(
        task=task,
        mesh=mesh,
        abstract_state=jax.tree.map(_with_sharding, shapes, shardings),
        abstract_frozen=jax.tree.map(lambda x: _with_sharding(x, everywhere), frozen),
        abstract_batch=abstract_batch(task, batch_size, mesh),
        init=jax.jit(init, out_shardings=shardings),
        step=step,
        seed=seed,
        accum=accum,
    )


def _with_sharding(x, s) -> jax.ShapeDtypeStruct:
    """Return an abstract array with its sharding."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)


def abstract_batch(
    task: Task, batch_size: int, mesh: Mesh | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the pipeline's global batch as abstract arrays, on a mesh with their sharding."""
    rows = sharding.batch_sharding(mesh) if mesh else None
    make = lambda shape, dtype: jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=rows)
    batch = {
        name: make((*view.size, view.channels), jnp.uint8) for name, view in task.views.items()
    }
    batch |= {name: make((), jnp.int32) for name in ("label", "index")}
    return batch | {k: make(x.shape, x.dtype) for k, x in task.sample(random.Random(0), 0).items()}

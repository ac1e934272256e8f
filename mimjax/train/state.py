"""The train state: one pytree with everything a restart needs on the device."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from mimjax.task import Task

PyTree = Any


@struct.dataclass
class TrainState:
    """All of it is saved, sharded and donated together.

    Attributes:
      step: int32, number of optimizer updates made.
      params: float32 parameters, one subtree per network of the task.
      model_state: non-gradient state (BatchNorm statistics).
      ema: float32 averages that the task reads as targets.
      opt_state: optax state.
    """

    step: jax.Array
    params: PyTree
    model_state: PyTree
    ema: PyTree
    opt_state: PyTree


def init_state(key: jax.Array, *, task: Task, tx: optax.GradientTransformation) -> TrainState:
    """The state at step 0; run it under jit with out_shardings so that nothing is replicated."""
    params, model_state = task.init(key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state=model_state,
        ema=task.init_ema(params),
        opt_state=tx.init(params),
    )

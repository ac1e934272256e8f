"""The pure train step: the whole algorithm, for every task.

It knows no config, no flags and no devices. Bind `task`, `tx`, `seed` and `accum` with
functools.partial and jit the result, as `train.program` does.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from jax import lax

from mimjax.rng import named, step_key
from mimjax.task import Batch, PyTree, Task, TrainState


def train_step(
    state: TrainState,
    frozen: PyTree,
    batch: Batch,
    *,
    task: Task,
    tx: optax.GradientTransformation,
    seed: int = 0,
    accum: int = 1,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Make one optimizer update.

    Args:
      state: donated by the caller.
      frozen: parameters that nothing updates (teachers, tokenizers).
      batch: the global batch as the data pipeline delivers it.
      tx: the optimizer.
      seed: of all random numbers of the run.
      accum: number of micro-batches; gradients and metrics are averaged over them.

    Returns:
      The new state and float32 scalar metrics.
    """
    step, key = state.step, step_key(seed, "train", state.step)
    # `prepare` runs once on the whole batch: teachers stand outside the gradient, and targets do
    # not depend on accum.
    with jax.named_scope("prepare"):
        batch, fresh = task.prepare(state, frozen, batch, named(key, "prepare"), True, accum)

    def loss_fn(params, model_state, micro, key):
        out = task.loss(params, model_state, micro, key, step, True)
        return out.total, (out.metrics | {"loss/total": out.total}, out.model_state)

    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    keys = jax.random.split(named(key, "loss"), accum)

    if accum == 1:
        (_, (metrics, model_state)), grads = grad_fn(
            state.params, state.model_state, batch, keys[0]
        )
    else:

        def one(carry, xs):
            grads, model_state = carry
            (_, (metrics, model_state)), g = grad_fn(state.params, model_state, *xs)
            return (jax.tree.map(jnp.add, grads, g), model_state), metrics

        # (b a) and not (a b): each device keeps its own rows, so nothing is gathered.
        micros = jax.tree.map(lambda x: rearrange(x, "(b a) ... -> a b ...", a=accum), batch)
        zeros = jax.tree.map(jnp.zeros_like, state.params)
        (grads, model_state), metrics = lax.scan(one, (zeros, state.model_state), (micros, keys))
        grads = jax.tree.map(lambda g: g / accum, grads)
        metrics = jax.tree.map(lambda m: m.mean(0), metrics)

    with jax.named_scope("optimizer"):
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
    with jax.named_scope("average"):
        ema = task.update_ema(state.ema, state.params, params, step)
    metrics |= {
        "grad_norm": optax.global_norm(grads),
        "param_norm": optax.global_norm(params),
    }
    return TrainState(step + 1, params, model_state | fresh, ema, opt_state), metrics

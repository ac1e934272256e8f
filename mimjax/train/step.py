"""The pure train step: the whole algorithm, for every task.

It knows no config, no flags and no devices. Bind `task`, `tx`, `seed` and `accum` with
functools.partial and jit the result, as `train.program` does.
"""

from __future__ import annotations

import jax
import optax
from einops import rearrange
from jax import lax

from mimjax.rng import named, step_key
from mimjax.task import Batch, PyTree, Task, TrainState
from mimjax.train import shares


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
    read = state
    if accum > 1:  # split parameters are gathered once for all micro-batches
        read = state.replace(params=shares.gather(state.params), ema=shares.gather(state.ema))
    # `prepare` runs once on the whole batch: teachers stand outside the gradient, and targets do
    # not depend on accum.
    with jax.named_scope("prepare"):
        batch, fresh = task.prepare(read, frozen, batch, named(key, "prepare"), True, accum)

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
            args = read.params, model_state, *xs
            (_, (metrics, model_state)), g = shares.evaluate(grad_fn, args, images=2)
            return (shares.add(grads, g), shares.total(model_state)), metrics

        # (b a) and not (a b): each device keeps its own rows, so nothing is gathered.
        micros = jax.tree.map(lambda x: rearrange(x, "(b a) ... -> a b ...", a=accum), batch)
        zeros = shares.zeros(state.params)
        (grads, model_state), metrics = lax.scan(one, (zeros, state.model_state), (micros, keys))
        # Devices exchange their sums here and nowhere before.
        grads = jax.tree.map(lambda g: g / accum, shares.total(grads))
        metrics = shares.total(jax.tree.map(lambda m: m.mean(0), metrics))

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

"""FLOPs of a task's train step, counted on the traced program: dots and convolutions only.

One multiply-add is 2 FLOPs. The count follows the code of every method, so no formula has to be
kept up to date; `benchmarks/flops.py` holds the published formulas, and a test compares the two.
Operations on which no output depends are not counted, as XLA removes them (a teacher whose loss has
weight 0). Elementwise operations are left out, so XLA's own figure is a few percent higher;
recomputation under `remat` runs, so it is counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.interpreters.partial_eval import dce_jaxpr

from mimjax.rng import named
from mimjax.task import Task, TrainState, initial
from mimjax.train.program import abstract_batch


def step_flops(task: Task) -> float:
    """Return the FLOPs per image of one train step: `prepare`, loss and gradient.

    The optimizer has no dots, so it adds none. The step is traced for a batch of one image, which
    takes a second or two; nothing is compiled or computed.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    params, model_state = jax.eval_shape(initial(task), key)
    ema = jax.eval_shape(task.init_ema, params)
    frozen = jax.eval_shape(task.init_frozen, key)

    def step(params, model_state, ema, frozen, batch, key):
        zero = jnp.zeros((), jnp.int32)
        state = TrainState(zero, params, model_state, ema, ())
        prepared, fresh = task.prepare(state, frozen, batch, named(key, "prepare"), True)
        loss = lambda p: task.loss(p, model_state, prepared, named(key, "loss"), zero, True).total
        return jax.grad(loss)(params), fresh

    return count(
        jax.make_jaxpr(step)(params, model_state, ema, frozen, abstract_batch(task, 1), key)
    )


def count(jaxpr: ClosedJaxpr | Jaxpr) -> float:
    """Return the FLOPs of the dots and convolutions on which an output depends.

    The body of a scan counts once per iteration. Of the branches of a `cond` the most expensive
    one counts. The body of a `while` counts once, since its number of iterations is unknown.
    """
    program: Any = getattr(jaxpr, "jaxpr", jaxpr)
    read, _ = dce_jaxpr(program, [True] * len(program.outvars))
    return count_all(read)


def count_all(jaxpr: ClosedJaxpr | Jaxpr) -> float:
    """Return the FLOPs of all dots and convolutions, whether an output depends on them or not."""
    total = 0.0
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if eqn.primitive.name == "dot_general":
            total += dot_flops(eqn)
        elif eqn.primitive.name == "conv_general_dilated":
            total += conv_flops(eqn)
        else:
            inner = [count_all(j) for j in sub_jaxprs(eqn)]
            if inner:
                best = max(inner) if eqn.primitive.name == "cond" else sum(inner)
                total += best * times(eqn)
    return total


def times(eqn: JaxprEqn) -> int:
    """Return how often the programs inside an equation run: once per iteration, or per device."""
    if eqn.primitive.name == "shard_map":
        return math.prod(eqn.params["mesh"].shape[axis] for axis in eqn.params["newly_manual_axes"])
    return eqn.params.get("length", 1)


def sub_jaxprs(eqn: JaxprEqn) -> Iterator[ClosedJaxpr | Jaxpr]:
    """Yield the programs inside an equation (jit, scan, remat, custom derivatives, ...)."""
    for value in eqn.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, (ClosedJaxpr, Jaxpr)):
                yield item


def shape_of(variable: Any) -> tuple[int, ...]:
    """The shape of an equation's array."""
    return variable.aval.shape


def dot_flops(eqn: JaxprEqn) -> float:
    """Return the FLOPs of a dot: 2 x output elements x contracted elements."""
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left, out = shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])
    return 2.0 * math.prod(out) * math.prod(left[i] for i in contracted)


def conv_flops(eqn: JaxprEqn) -> float:
    """Return the FLOPs of a convolution: 2 x output elements x kernel elements that each reads."""
    out, kernel = shape_of(eqn.outvars[0]), shape_of(eqn.invars[1])
    out_features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
    return 2.0 * math.prod(out) * math.prod(kernel) / out_features

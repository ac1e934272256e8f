"""Sums over images, kept as one share per device until an update needs the total.

Under accumulation the gradients of a micro-batch are only added to others, yet the partitioner
would add up those of all devices each time. Here the traced gradient of a micro-batch is evaluated
operation by operation. What sums over images (the product that makes a weight's gradient) yields
one share per device, linear operations hand the shares on, and everything else reads their total.

So the result is the same for every loss, one that couples the images of a batch included: what is
not recognized here is summed where it stands, which costs communication and changes no number. All
else (draws of random numbers, statistics of a batch) is traced and computed as without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jax.extend.core import Jaxpr, JaxprEqn, Literal
from jax.extend.source_info_util import current_name_stack, user_context
from jax.sharding import PartitionSpec

from mimjax.sharding import AXES, BATCH

PyTree = Any

CALLS = ("jit", "closed_call", "core_call", "remat2")
# Linear in one operand, whatever their settings.
LINEAR = ("neg", "transpose", "reshape", "broadcast_in_dim", "squeeze", "expand_dims", "copy")
LINEAR += ("reduce_sum", "slice", "split", "rev", "optimization_barrier")
PRODUCTS = ("mul", "dot_general")  # linear in each of two operands
GROWING = ("broadcast_in_dim", "mul", "div", "dot_general")  # what they make may be images again
SUMS = ("add", "add_any", "sub", "concatenate")  # linear in all operands together


@struct.dataclass
class Shares:
    """A sum over images, kept as one share per device.

    Attributes:
      parts: [devices ...], split over the devices; the value is the sum over the first axis.
    """

    parts: jax.Array


def devices() -> int:
    """Return over how many devices the mesh in use splits a batch; 1 = there is no such mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[a] for a in AXES) if set(AXES) <= set(mesh.axis_names) else 1


def gather(tree: PyTree) -> PyTree:
    """Return a tree whose arrays are whole on every device, gathered here and nowhere later."""
    if devices() == 1:
        return tree
    return jax.tree.map(lambda x: lax.with_sharding_constraint(x, PartitionSpec()), tree)


def total(tree: PyTree) -> PyTree:
    """Return a tree with the sum of the shares in place of each `Shares`."""
    add = lambda x: x.parts.sum(0) if isinstance(x, Shares) else x
    return jax.tree.map(add, tree, is_leaf=lambda x: isinstance(x, Shares))


def zeros(tree: PyTree) -> PyTree:
    """Return zeros to add to, for every array of a tree: shares where there are many devices."""
    if devices() == 1:
        return jax.tree.map(jnp.zeros_like, tree)
    zero = lambda x: Shares(_split(jnp.zeros((devices(), *x.shape), x.dtype)))
    return jax.tree.map(zero, tree)


def add(ours: PyTree, theirs: PyTree) -> PyTree:
    """Return the sum of what `zeros` began and another tree, whose arrays count once."""

    def plus(a: Any, b: Any) -> Any:
        return Shares(_split(a.parts + _shares(b).parts)) if isinstance(a, Shares) else a + b

    return jax.tree.map(plus, ours, theirs, is_leaf=lambda x: isinstance(x, Shares))


def evaluate(fn: Callable[..., PyTree], args: Sequence[PyTree], images: int) -> PyTree:
    """Return fn(*args) with `Shares` in place of arrays that are sums over the images.

    Args:
      fn: a function that is traced once.
      images: which of the arguments holds arrays [rows ...].
    """
    rows = jax.tree.leaves(args[images])[0].shape[0]
    if devices() == 1 or rows % devices():
        return fn(*args)
    closed, out = jax.make_jaxpr(fn, return_shape=True)(*args)
    read = [i == images for i, arg in enumerate(args) for _ in jax.tree.leaves(arg)]
    flat, _ = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args), read, rows)
    return jax.tree.unflatten(jax.tree.structure(out), flat)


def _evaluate(
    jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any], read: Sequence[bool], rows: int
) -> tuple[list[Any], list[bool]]:
    """Return a traced program's outputs, arrays or `Shares`, and which of them read images.

    Args:
      args: arrays and `Shares`.
      read: which of these read images.
    """
    env: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args]))
    value = lambda v: v.val if isinstance(v, Literal) else env[v]
    zero, turned, images = set(), set(), {v for v, r in zip(jaxpr.invars, read) if r}
    seen = lambda eqn_vars: [not isinstance(v, Literal) and v in images for v in eqn_vars]
    for eqn in jaxpr.eqns:
        info, name, now = eqn.source_info, eqn.primitive.name, seen(eqn.invars)
        values, inner = [value(v) for v in eqn.invars], eqn.params.get("jaxpr")
        stack = current_name_stack() + info.name_stack
        with user_context(info.traceback, name_stack=stack), eqn.ctx.manager:
            if name in CALLS and inner is not None:
                if eqn.params.get("differentiated") and _any(eqn.params["prevent_cse"]):
                    # or the compiler would keep what is to be recomputed
                    values = lax.optimization_barrier(values)
                program, constants = getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())
                out, after = _evaluate(program, constants, values, now, rows)
            else:
                specs = _splits(eqn, now, rows, zero, turned)
                out, after = _apply(eqn, values, specs), [any(now)] * len(eqn.outvars)
        env.update(zip(eqn.outvars, out))
        images |= {v for v, r in zip(eqn.outvars, after) if r}
        if name == "broadcast_in_dim" and _is_zero(eqn.invars[0]):
            zero.add(eqn.outvars[0])
        turn = name == "transpose" and eqn.params["permutation"] == (1, 0)
        if turn and now[0] and eqn.invars[0] not in turned:  # a second turn undoes the first
            turned.add(eqn.outvars[0])
        if name == "optimization_barrier":
            turned |= {v for u, v, r in zip(eqn.invars, eqn.outvars, now) if r and u in turned}
    return [value(v) for v in jaxpr.outvars], seen(jaxpr.outvars)


def _apply(eqn: JaxprEqn, values: list[Any], specs: tuple[PartitionSpec, ...] | None) -> list[Any]:
    """Return the outputs of one operation, which sums over images where there are `specs`."""
    name, shared = eqn.primitive.name, [isinstance(v, Shares) for v in values]
    if specs is not None and not any(shared):
        return [_sum_apart(eqn, values, specs)]
    if not any(shared) or not _linear(eqn, shared):
        return _bind(eqn, total(values))
    together = {"select_n": slice(1, None), "scatter-add": slice(0, None, 2)}
    if name in together or name in SUMS:
        where = together.get(name, slice(None))
        values[where] = [_shares(v) for v in values[where]]
    axes = [0 if isinstance(v, Shares) else None for v in values]
    parts = [v.parts if isinstance(v, Shares) else v for v in values]
    out = jax.vmap(lambda *xs: _bind(eqn, xs), axes)(*parts)
    return [Shares(x) for x in out]


def _bind(eqn: JaxprEqn, values: Sequence[Any]) -> list[Any]:
    """Return what the operation itself makes of arrays."""
    out = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
    return list(out) if eqn.primitive.multiple_results else [out]


def _linear(eqn: JaxprEqn, shared: list[bool]) -> bool:
    """Return whether shares can stay apart: the operation is linear in them, and no larger."""
    name = eqn.primitive.name
    size = lambda v: math.prod(shape_of(v))
    if name in GROWING and size(eqn.outvars[0]) > max(
        size(v) for v, s in zip(eqn.invars, shared) if s
    ):
        return False
    if name == "convert_element_type":
        return jnp.issubdtype(eqn.params["new_dtype"], jnp.floating)
    if name == "pad":
        return shared == [True, False] and _is_zero(eqn.invars[1])
    if name in PRODUCTS:
        return sum(shared) == 1
    if name == "div":
        return shared == [True, False]
    if name == "select_n":
        return not shared[0]
    if name == "scatter-add":
        return not shared[1]
    return name in LINEAR or name in SUMS


def _splits(
    eqn: JaxprEqn, read: list[bool], rows: int, zero: set[Any], turned: set[Any]
) -> tuple[PartitionSpec, ...] | None:
    """Return how the operands are split so that each device sums over its own images alone.

    Arrays of images have these in their first axis, alone or with tokens behind them.

    Args:
      read: which of the operands read images.
      zero: arrays that are nothing but zeros.
      turned: matrices of images that were transposed, so images are in their second axis.

    Returns:
      None = the operation does not sum over images.
    """
    name, p = eqn.primitive.name, eqn.params
    shapes = [shape_of(v) for v in eqn.invars]
    many = lambda shape, axis=0: len(shape) > axis and shape[axis] > 0 and shape[axis] % rows == 0
    if name == "reduce_sum":
        return (BATCH,) if read[0] and 0 in p["axes"] and many(shapes[0]) else None
    if name == "dot_general" and all(read):
        for pair in zip(*p["dimension_numbers"][0]):
            kept = any(
                axis and many(shape) and v not in turned
                for axis, shape, v in zip(pair, shapes, eqn.invars)
            )
            if 0 in pair and many(shapes[0], pair[0]) and not kept:
                return tuple(PartitionSpec(*[None] * axis, AXES) for axis in pair)
    if name == "conv_general_dilated" and all(read):
        numbers = p["dimension_numbers"]  # the gradient of a kernel has images as its channels
        images = numbers.lhs_spec[1] == numbers.rhs_spec[1] == 0 and p["feature_group_count"] == 1
        return (BATCH, BATCH) if images and many(shapes[0]) else None
    if name == "scatter-add":  # the gradient of a table
        numbers, (table, ids, _) = p["dimension_numbers"], shapes
        apart = 0 not in numbers.update_window_dims and not numbers.operand_batching_dims
        images = all(read[1:]) and many(ids) and len(ids) > 1 and table[:1] != ids[:1]
        if apart and images and eqn.invars[0] in zero:
            return PartitionSpec(), BATCH, BATCH
    return None


def _sum_apart(eqn: JaxprEqn, values: list[Any], specs: tuple[PartitionSpec, ...]) -> Shares:
    """Return the operation's sum over images as shares."""
    one = lambda *xs: _bind(eqn, xs)[0][None]
    return Shares(jax.shard_map(one, in_specs=specs, out_specs=BATCH, check_vma=False)(*values))


def _shares(x: Any) -> Shares:
    """Return a value as shares, all of it in the first."""
    if isinstance(x, Shares):
        return x
    x = jnp.asarray(x)
    first = jnp.arange(devices()).reshape(-1, *[1] * x.ndim) == 0
    return Shares(_split(jnp.where(first, x[None], jnp.zeros((), x.dtype))))


def _split(parts: jax.Array) -> jax.Array:
    """Return shares, each on its own device."""
    return lax.with_sharding_constraint(parts, BATCH)


def _is_zero(v: Any) -> bool:
    """Return whether an operand is the number 0 in the program's text."""
    return isinstance(v, Literal) and jnp.ndim(v.val) == 0 and bool(v.val == 0)


def _any(flags: bool | tuple[bool, ...]) -> bool:
    """Return whether a flag, or any of several, is set."""
    return any(flags) if isinstance(flags, tuple) else flags


def shape_of(v: Any) -> tuple[int, ...]:
    """Return the shape of an operand or output."""
    return v.aval.shape

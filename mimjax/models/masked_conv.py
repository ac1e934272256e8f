"""The masked 5x5 depthwise convolution of ConvMAE, computed at the visible patches alone.

A visible patch is a "cell" of side x side positions; what the convolution reads of masked patches
and outside the image is zero. Positions stand in the order (patch, row, column).
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int

REACH = 2  # of the 5x5 convolution

# (height, width) in patches, side of a cell in positions
Place = tuple[int, int, int]


def neighbors(place: Place, ids: Int[Array, "b v"]) -> Int[Array, "b v r r"]:
    """Where a cell and its surroundings stand among the visible cells' positions [v * side^2].

    Whatever is masked or outside the image gets an index beyond the last.
    """
    height, width, side = place
    n, v = height * width, ids.shape[1]
    window = np.arange(-REACH, side + REACH)
    top, left = (side * c[:, None] + window for c in np.divmod(np.arange(n), width))
    y, x = top[:, :, None], left[:, None, :]
    outside = (y < 0) | (y >= height * side) | (x < 0) | (x >= width * side)
    cells = np.where(outside, n, y // side * width + x // side)
    within = window % side * side  # the same in every cell
    within = within[:, None] + window % side
    # a comparison and no scatter: which place each patch has among the visible ones, v = none
    rank = jnp.arange(v) - v
    slots = v + ((jnp.arange(n)[:, None] == ids[:, None, :]) * rank).sum(-1)
    slots = jnp.pad(slots, ((0, 0), (0, 1)), constant_values=v)
    around = jax.vmap(lambda row, index: row[index])(slots, jnp.asarray(cells)[ids])
    return around * side**2 + jnp.asarray(within)


def surround(x: Float[Array, "b t c"], near, place: Place) -> Float[Array, "b v h w c"]:
    """Cells with their surroundings; without `near` the whole image is one cell."""
    if near is not None:
        out = jnp.take_along_axis(x, near.reshape(len(x), -1, 1), axis=1, mode="fill", fill_value=0)
        return out.reshape(*near.shape, x.shape[-1])
    pad = (REACH, REACH)
    return jnp.pad(to_cells(x, near, place), ((0, 0), (0, 0), pad, pad, (0, 0)))


def to_cells(x, near, place: Place):
    """Positions [b t c] as cells [b v side side c], or as one map [b 1 h w c]."""
    height, width, side = place
    if near is not None:
        return rearrange(x, "b (v p q) c -> b v p q c", p=side, q=side)
    return rearrange(x, "b (h w p q) c -> b 1 (h p) (w q) c", h=height, w=width, p=side, q=side)


def to_positions(x, near, place: Place):
    """The inverse of `to_cells`."""
    if near is not None:
        return rearrange(x, "b v p q c -> b (v p q) c")
    return rearrange(x, "b 1 (h p) (w q) c -> b (h w p q) c", p=place[2], q=place[2])


SHIFTS = np.stack(np.divmod(np.arange((2 * REACH + 1) ** 2), 2 * REACH + 1), axis=1)


def shifted(x: Float[Array, "b v h w c"], by, size: tuple[int, int]):
    """The part of `size` that the kernel's place `by` (row, column) weighs, in float32."""
    start, shape = (0, 0, by[0], by[1], 0), (*x.shape[:2], *size, x.shape[-1])
    return jax.lax.dynamic_slice(x, start, shape).astype(jnp.float32)


# XLA's grouped convolution took 26 times as long on CPU (forward, 56x56x256) as 25 multiply-adds,
# which one loop fuses. The gradient is the same operation with the kernel turned around: the
# derived one would scatter overlapping windows.
def depthwise(
    x: Float[Array, "b t c"],
    kernel: Float[Array, "5 5 c"],
    near: Int[Array, "b v r r"] | None,
    place: Place,
) -> Float[Array, "b t c"]:
    """5x5 depthwise convolution, zeros at masked positions and outside, summed in float32.

    Args:
      x: positions in the order (patch, row, column): those of visible patches, or all.
      near: of `neighbors`; None = all patches are there.
    """
    out: Any = _depthwise(x, kernel, near, place)
    return out


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _depthwise(x, kernel, near, place: Place):
    cells = surround(x, near, place)
    size = cells.shape[2] - 2 * REACH, cells.shape[3] - 2 * REACH
    out: Any = sum(shifted(cells, tuple(map(int, i)), size) * kernel[tuple(i)] for i in SHIFTS)
    return to_positions(out.astype(x.dtype), near, place)


def _depthwise_forward(x, kernel, near, place):
    return _depthwise(x, kernel, near, place), (x, kernel, near)


def _depthwise_backward(place, saved, g):
    x, kernel, near = saved
    cells = to_cells(g, near, place).astype(jnp.float32)
    around = surround(x, near, place)
    # One small program run 25 times: written out, it took most of a step's compilation. Examples
    # are summed after it, so that devices exchange sums once.
    part = lambda by: (shifted(around, by, cells.shape[2:4]) * cells).sum((1, 2, 3))
    dkernel = jax.lax.map(part, jnp.asarray(SHIFTS)).swapaxes(0, 1).sum(0).reshape(kernel.shape)
    return _depthwise(g, kernel[::-1, ::-1], near, place), dkernel, None


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)

"""Positions in published files: resizing learned ones, and recognizing fixed ones.

Learned positions are resized to the model's grid as in BEiT's fine-tuning code: relative tables by
a cubic spline over coordinates that grow geometrically with the distance, absolute positions by
PyTorch's bicubic interpolation (`models.positions`), antialiased where timm's code does so. torch
is not needed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from mimjax.errors import ConfigError
from mimjax.models.attention import table_rows
from mimjax.models.positions import Grid, resize_absolute
from mimjax.models.vit import fixed_positions, sincos_table

CLS_ROWS = 3  # the last rows of a relative table: CLS to patch, patch to CLS, CLS to itself


def growth(source: int, target: int) -> float:
    """Return the ratio q for which 1 + q + ... + q^(source-2) is the target's largest distance.

    q is found by bisection of [1.01, 1.5] to 1e-6, as in the official code. For a target smaller
    than the source the result is about 1.01, so that its table is the middle of the source's.

    Args:
      source, target: sides of the grids in patches.
    """
    low, high, ratio = 1.01, 1.5, 1.01
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (ratio ** np.arange(source - 1)).sum() > target - 1:
            high = ratio
        else:
            low = ratio
    return ratio


def displacements(source: int, target: int) -> np.ndarray:
    """Return the source's displacements on the target's scale, [2 * source - 1], 0 in the middle.

    Args:
      source, target: sides of the grids in patches.
    """
    ratio = 1.0 if source == target else growth(source, target)
    far = np.cumsum(ratio ** np.arange(source - 1))
    return np.concatenate([-far[::-1], [0.0], far])


def resize_relative(table: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """Return a relative-position table for another grid, float32 [rows h] (BEiT's fine-tuning).

    Args:
      table: [rows h] for the source; rows as in `models.attention.relative_index`.
      source, target: (height, width) in patches; each axis has coordinates of its own.

    Raises:
      ConfigError: a side of the source has one patch and thus no distances.
    """
    # imported here: a third of what every start imports, and few files have such tables
    from scipy.interpolate import RectBivariateSpline

    assert len(table) == table_rows(source), (table.shape, source)
    if source == target:
        return np.array(table, np.float32)
    if min(source) < 2:
        raise ConfigError(f"relative positions of a {source[0]}x{source[1]} grid: no distances")
    sides = [2 * s - 1 for s in source]
    y, x = (displacements(s, t) for s, t in zip(source, target))
    new_y, new_x = (np.arange(1.0 - t, t) for t in target)
    heads = np.asarray(table[:-CLS_ROWS], np.float64).T.reshape(-1, *sides)
    # a spline of degree k needs k + 1 points
    kx, ky = (min(3, side - 1) for side in sides)
    rows = [RectBivariateSpline(y, x, z, kx=kx, ky=ky, s=0)(new_y, new_x).ravel() for z in heads]
    return np.concatenate([np.stack(rows, axis=1), table[-CLS_ROWS:]]).astype(np.float32)


def resized(
    x: np.ndarray,
    shape: tuple[int, ...],
    ours: str,
    grid: Grid | None,
    antialias: bool = False,
) -> np.ndarray:
    """Return the encoder's learned positions for the model's grid; other tensors unchanged.

    Args:
      x: the file's tensor.
      shape: shape of our parameter.
      ours: path of our parameter.
      grid: (height, width) of the model in patches; None = square. The file's grid is taken to be
        square.
      antialias: of absolute positions, see `resize_absolute`.

    Returns:
      `x` itself if nothing is to be resized or no grid fits; the caller then checks its shape.
    """
    absolute = ours in ("encoder/pos_embed", "vqkd/encoder/pos_embed")
    if not absolute and not re.fullmatch(r"encoder/rel_pos(_\d+)?/table", ours):
        return x
    if absolute and x.shape[1:2] == (shape[1] + 1,) and not x[:, 0].any():
        return x[:, 1:]  # the row of zeros that `imports.official_names` adds is none of theirs
    axis = 1 if absolute else 0
    without = lambda s: (*s[:axis], *s[axis + 1 :])
    if x.shape == shape or x.ndim != len(shape) or without(x.shape) != without(shape):
        return x
    source = square(x.shape[axis], absolute)
    target = grid or square(shape[axis], absolute)
    if not source or not target or positions_in(target, absolute) != shape[axis]:
        return x
    if absolute:
        return resize_absolute(x, source, target, antialias=antialias)
    return resize_relative(x, source, target)


def moved(
    source: Grid,
    target: Grid,
    how: str = "bicubic interpolation",
    code: str = "the official fine-tuning code",
) -> str:
    """Return the line that says which positions are resized, how, and whose code does so."""
    sides = " to ".join(f"{g[0]}x{g[1]}" for g in (source, target))
    return f"positions resized from {sides} patches ({how}, as in {code})"


def in_tree(params: Any, of_leaf: Callable[[str, Any], Any]) -> Any:
    """Return an encoder's parameters with `of_leaf` of the name and value of each position table.

    Args:
      params: parameters by name, as dicts.
      of_leaf: gets "pos_embed" or the name of a relative table's module.
    """
    out = dict(params)
    for name, value in params.items():
        if name == "pos_embed":
            out[name] = of_leaf(name, value)
        elif name.startswith("rel_pos"):
            out[name] = {k: of_leaf(name, x) for k, x in value.items()}
    return out


def positions_in(grid: Grid, absolute: bool) -> int:
    """Return the number of rows of a grid's learned positions, absolute (with CLS) or relative."""
    return 1 + grid[0] * grid[1] if absolute else table_rows(grid)


def square(rows: int, absolute: bool) -> Grid | None:
    """Return the square grid whose learned positions have so many rows; None if there is none."""
    root = max(0, rows - (1 if absolute else CLS_ROWS)) ** 0.5
    side = round(root if absolute else (root + 1) / 2)
    return (side, side) if positions_in((side, side), absolute) == rows else None


def tolerance(table: np.ndarray) -> float:
    """Return how far a fixed table may be from its formula, depending on the file's precision."""
    # bfloat16 first, since float16 represents most of its numbers too
    for dtype, error in ((ml_dtypes.bfloat16, 8e-3), (np.float16, 1e-3)):
        if np.array_equal(table, table.astype(dtype).astype(table.dtype)):
            return error
    return 1e-4


def fixed(table: np.ndarray, grid: Grid | None = None) -> tuple[str, Grid] | None:
    """Return the formula and grid of a fixed sine-cosine table; None for learned positions.

    Args:
      table: positions [n d].
      grid: (height, width) in patches; None = every grid of n patches is tried.

    Returns:
      "sincos_xy" or "sincos_yx", and (height, width) in patches.
    """
    n, width = table.shape
    grids = [grid] if grid else [(h, n // h) for h in range(1, n + 1) if n % h == 0]
    if width % 4:
        return None
    for shape in sorted(grids, key=lambda g: abs(g[0] - g[1])):  # square grids first
        for order in ("xy", "yx"):
            if np.abs(table - sincos_table(shape, width, order)).max() < tolerance(table):
                return f"sincos_{order}", shape
    return None


def interpolated(table: np.ndarray, order: str, source: Grid, target: Grid) -> bool:
    """Return whether positions [n d] are a fixed table, interpolated from one grid to another.

    Args:
      order: "xy" or "yx", see `models.vit.sincos_table`.
      source, target: (height, width) in patches.
    """
    if len(table) != target[0] * target[1] or table.shape[1] % 4:
        return False
    made = fixed_positions(target, table.shape[1], order, source)
    return bool(np.abs(table - made).max() < tolerance(table))

"""Learned positions of a published file, resized to a model of another grid as BEiT's code does.

Relative tables by a cubic spline over coordinates that grow geometrically with the distance;
absolute positions by PyTorch's bicubic interpolation (`models.positions`). No torch is needed.
"""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np
from scipy.interpolate import RectBivariateSpline

from mimjax.errors import ConfigError
from mimjax.models.attention import table_rows
from mimjax.models.positions import Grid, resize_absolute
from mimjax.models.vit import sincos_table

CLS_ROWS = 3  # the last rows of a relative table: CLS to patch, patch to CLS, CLS to itself


def growth(source: int, target: int) -> float:
    """The ratio whose geometric sum over the source's distances is the target's largest distance.

    Bisected in 1.01 to 1.5 to a millionth, as in the official code; a target smaller than the
    source ends near 1.01, so that its table is about the middle of the source's.
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
    """Where the 2 source - 1 displacements of a side lie on the target's scale; 0 in the middle."""
    ratio = 1.0 if source == target else growth(source, target)
    far = np.cumsum(ratio ** np.arange(source - 1))
    return np.concatenate([-far[::-1], [0.0], far])


def resize_relative(table: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """A relative-position table [rows heads] for another grid, float32 (BEiT's fine-tuning).

    Args:
      table: rows as in `models.attention.relative_index`.
      source, target: (height, width) in patches; each axis has coordinates of its own.

    Raises:
      ConfigError: a source side of one patch, which has no distances.
    """
    assert len(table) == table_rows(source), (table.shape, source)
    if source == target:
        return np.array(table, np.float32)
    if min(source) < 2:
        raise ConfigError(f"relative positions of a {source[0]}x{source[1]} grid: no distances")
    sides = [2 * s - 1 for s in source]
    y, x = (displacements(s, t) for s, t in zip(source, target))
    new_y, new_x = (np.arange(1.0 - t, t) for t in target)
    heads = np.asarray(table[:-CLS_ROWS], np.float64).T.reshape(-1, *sides)
    # cubic where there are points enough for it
    kx, ky = (min(3, side - 1) for side in sides)
    rows = [RectBivariateSpline(y, x, z, kx=kx, ky=ky, s=0)(new_y, new_x).ravel() for z in heads]
    return np.concatenate([np.stack(rows, axis=1), table[-CLS_ROWS:]]).astype(np.float32)


def resized(x: np.ndarray, shape: tuple[int, ...], ours: str, grid: Grid | None) -> np.ndarray:
    """An encoder's learned positions at the size of the model; everything else as it came.

    Args:
      x: the file's tensor; `shape`: that of our parameter at the path `ours`.
      grid: the model's, None = square. The file's is square unless the lengths are equal.

    Returns:
      `x` itself where nothing is to be resized or no grid fits, which a check of shapes then names.
    """
    absolute = ours in ("encoder/pos_embed", "vqkd/encoder/pos_embed")
    if not absolute and not re.fullmatch(r"encoder/rel_pos(_\d+)?/table", ours):
        return x
    axis = 1 if absolute else 0
    without = lambda s: (*s[:axis], *s[axis + 1 :])
    if x.shape == shape or x.ndim != len(shape) or without(x.shape) != without(shape):
        return x
    source = square(x.shape[axis], absolute)
    target = grid or square(shape[axis], absolute)
    if not source or not target or positions_in(target, absolute) != shape[axis]:
        return x
    return (resize_absolute if absolute else resize_relative)(x, source, target)


def positions_in(grid: Grid, absolute: bool) -> int:
    """Rows of the learned positions of a grid."""
    return 1 + grid[0] * grid[1] if absolute else table_rows(grid)


def square(rows: int, absolute: bool) -> Grid | None:
    """The square grid whose learned positions have so many rows; None if there is none."""
    root = max(0, rows - (1 if absolute else CLS_ROWS)) ** 0.5
    side = round(root if absolute else (root + 1) / 2)
    return (side, side) if positions_in((side, side), absolute) == rows else None


def tolerance(table: np.ndarray) -> float:
    """How far a fixed table may be from its formula: files in half precision hold it rounded."""
    # bfloat16 first: float16 holds most of its numbers too
    for dtype, error in ((ml_dtypes.bfloat16, 8e-3), (np.float16, 1e-3)):
        if np.array_equal(table, table.astype(dtype).astype(table.dtype)):
            return error
    return 1e-4


def fixed(table: np.ndarray, grid: Grid | None = None) -> tuple[str, Grid] | None:
    """The formula and grid of a fixed sine-cosine table [n d], or None: its numbers are learned.

    Args:
      grid: None = whichever fits.

    Returns:
      "sincos_xy" or "sincos_yx", and (height, width) in patches.
    """
    n, width = table.shape
    grids = [grid] if grid else [(h, n // h) for h in range(1, n + 1) if n % h == 0]
    if width % 4:
        return None
    for shape in sorted(grids, key=lambda g: abs(g[0] - g[1])):  # a square first
        for order in ("xy", "yx"):
            if np.abs(table - sincos_table(shape, width, order)).max() < tolerance(table):
                return f"sincos_{order}", shape
    return None

"""Learned absolute positions, resized to another grid by PyTorch's bicubic interpolation.

Files that are read (`torch_io.read.positions`, numpy) and networks that resize when they run (DINO,
traced by jax) share this implementation: one matrix of weights per axis. `jax.image.resize` gives
other numbers: its cubic kernel has a = -0.5, and it blurs when it shrinks. CLIP's tower resizes
bilinearly and has a function of its own (`models.clip`).
"""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np

Grid = tuple[int, int]
CUBIC = -0.75  # PyTorch's coefficient of the cubic kernel
SMOOTH = -0.5  # that of its antialiased interpolation, as in Pillow


def cubic(d: np.ndarray, a: float) -> np.ndarray:
    """Return the cubic kernel of coefficient `a` at distances `d` >= 0; it ends at 2."""
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * (d**3 - 5 * d**2 + 8 * d - 4)
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def bicubic_weights(source: int, target: int, extra: float = 0.0) -> np.ndarray:
    """Return PyTorch's bicubic interpolation of one axis as a matrix, float64 [target source].

    It is that of align_corners=False without antialiasing; taps beyond the border read the border.

    Args:
      source, target: number of points before and after.
      extra: stands for torch's `scale_factor=(target + extra) / source`, which moves the target's
        points without changing their number (0 <= extra < 1); 0 = torch's `size=target`.
    """
    place = (np.arange(target) + 0.5) * source / (target + extra) - 0.5
    taps = np.floor(place).astype(int)[:, None] + np.arange(-1, 3)
    d = np.abs(place[:, None] - taps)
    out = np.zeros((target, source))
    rows = np.broadcast_to(np.arange(target)[:, None], taps.shape)
    np.add.at(out, (rows, taps.clip(0, source - 1)), cubic(d, CUBIC))
    return out


def smooth_weights(source: int, target: int) -> np.ndarray:
    """Return PyTorch's antialiased bicubic interpolation of one axis, float64 [target source].

    The kernel widens when the axis shrinks, and taps beyond the border are left out.
    """
    scale = source / target
    wide = max(scale, 1.0)
    center = (np.arange(target) + 0.5) * scale
    out = cubic(np.abs(np.arange(source) + 0.5 - center[:, None]) / wide, SMOOTH)
    return out / out.sum(1, keepdims=True)


def resize_absolute(
    pos: Any,
    source: Grid,
    target: Grid,
    extra: float = 0.0,
    num_prefix: int = 1,
    antialias: bool = False,
) -> Any:
    """Return positions [1 p+n d] for another grid, float32; the prefix's p rows are kept.

    Args:
      pos: a numpy array (resized in float64) or a jax array, also traced (resized in float32).
      source, target: (height, width) in patches; equal grids change nothing, for any `extra`.
      extra: see `bicubic_weights`.
      num_prefix: p, the number of rows before those of the patches (1 = CLS).
      antialias: whether it is torch's antialiased interpolation, which knows no `extra`.
    """
    assert pos.shape[1] == num_prefix + source[0] * source[1], (pos.shape, source)
    traced = not isinstance(pos, np.ndarray)
    if source == target:
        return pos.astype(jnp.float32) if traced else np.array(pos, np.float32)
    assert not (antialias and extra), extra
    weights = smooth_weights if antialias else functools.partial(bicubic_weights, extra=extra)
    y, x = (weights(s, t) for s, t in zip(source, target))
    if traced:
        xp, options = jnp, {"precision": "highest"}
        pos, y, x = (jnp.asarray(a, jnp.float32) for a in (pos, y, x))
    else:
        xp, options = np, {"optimize": True}
        pos = pos.astype(np.float64)
    patches = pos[0, num_prefix:].reshape(*source, -1)
    out = xp.einsum("yh,xw,hwd->yxd", y, x, patches, **options)
    out = out.reshape(1, -1, pos.shape[2])
    return xp.concatenate([pos[:, :num_prefix], out], axis=1).astype(np.float32)

"""3x3 convolutions of frozen tokenizers, with fewer multiplications on CPUs.

Winograd's minimal filtering F(2x2, 3x3) (Lavin and Gray 2016, arXiv:1509.09308, section 4.1): a
tile of 4x4 inputs gives 2x2 outputs with 16 multiplications in place of 36. Tiles and kernel are
transformed by sums, each of the 16 entries is one product of matrices over channels, and sums of
these are the outputs. The result differs from the direct one by rounding, about 1e-6 of its
largest number. Tiles are four times as large as x, transformed kernels 16/9 times as large as the
kernels; XLA makes those of a whole network first. Other platforms convolve directly.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LEAST = 64  # channels in and out from which the products are worth their transforms


def convolution(
    x: Float[Array, "b h w c"], kernel: Float[Array, "i j k d"], strides, padding, **how
):
    """Return the convolution of x with a kernel: `nn.Conv.conv_general_dilated`.

    On CPUs a large enough 3x3 convolution in float32 that keeps height and width takes Winograd's
    form. FLOPs are counted for the direct form everywhere (`train/flops.py`).

    Args:
      strides, padding, how: of `jax.lax.conv_general_dilated`.
    """
    direct = lambda x, kernel: jax.lax.conv_general_dilated(x, kernel, strides, padding, **how)
    same = (*kernel.shape[:2], *strides, *padding) == (3, 3, 1, 1, (1, 1), (1, 1))
    dilated = any(how.get(f"{side}_dilation") not in (None, (1, 1)) for side in ("lhs", "rhs"))
    plain = same and not dilated and how.get("feature_group_count", 1) == 1
    if plain and min(kernel.shape[2:]) >= LEAST and x.dtype == jnp.float32:
        return jax.lax.platform_dependent(x, kernel, cpu=winograd, default=direct)
    return direct(x, kernel)


def winograd(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]
) -> Float[Array, "b h w d"]:
    """Return the convolution of x with a 3x3 kernel; zeros surround x, h and w are kept."""
    (b, h, w, c), rows, columns = x.shape, -(-x.shape[1] // 2), -(-x.shape[2] // 2)
    x = jnp.pad(x, ((0, 0), (1, 1 + h % 2), (1, 1 + w % 2), (0, 0)))
    place = lambda i, j: x[:, i : i + 2 * rows : 2, j : j + 2 * columns : 2].reshape(-1, c)
    tiles = _transformed(_of_tile, [[place(i, j) for j in range(4)] for i in range(4)])
    kernels = _transformed(_of_kernel, kernel)
    # one product each: the 16 as a batch took twice the time
    products = [[t @ k for t, k in zip(*pair)] for pair in zip(tiles, kernels)]
    out = jnp.stack([jnp.stack(line) for line in _transformed(_of_output, products)])
    out = out.reshape(2, 2, b, rows, columns, -1).transpose(2, 3, 0, 4, 1, 5)
    return out.reshape(b, 2 * rows, 2 * columns, -1)[:, :h, :w]


def _of_tile(x):
    """Return the four sums of four inputs in a line, B^T d."""
    return [x[0] - x[2], x[1] + x[2], x[2] - x[1], x[1] - x[3]]


def _of_kernel(k):
    """Return the four sums of three weights in a line, G g."""
    ends = k[0] + k[2]
    return [k[0], 0.5 * (ends + k[1]), 0.5 * (ends - k[1]), k[2]]


def _of_output(m):
    """Return the two outputs of four products in a line, A^T m."""
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _transformed(line, square):
    """Return a square of arrays, [rows][columns], transformed along columns and along rows."""
    lines = [line(column) for column in zip(*square)]
    return [line(row) for row in zip(*lines)]

"""Error of bfloat16 by the type of the residual stream: `python -m benchmarks.stream`.

A ViT with random weights computes the tokens of random images, and the gradient of a random
projection of them, in float32 and in bfloat16 with both values of `config.stream`. The error is the
norm of the difference from float32 over the norm of the float32 result. No time is measured.
"""

from __future__ import annotations

import argparse
from typing import Any

import jax
import jax.numpy as jnp

from mimjax import schema
from mimjax.models.vit import ViT

STREAMS = {"compute": None, "float32": jnp.dtype(jnp.float32)}


def norm(tree: Any) -> jax.Array:
    """Return the norm of all numbers of a tree."""
    return sum(jnp.square(x.astype(jnp.float32)).sum() for x in jax.tree.leaves(tree)) ** 0.5


def errors(width: int, depth: int, images: int) -> dict[str, tuple[float, float]]:
    """Return the errors of tokens and of gradients, by the type of the stream."""
    net = ViT(width=width, depth=depth, heads=width // 64)
    keys = jax.random.split(jax.random.key(0), 3)
    pixels = jax.random.normal(keys[0], (images, *net.image_size, 3))
    params = jax.jit(net.init)(keys[1], pixels)
    weight = jax.random.normal(keys[2], (images, 1 + net.num_patches, width))

    def computed(dtype: Any, stream: Any) -> Any:
        other = schema.with_dtype(net, jnp.dtype(dtype), stream)
        tokens = lambda p: other.apply(p, pixels).tokens.astype(jnp.float32)
        total = lambda p: (tokens(p) * weight).sum()
        return jax.jit(lambda p: (tokens(p), jax.grad(total)(p)))(params)

    exact = computed("float32", None)
    off = lambda a, b: float(norm(jax.tree.map(jnp.subtract, a, b)) / norm(b))
    out = {}
    for name, stream in STREAMS.items():
        tokens, grads = computed("bfloat16", stream)
        out[name] = off(tokens, exact[0]), off(grads, exact[1])
    return out


def main() -> None:
    """Print one line for each depth and type of the stream."""
    parser = argparse.ArgumentParser(description="Error of bfloat16 by stream.")
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--depths", type=int, nargs="+", default=[12, 32])
    parser.add_argument("--images", type=int, default=4)
    args = parser.parse_args()
    for depth in args.depths:
        for name, (tokens, grads) in errors(args.width, depth, args.images).items():
            print(
                f"width {args.width}, depth {depth:2}, stream {name:8}  "
                f"tokens {tokens:.2%}  gradients {grads:.2%}",
                flush=True,
            )


if __name__ == "__main__":
    main()

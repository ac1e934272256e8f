"""Moving averages of parameters: always float32, always copies.

An alias of the parameters would be donated twice by the train step, and a bfloat16 average stops
moving at decays near 1. Pure functions; which tree is averaged, and how fast, is the task's.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def copy_f32(tree):
    """A float32 copy of every leaf."""
    return jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), tree)


def lerp(ema, new, decay):
    """Decay * ema + (1 - decay) * new, leaf by leaf."""
    decay = jnp.asarray(decay, jnp.float32)
    return jax.tree.map(lambda e, p: decay * e + (1 - decay) * p.astype(jnp.float32), ema, new)

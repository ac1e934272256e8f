"""Randomness without state: every key is a pure function of (seed, phase, step, name).

Nothing is stored in a checkpoint, so nothing can be lost on restart.
"""

from __future__ import annotations

import zlib

import jax
import numpy as np


def named(key: jax.Array, name: str) -> jax.Array:
    """A key of its own for one named use.

    crc32 and not Python's `hash`, which is salted per process and would differ between hosts.
    """
    return jax.random.fold_in(key, np.uint32(zlib.crc32(name.encode())))


def step_key(seed: int, phase: str, step: int | jax.Array) -> jax.Array:
    """The one key of a step: `phase` is "train", "eval" or "init"; `step` may be traced."""
    return jax.random.fold_in(named(jax.random.key(seed), phase), step)


def example_seed(seed: int, epoch: int, index: int, name: str) -> int:
    """A 64-bit host seed that depends on (seed, epoch, index, name) and on nothing else.

    Augmentation and host-made masks use it, so an example gets the same crop and mask whatever
    the number of hosts, workers or devices.
    """
    words = np.random.SeedSequence([seed, epoch, index, zlib.crc32(name.encode())])
    return int(words.generate_state(1, np.uint64)[0])

"""Random keys without state: every key is a pure function of (seed, phase, step, name).

No key is stored in a checkpoint, so a restarted run draws the same numbers as an uninterrupted one.
Keys on the devices come from `step_key` and `named`; random numbers on the host, for augmentation
and masks, are seeded by `example_seed`.
"""

from __future__ import annotations

import zlib

import jax
import numpy as np


def named(key: jax.Array, name: str) -> jax.Array:
    """Return the key of one named use, independent of the keys of other names.

    The name is hashed by crc32, because Python's `hash` is salted per process and would differ
    between hosts.
    """
    return jax.random.fold_in(key, np.uint32(zlib.crc32(name.encode())))


def step_key(seed: int, phase: str, step: int | jax.Array) -> jax.Array:
    """Return the one key of a step.

    Args:
      phase: "train", "eval" or "init".
      step: number of the step; it may be traced.
    """
    return jax.random.fold_in(named(jax.random.key(seed), phase), step)


def example_seed(seed: int, epoch: int, index: int, name: str) -> int:
    """Return a 64-bit seed for the host that depends on (seed, epoch, index, name) alone.

    Augmentation and masks made on the host use it, so that an example gets the same crop and mask
    for any number of hosts, workers and devices.

    Args:
      index: of the example in the data.
      name: of the use ("mask", ...).
    """
    words = np.random.SeedSequence([seed, epoch, index, zlib.crc32(name.encode())])
    return int(words.generate_state(1, np.uint64)[0])
